"""`python -m service`: parse, configure, serve, and map errors to exit codes (2: the options, 1: anything else)."""

from __future__ import annotations

import asyncio
import logging
import sys

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.serving.checks import findings
from service.config import settings_from_arguments
from service.logs import configure

log = logging.getLogger("auroraedge.service")

# Words in the place of the first option: what administrators do beside running the server.
_COMMANDS = ("config", "token")


def _administer() -> int:
    import typer

    from auroraedge.serving.commands import app as config_app
    from service.token_commands import app as token_app

    app = typer.Typer(name="python -m service", pretty_exceptions_enable=False, add_completion=False)
    app.add_typer(config_app, name="config")
    app.add_typer(token_app, name="token")
    app(prog_name="python -m service")
    return 0


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
        return _administer()
    try:
        settings = settings_from_arguments()
        config = settings.config
        configure(config.log_level, config.log_format)
        for finding in findings(settings):
            if finding.level != "ok":
                # Said early and all together; what cannot be used at all stops the start where it is needed.
                log.warning("%s: %s", finding.setting, finding.text)
        # Here, so that --help and a wrong option answer at once: this loads gRPC and the engine's runtime.
        from service.memory import keep_large_blocks
        from service.server import InspectionServer, run_until_stopped

        keep_large_blocks()

        async def serve() -> None:
            await run_until_stopped(InspectionServer(config))

        asyncio.run(serve())
    except AuroraEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidRequestError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
