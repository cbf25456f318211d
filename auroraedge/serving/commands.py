"""`auroraedge config`: checks settings of the server, and shows which value comes from where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auroraedge.command_line import JsonOption, exit_codes, open_console

app = typer.Typer(help="Settings of the server (docs/operations.md).", no_args_is_help=True)

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="Settings in YAML; else $AURORAEDGE_CONFIG.", show_default=False)
    ] = None,
    environment: Annotated[bool, typer.Option(help="Count the AURORAEDGE_* variables in.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Checks settings and what they point to: certificates, tokens, folders, exposure. Exit code 2: cannot be used."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from auroraedge.serving.checks import findings
    from auroraedge.serving.sources import load_settings

    with exit_codes():
        settings = load_settings(file=file, environment=environment)
        found = findings(settings)
        if as_json:
            typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
        else:
            table = Table("setting", "", "finding", box=None)
            for finding in found:
                colour = _COLOURS[finding.level]
                table.add_row(finding.setting, f"[{colour}]{finding.level}[/{colour}]", finding.text)
            open_console().print(table)
        if any(finding.level == "error" for finding in found):
            raise typer.Exit(2)


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(help="Settings in YAML; else $AURORAEDGE_CONFIG.", show_default=False)
    ] = None,
    environment: Annotated[bool, typer.Option(help="Count the AURORAEDGE_* variables in.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Shows every setting, its value, and where that comes from."""
    import json

    from rich.table import Table

    from auroraedge.serving.sources import load_settings

    with exit_codes():
        settings = load_settings(file=file, environment=environment)
        values = settings.config.model_dump(mode="json")
        values["unix_socket_mode"] = f"{settings.config.unix_socket_mode:04o}"
        origins = {name: settings.origins.get(name, "default") for name in values}
        if as_json:
            rows = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
            typer.echo(json.dumps(rows, indent=2))
            return
        table = Table("setting", "value", "from", box=None)
        for name, value in values.items():
            shown = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
            style = "dim" if origins[name] == "default" else ""
            table.add_row(name, shown, origins[name], style=style)
        open_console().print(table)
