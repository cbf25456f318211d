"""Where settings come from: file, environment and options, their precedence, and what each refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auroraedge.cli import app
from auroraedge.errors import InvalidRequestError
from auroraedge.serving.settings import ServiceConfig
from auroraedge.serving.sources import ConfigError, load_settings
from auroraedge.serving.tokens import add_token
from service.config import config_from_arguments, settings_from_arguments

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AURORAEDGE_")]:
        monkeypatch.delenv(name)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_options_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "server.yaml", "port: 1\nqueue_frames: 2\nmax_batch: 3\n")
    monkeypatch.setenv("AURORAEDGE_QUEUE_FRAMES", "20")
    monkeypatch.setenv("AURORAEDGE_MAX_BATCH", "30")
    settings = settings_from_arguments(["--config", str(file), "--max-batch", "4"])
    config = settings.config
    assert (config.port, config.queue_frames, config.max_batch, config.stream_window) == (1, 20, 4, 4)
    assert settings.origins == {"port": str(file), "queue_frames": "environment", "max_batch": "command line"}


def test_the_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORAEDGE_CONFIG", str(write(tmp_path / "c.yaml", "port: 7\n")))
    assert config_from_arguments([]).port == 7
    assert load_settings(environment=False).config == ServiceConfig()


def test_flags_can_switch_off_what_the_file_switches_on(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "allow_insecure: true\nreflection: false\n")
    config = config_from_arguments(["--config", str(file), "--no-allow-insecure", "--reflection"])
    assert not config.allow_insecure and config.reflection


def test_paths_of_the_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc" / "recipes").mkdir(parents=True)
    text = "recipes: [recipes]\ntls_cert: a.pem\ntls_key: /b.pem\nunix_socket_mode: 0660\n"
    config = load_settings(file=write(tmp_path / "etc" / "c.yaml", text)).config
    assert config.recipes == (tmp_path / "etc" / "recipes",)
    assert (config.tls_cert, config.tls_key) == (tmp_path / "etc" / "a.pem", Path("/b.pem"))
    assert config.unix_socket_mode == 0o660


def test_lists_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("AURORAEDGE_RECIPES", os.pathsep.join(map(str, folders)))
    monkeypatch.setenv("AURORAEDGE_CLIENT_CERT_SCOPES", "inspect, admin")
    monkeypatch.setenv("AURORAEDGE_HTTP_PORT", "")
    config = config_from_arguments([])
    assert config.recipes == tuple(folders)
    assert config.client_cert_scopes == ("inspect", "admin")
    assert config.http_port is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quue_frames: 3", "did you mean queue_frames"),
        ("queue-frames: 3", "did you mean queue_frames"),
        ("zzzz: 3", "there is no such setting"),
        ("port: 3\nport: 4", "twice"),
        ("port: [", "YAML"),
        ("- port", "mapping"),
        ("port: many", "integer"),
        ("!!python/object/apply:os.system ['false']", "YAML"),
        ("host: 10.1.2.3", "--allow-insecure"),
    ],
)
def test_faulty_files_are_refused_with_their_name(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(file=file)
    assert str(file) in caught.value.field or caught.value.field == "--host"


def test_every_problem_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "port: 99999\nmax_batch: 0\nlog_level: loud\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file=file)
    assert [name for name, _ in caught.value.problems] == [
        f"{file}: {key}" for key in ("port", "max_batch", "log_level")
    ]


def test_misspelt_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORAEDGE_QUEUE_FRAME", "3")
    with pytest.raises(ConfigError, match="AURORAEDGE_QUEUE_FRAMES"):
        config_from_arguments([])
    monkeypatch.delenv("AURORAEDGE_QUEUE_FRAME")
    monkeypatch.setenv("AURORAEDGE_PORT", "many")
    with pytest.raises(ConfigError, match="AURORAEDGE_PORT: Input should be a valid integer"):
        config_from_arguments([])


def test_variables_of_kubernetes_and_of_the_command_line_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {
        "PORT": "tcp://10.0.0.1:50051", "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "50051",
        "SERVICE_PORT_GRPC": "50051", "PORT_50051_TCP": "tcp://10.0.0.1:50051", "PORT_50051_TCP_ADDR": "10.0.0.1",
    }  # fmt: skip
    for name, value in (links | {"RECIPE": "pcb", "SERVER": "host:1"}).items():
        monkeypatch.setenv(f"AURORAEDGE_{name}", value)
    assert config_from_arguments([]) == ServiceConfig()


def test_passwords_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORAEDGE_HOST", "postgresql://u:secret@db")
    with pytest.raises(ConfigError, match="files only") as caught:
        config_from_arguments(["--allow-insecure"])
    assert "secret" not in str(caught.value)


# --- the commands ----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["config", *arguments])
    return done.exit_code, done.output


def test_show_says_where_each_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "c.yaml", "port: 1\n")
    monkeypatch.setenv("AURORAEDGE_MAX_BATCH", "2")
    code, out = run("show", str(file), "--json")
    assert code == 0
    rows = json.loads(out)
    assert rows["port"] == {"value": 1, "origin": str(file)}
    assert rows["max_batch"] == {"value": 2, "origin": "environment"}
    assert rows["queue_mb"] == {"value": 256, "origin": "default"}
    assert list(rows) == list(ServiceConfig.model_fields)
    assert "unix_socket_mode" in run("show", str(file))[1]


def test_check_looks_at_what_the_settings_name(tmp_path: Path) -> None:
    text = (
        "tokens: tokens.json\ntls_cert: cert.pem\ntls_key: key.pem\nengine: engine\nhttp_port: 1\nhttp_host: 0.0.0.0\n"
    )
    file = write(tmp_path / "c.yaml", text)
    code, out = run("check", str(file), "--json")
    levels = {row["setting"]: (row["level"], row["text"]) for row in json.loads(out)}
    assert code == 2
    assert [levels[name][0] for name in ("tokens", "tls_cert", "engine", "recipes")] == [
        "error",
        "error",
        "error",
        "ok",
    ]
    assert levels["http_host"][0] == "warning"

    add_token(tmp_path / "tokens.json", "line", ("inspect",), lifetime=timedelta(days=3))
    (tmp_path / "engine").mkdir()
    write(tmp_path / "engine" / "manifest.json", "{}")
    file = write(tmp_path / "c.yaml", "tokens: tokens.json\nengine: engine\n")
    code, out = run("check", str(file))
    assert code == 0 and "expires on" in out and "1 valid of 1" in out
    (tmp_path / "tokens.json").chmod(0o644)
    code, out = run("check", str(file), "--json")
    assert code == 2 and "0644" in out
    file.chmod(0o666)
    assert "changed by every user" in run("check", str(file), "--json")[1]


def test_check_of_a_faulty_file_gives_the_nearest_name(tmp_path: Path) -> None:
    code, out = run("check", str(write(tmp_path / "c.yaml", "prot: 3\n")))
    assert code == 2 and "did you mean port" in out


def test_the_server_has_the_same_commands(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "port: 5\n")
    command = [sys.executable, "-m", "service", "config", "check", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recipes" in done.stdout


def test_help_of_an_unknown_option_is_short() -> None:
    with pytest.raises(InvalidRequestError, match="--help"):
        config_from_arguments(["--portt", "3"])
