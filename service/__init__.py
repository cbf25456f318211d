"""The inspection server: gRPC in front, one batching worker behind. Run it with `python -m service`."""

import time

# The first line of the package that runs: what the ready line calls the start.
STARTED_AT = time.monotonic()
