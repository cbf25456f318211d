"""The server's settings: what the command line gives, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from auroraedge.errors import InvalidRequestError, RecipeError
from service.config import ServiceConfig, config_from_arguments, is_loopback
from service.recipes import RecipeBook


def test_defaults_listen_on_this_machine_only() -> None:
    config = config_from_arguments([])
    assert config == ServiceConfig()
    assert is_loopback(config.host) and not config.allow_insecure
    assert config.max_message_bytes == 64 * 2**20


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.20", "inspection.example", "127.0.0.1.example"])
def test_other_addresses_need_an_explicit_word(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="--allow-insecure") as caught:
        config_from_arguments(["--host", host])
    assert caught.value.field == "--host"
    assert config_from_arguments(["--host", host, "--allow-insecure"]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses_are_free(host: str) -> None:
    assert config_from_arguments(["--host", host]).host == host


def test_addresses_of_both_families() -> None:
    assert ServiceConfig(port=7).address == "127.0.0.1:7"
    assert ServiceConfig(host="::1", port=7).address == "[::1]:7"


def test_every_option_arrives(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = config_from_arguments(
        f"--port 0 --engine e --recipes {tmp_path} --recipes {other} --threads 2 --max-message-mb 8 "
        "--max-megapixels 12 --queue-frames 3 --queue-mb 9 --max-batch 4 --stream-window 5 --max-new-tokens 6 "
        "--drain-seconds 1.5 --shared-memory-mb 7 --shared-memory-socket s --shared-memory-idle-seconds 9".split()
    )
    assert config.recipes == (tmp_path, other)
    changed = {name: value for name, value in config if value != getattr(ServiceConfig(), name)}
    changed.pop("recipes")
    assert changed == {
        "port": 0,
        "engine": Path("e"),
        "threads": 2,
        "max_message_mb": 8,
        "max_megapixels": 12,
        "queue_frames": 3,
        "queue_mb": 9,
        "max_batch": 4,
        "stream_window": 5,
        "max_new_tokens": 6,
        "drain_seconds": 1.5,
        "shared_memory_mb": 7,
        "shared_memory_socket": Path("s"),
        "shared_memory_idle_seconds": 9.0,
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "70000"),
        ("--port", "many"),
        ("--threads", "0"),
        ("--recipes", "no such folder"),
        ("--queue-frames", "0"),
        ("--drain-seconds", "-1"),
    ],
)
def test_values_that_cannot_be_used_name_their_option(option: str, value: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        config_from_arguments([option, value])
    assert caught.value.field == option


def test_help_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config_from_arguments(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, field in ServiceConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
    assert re.search(r"--port VALUE\s+TCP port", text)


def test_recipe_files_join_and_override_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "pcb.yaml").write_text("{id: pcb, version: 9, labels: [{name: open}]}", encoding="utf-8")
    (tmp_path / "gear.yaml").write_text("{id: gear, labels: [{name: chip}]}", encoding="utf-8")
    book = RecipeBook([tmp_path])
    assert book.get("pcb", 0).version == 9
    assert book.get("gear", 1).label_names == ("chip",)
    assert [recipe.id for recipe in book.all] == sorted(recipe.id for recipe in book.all)


def test_faulty_recipe_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "gear.yaml").write_text("{id: gear}", encoding="utf-8")
    with pytest.raises(RecipeError, match="labels"):
        RecipeBook([tmp_path])
