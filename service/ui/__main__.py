"""`python -m service.ui`: parse, open the store, serve, and map errors to exit codes (2: the options, 1: others)."""

from __future__ import annotations

import logging
import sys

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from service.ui.config import config_from_arguments


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = config_from_arguments()
        # Here, so that --help and a wrong option answer at once.
        from auroraedge.store import Store
        from service.ui.serving import UiServer
        from service.ui.token_file import open_tokens

        tokens = open_tokens(config.tokens)
        with Store.open(config.store, images=config.images, create=False) as store:
            server = UiServer(config, store, tokens)
            print(f"The operator's page is on {server.url}", flush=True)
            server.run()
    except AuroraEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidRequestError) else 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
