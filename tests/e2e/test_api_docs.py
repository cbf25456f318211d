"""docs/api.md: its Python runs against a server, and its table of errors is that of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2
from service_harness import RunningServer, running_server

from auroraedge.client.status import CODE_BY_REASON
from auroraedge.inspection.recipe import list_recipes
from service.config import ServiceConfig

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
# Reasons that no RPC gives: of tools on the command line, of training, and of opening a store.
ELSEWHERE = re.compile(
    r"CALIBRATION|DATASET|TRAINING|STUDY|DEPENDENCY|DUPLICATE|STORE_(NOT|READ|DAMAGED|VERSION)|CONFIG|INGEST|TARGET"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(store=str(tmp_path_factory.mktemp("store") / "results.db")) as running:
        yield running


def test_every_example_runs(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS) >= 11
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block.replace("127.0.0.1:50051", server.address), names)
    shown = capsys.readouterr().out
    assert "['InspectionResult', 'Answer']" in shown and "left" in shown and "final" in shown


def test_the_table_of_errors_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \|", TEXT, re.MULTILINE))
    known = {reason: code_pb2.Code.Name(code) for reason, code in CODE_BY_REASON.items()}
    assert {reason: known.get(reason) for reason in rows} == rows
    missing = {reason for reason in known if reason not in rows and not ELSEWHERE.search(reason)}
    assert not missing


def test_what_it_says_of_limits_is_so() -> None:
    config = ServiceConfig()
    assert (config.max_message_mb, config.max_megapixels) == (64, 64)
    assert {"magnetic_tile", "steel_strip"} <= {recipe.id for recipe in list_recipes()}
