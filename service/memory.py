"""How this process keeps its memory."""

from __future__ import annotations

import ctypes
import gc
import logging

log = logging.getLogger("auroraedge.service")

# glibc's mallopt; the threshold cannot be larger than 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 32 * 1024 * 1024
_TRIM_THRESHOLD = 256 * 1024 * 1024


def keep_large_blocks() -> bool:
    """Lets malloc keep freed blocks of frame size for the next frame instead of giving them back to the kernel.

    Every message with raw pixels takes and frees several blocks of their size; fetched from the kernel each time, their
    pages cost more than everything else about the message (benchmarks/intake.py). Up to 256 MiB stay with the process.
    False where malloc is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))
    if not done:
        log.info("malloc cannot be told to keep large blocks.")
    return done


def settle() -> None:
    """Takes everything that start-up made out of the reach of Python's cycle collector.

    A full collection visits every object there is, and no call is answered meanwhile: with the modules, schemas and
    recipes of this process that is 0.1 s and more, for objects that live until it ends. What calls make is collected
    as before.
    """
    gc.collect()
    gc.freeze()
