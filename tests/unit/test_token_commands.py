"""`python -m service token`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auroraedge.serving.tokens import TokenFile, TokenRefused, read_tokens
from service.token_commands import app


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


def test_the_life_of_a_token(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    code, out, err = run("add", "line-3", "--scope", "read", "--scope", "inspect", "--expires", "90d", "--tokens", file)
    assert code == 0
    token = out.strip()
    entry = TokenFile(Path(file)).check(token)
    assert (entry.name, entry.scopes) == ("line-3", ("inspect", "read"))
    assert entry.expires_at is not None and (entry.expires_at - entry.created_at).days == 90
    assert token not in err and entry.id in err
    code, out, _ = run("list", "--tokens", file, "--json")
    rows = json.loads(out)
    assert [(row["name"], row["state"]) for row in rows] == [("line-3", "valid")]
    assert not {"salt", "sha256"} & rows[0].keys()
    assert run("revoke", entry.id, "--tokens", file)[0] == 0
    with pytest.raises(TokenRefused, match="revoked"):
        TokenFile(Path(file)).check(token)
    assert "revoked" in run("list", "--tokens", file)[1]
    assert run("revoke", "line-3", "--tokens", file)[0] == 2, "there is none left to revoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "x", "--scope", "all"), "no scope 'all'"),
        (("add", "x y", "--scope", "read"), "name"),
        (("add", "x", "--scope", "read", "--expires", "soon"), "no lifetime"),
        (("add", "x", "--scope", "read", "--expires", "0d"), "no lifetime"),
        (("list",), "cannot be read"),
        (("revoke", "x"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_says_why(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    file = tmp_path / "tokens.json"
    code, _, err = run(*arguments, "--tokens", str(file))
    assert code == 2 and message in err
    assert not file.exists()


def test_the_file_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AURORAEDGE_TOKENS", raising=False)
    assert run("list")[0] == 2
    monkeypatch.setenv("AURORAEDGE_TOKENS", str(tmp_path / "t.json"))
    assert run("add", "x", "--scope", "read", "--expires", "never")[0] == 0
    assert read_tokens(tmp_path / "t.json")[0].expires_at is None
