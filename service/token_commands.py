"""`python -m service token`: makes, lists and revokes access tokens. A running server follows within a second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from auroraedge.command_line import JsonOption, exit_codes, open_console
from auroraedge.errors import InvalidRequestError
from auroraedge.serving.settings import SCOPES
from auroraedge.serving.tokens import add_token, read_tokens, revoke_tokens

app = typer.Typer(help="Access tokens of the server (docs/security.md).", no_args_is_help=True)

TokensOption = Annotated[
    Path | None, typer.Option("--tokens", envvar="AURORAEDGE_TOKENS", help="The file of token hashes.")
]


def _file(path: Path | None) -> Path:
    if path is None:
        raise InvalidRequestError(
            "No token file is named.", field="--tokens", remedy="Name it, or set AURORAEDGE_TOKENS."
        )
    return path


def _lifetime(text: str) -> timedelta | None:
    if text == "never":
        return None
    units = {"h": 1, "d": 24, "w": 168}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal() or not 0 < int(number) * units[unit] <= 24 * 36_500:
        raise InvalidRequestError(
            f"'{text}' is no lifetime.", field="--expires", remedy="Write e.g. 12h, 90d, 52w, or never."
        )
    return timedelta(hours=int(number) * units[unit])


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who will use it, e.g. line-3; it names the client in logs and audit.")],
    scope: Annotated[list[str], typer.Option("--scope", help="inspect, read or admin; may be repeated.")],
    tokens: TokensOption = None,
    expires: Annotated[str, typer.Option(help="Lifetime: 12h, 90d, 52w, or never.")] = "365d",
) -> None:
    """Makes a token and prints it, once; the file keeps only a salted hash."""
    with exit_codes():
        unknown = [word for word in scope if word not in SCOPES]
        if unknown:
            raise InvalidRequestError(
                f"There is no scope '{unknown[0]}'.", field="--scope", remedy=f"Scopes: {', '.join(SCOPES)}."
            )
        chosen = tuple(known for known in SCOPES if known in scope)
        text, token = add_token(_file(tokens), name, chosen, lifetime=_lifetime(expires))
        until = f"until {token.expires_at:%Y-%m-%d %H:%M} UTC" if token.expires_at else "without an end"
        typer.echo(
            f"{token.name} ({token.id}): {', '.join(token.scopes)}, {until}. Keep it; it is not shown again.", err=True
        )
        typer.echo(text)


@app.command("list")
def list_tokens(tokens: TokensOption = None, as_json: JsonOption = False) -> None:
    """Lists the tokens: id, name, scopes and state."""
    import json

    from rich.table import Table

    with exit_codes():
        now = datetime.now(UTC)
        entries = read_tokens(_file(tokens))
        if as_json:
            rows = [
                token.model_dump(mode="json", exclude={"salt", "sha256"}) | {"state": token.state(now)}
                for token in entries
            ]
            typer.echo(json.dumps(rows, indent=2))
            return
        table = Table("id", "name", "scopes", "state", "made", "expires", box=None)
        for token in entries:
            end = f"{token.expires_at:%Y-%m-%d}" if token.expires_at else "never"
            scopes = ", ".join(token.scopes)
            table.add_row(token.id, token.name, scopes, token.state(now), f"{token.created_at:%Y-%m-%d}", end)
        open_console().print(table)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Id of a token, or the name of all tokens of a client.")],
    tokens: TokensOption = None,
) -> None:
    """Revokes tokens. Running streams that used one end with their next frame."""
    with exit_codes():
        for entry in revoke_tokens(_file(tokens), token):
            typer.echo(f"revoked: {entry.name} ({entry.id})")
