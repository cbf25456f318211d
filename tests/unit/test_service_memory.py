"""What malloc is told holds in a real process: freed blocks of frame size stay, and more than the limit does not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_MEASURE = """
import ctypes, sys
from service.memory import keep_large_blocks
assert keep_large_blocks() is True
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
def take_and_free(count, size):
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
before = resident()
take_and_free(4, 15_000_000)
kept = resident() - before
take_and_free(30, 15_000_000)
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_blocks_of_frames_stay_and_more_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, after_many = map(int, done.stdout.split())
    assert kept > 40, "MiB of four freed frames that stayed"
    assert after_many < 300, "MiB that stayed of 430"
