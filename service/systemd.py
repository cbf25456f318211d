"""sd_notify: tells systemd that the server is ready, stops, and is alive. Without systemd nothing happens."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

log = logging.getLogger("auroraedge.service")


def notify(*lines: str) -> bool:
    """Sends e.g. "READY=1" to the service manager; False where there is none that listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("The service manager cannot be told %s: %s", lines[0], error)
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Half of the time after which systemd takes silence for a hang; None where it does not watch this process."""
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (process and process != str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000


async def feed_watchdog(alive: Callable[[], bool]) -> None:
    """Runs in the server's own loop, so that a loop that hangs is seen too. Ends at once without a watchdog."""
    interval = watchdog_interval_s()
    while interval is not None:
        if alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)
