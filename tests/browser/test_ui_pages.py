"""Every page in every language: nothing is blocked, nothing is missing, and axe-core finds nothing wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from seeding import Inspected, fill
from watching import until

from auroraedge.inspection.results import Verdict
from auroraedge.store import Store

PAGES = ("", "review", "history", "recipes", "recipes/pcb", "training-set", "engine", "audit", "results/{id}")
LANGUAGES = ("en", "de", "zh")


@pytest.fixture
def full(store: Store, parts: list[Inspected]) -> list[str]:
    ids = fill(store, parts, 60, every_review=5)
    store.review(ids[0], verdict=Verdict.NG, reviewer="Anna", reason="Staub")
    engine = parts[0].result
    store.record_engine(engine_sha256=engine.engine_sha256, model_id=engine.model_id, target="cpu", who="x", why="y")
    return ids


def violations(page: Any) -> list[str]:
    """What axe-core finds against WCAG 2.2 A and AA, contrast included."""
    from axe_playwright_python.sync_playwright import Axe

    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    response = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response
    return [
        f"{found['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for found in response["violations"]
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_are_accessible(
    language: str, store: Store, full: list[str], serve: Any, open_page: Callable[..., Any]
) -> None:
    server = serve(store)
    page = open_page(language)
    # Motion would have axe-core measure half-faded colours.
    page.emulate_media(reduced_motion="reduce")
    elsewhere: list[str] = []
    page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith(server.url) else None)
    # Roles and colours are those of the same templates: the other languages need fewer pages.
    for path in PAGES if language == "en" else ("", "review"):
        page.goto(server.url + path.format(id=full[0]))
        assert page.locator("html").get_attribute("lang") == language
        page.wait_for_timeout(150)
        assert violations(page) == [], path
        # Wide content scrolls in its own place: the page itself never does.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert elsewhere == []


@pytest.mark.parametrize(("width", "height"), [(768, 1024), (1024, 768), (3840, 2160)])
def test_pages_fit_the_screen(
    width: int, height: int, store: Store, full: list[str], serve: Any, open_page: Callable[..., Any]
) -> None:
    server = serve(store)
    page = open_page("de", width, height)
    for path in PAGES:
        page.goto(server.url + path.format(id=full[0]))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    page.goto(server.url)
    page.wait_for_selector(".tile")
    tiles = page.locator(".tile .verdict")
    # Letters of a 200th of the distance are read at ease: 15 mm at 3 m, on a wall of 55 inches (0.317 mm a pixel).
    if width == 3840:
        sizes = tiles.evaluate_all("all => all.map((each) => parseFloat(getComputedStyle(each).fontSize))")
        assert min(sizes) * 0.7 * 0.317 >= 15
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_empty_store(store: Store, serve: Any, open_page: Callable[..., Any]) -> None:
    server = serve(store)
    page = open_page()
    told = {
        "": "No results in the last seven days",
        "review": "Nothing waits for a review",
        "history": "No results.",
        "training-set": "No reviewed results.",
        "engine": "Not reachable",
        "audit": "No entries.",
        "recipes": "magnetic_tile",
    }
    for path, text in told.items():
        page.goto(server.url + path)
        assert text in page.locator("main").inner_text(), path
    page.goto(server.url + "recipes/pcb")
    until(page, "document.querySelector('#basis').textContent.includes('0 results')")
    assert "none reviewed" in page.locator("[data-rate=escape] .tried").inner_text()


def test_help_lists_the_keys(store: Store, full: list[str], serve: Any, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.goto(serve(store).url + f"results/{full[0]}")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible() and "Draw box" in page.locator("#help").inner_text()
    assert violations(page) == []
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    # While someone types, keys are letters.
    page.locator("[name=reason]").fill("")
    page.locator("[name=reason]").press("o")
    assert page.locator("[name=reason]").input_value() == "o"
    assert page.locator("#review :checked").count() == 0


def test_language_is_remembered(store: Store, serve: Any, open_page: Callable[..., Any]) -> None:
    page = open_page("fr")
    server = serve(store)
    page.goto(server.url + "history?lot=A")
    assert page.locator("h1").inner_text() == "History"
    page.get_by_role("link", name="DE").click()
    page.wait_for_url("**/history?lot=A")
    assert page.locator("h1").inner_text() == "Verlauf"
    page.goto(server.url + "audit")
    assert page.locator("h1").inner_text() == "Protokoll"
