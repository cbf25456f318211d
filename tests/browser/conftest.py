"""The page in a real browser: Debian's chromium, on stores of generated parts that the engine really inspected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from requires import require_tool
from seeding import Inspected, inspect_samples

from auroraedge.store import Store
from service.ui.config import UiConfig
from service.ui.serving import UiServer
from service.ui.token_file import open_tokens


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Inspected]:
    return inspect_samples(tmp_path_factory.mktemp("samples") / "parts", per_kind=4)


# Of the module and not of the session: playwright's loop must not run beside those of asynchronous tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = require_tool("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield launched
        launched.close()


Serve = Callable[..., UiServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts the page on a store, on a free port; options are those of UiConfig."""
    started: list[UiServer] = []

    def start(store: Store, **options: Any) -> UiServer:
        # Nothing listens on port 1: the gRPC server is not reachable unless a test names one.
        values = {"store": str(tmp_path), "port": 0, "server": "127.0.0.1:1", **options}
        config = UiConfig.model_validate(values)
        server = UiServer(config, store, open_tokens(config.tokens))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """A page in a browser of its own. Anything that the page reports as an error fails the test."""
    contexts, problems = [], []

    def make(language: str = "en-GB", width: int = 1920, height: int = 1080, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, locale=language, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            # Answers such as 403 are what some tests are about; scripts that fail and blocked content never are.
            lambda message: (
                problems.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        return page

    yield make
    for context in contexts:
        context.close()
    assert not problems
