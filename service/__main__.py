"""`python -m service`: parse, configure, serve, and map errors to exit codes (2: the options, 1: anything else)."""

from __future__ import annotations

import asyncio
import logging
import sys

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from service.config import config_from_arguments


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = config_from_arguments()
        # Here, so that --help and a wrong option answer at once: this loads gRPC and the engine's runtime.
        from service.server import InspectionServer, run_until_stopped

        async def serve() -> None:
            await run_until_stopped(InspectionServer(config))

        asyncio.run(serve())
    except AuroraEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidRequestError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
