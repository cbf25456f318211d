"""`auroraedge ingest`: frames from files, folders and cameras to a server; results to MQTT, webhooks and stdout."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from auroraedge.command_line import INTERRUPTED, exit_codes


def ingest(
    paths: Annotated[list[str] | None, typer.Argument(help="Image files, folders, quoted glob patterns.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings in YAML (docs/ingest.md).")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", envvar="AURORAEDGE_RECIPE", help="Recipe id.")] = None,
    server: Annotated[
        str | None, typer.Option("--server", envvar="AURORAEDGE_SERVER", help="host:port of the server.")
    ] = None,
    watch: Annotated[list[Path] | None, typer.Option(help="Folder that images arrive in; may be repeated.")] = None,
    video: Annotated[
        list[str] | None, typer.Option(help="rtsp://..., /dev/video0, a video file; may be repeated.")
    ] = None,
    every: Annotated[bool, typer.Option(help="Every frame of --video, spooled; else the newest one.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Golden sample, or folder of them.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder that remembers what is done.")] = None,
    jsonl: Annotated[bool | None, typer.Option(help="Results on stdout, one JSON object a line.")] = None,
    check: Annotated[bool, typer.Option(help="Only check the settings.")] = False,
) -> None:
    """Feeds frames to a server, and its results to MQTT, webhooks or stdout. Nothing is lost or done twice."""
    with exit_codes():
        from auroraedge.ingest.run import Ingest

        settings = _settings(config, recipe, server, state, jsonl, _sources(paths, watch, video, every, reference))
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        run = Ingest(settings)
        if check:
            run.journal.close()
            typer.echo(f"{len(settings.sources)} sources, {len(run.couriers)} outputs: the settings can be used")
            return
        stopped: list[int] = []

        def on_signal(number: int, _: Any) -> None:
            stopped.append(number)
            signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
            run.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        with run:
            run.wait(show_status=True)
        run_line = ", ".join(f"{name} {stats['answered']}" for name, stats in run.stats.items())
        typer.echo(f"answered: {run_line}", err=True)
        if signal.SIGINT in stopped:
            raise typer.Exit(INTERRUPTED)


def _sources(
    paths: list[str] | None, watch: list[Path] | None, video: list[str] | None, every: bool, reference: Path | None
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if paths:
        found.append({"type": "files", "name": "files", "paths": paths})
    for index, folder in enumerate(watch or ()):
        found.append({"type": "watch", "name": f"watch{index or ''}", "folder": folder})
    for index, url in enumerate(video or ()):
        policy = "every" if every else "latest"
        found.append({"type": "video", "name": f"video{index or ''}", "url": url, "policy": policy})
    return [source | {"reference": reference} for source in found] if reference else found


def _settings(
    file: Path | None,
    recipe: str | None,
    server: str | None,
    state: Path | None,
    jsonl: bool | None,
    sources: list[dict[str, Any]],
) -> Any:
    """The file's settings; options win. Without a file results go to stdout."""
    from auroraedge.errors import InvalidRequestError
    from auroraedge.ingest.settings import config_from, read_settings

    content: dict[str, Any] = read_settings(file) if file is not None else {"outputs": {"jsonl": True}}
    content |= {name: value for name, value in (("recipe", recipe), ("state", state)) if value is not None}
    if server is not None:
        content["server"] = (content.get("server") or {}) | {"address": server}
    if jsonl is not None:
        content["outputs"] = (content.get("outputs") or {}) | {"jsonl": jsonl}
    if sources:
        content["sources"] = [*(content.get("sources") or ()), *sources]
    if not content.get("sources"):
        raise InvalidRequestError(
            "There is nothing to take frames from.",
            field="sources",
            remedy="Name files, --watch DIR, --video URL, or --config FILE.",
        )
    return config_from(content)
