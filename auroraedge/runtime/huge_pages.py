"""Weights in huge pages: a step of a large decoder reads all of them, and in pages of 4 KiB the processor spends a good
part of that time on finding the pages (measured: `python -m benchmarks.cpu_2b`)."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Graphs whose weights are smaller stay in the caches' reach; of nano nothing was gained.
LARGE_BYTES = 64_000_000
_LEAST_AREA = 4 * 2**20
# Linux 6.1 and newer: gathers an area into huge pages at once, also where they are not the default.
_MADV_COLLAPSE = 25
_AREA = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*(\[heap\])?\s*$")
# Of an area less full, huge pages would cost memory.
_LEAST_FILLED = 0.9


@contextmanager
def huge_pages(wanted: bool) -> Iterator[None]:
    """Moves large memory areas that the block has filled into huge pages; where the system cannot, nothing happens."""
    if not wanted or not sys.platform.startswith("linux"):
        yield
        return
    known = _filled_areas()
    yield
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in sorted(_filled_areas() - known):
        advise(start, end - start, _MADV_COLLAPSE)


def _filled_areas() -> set[tuple[int, int]]:
    try:
        return filled_areas(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return set()


def filled_areas(lines: Iterable[str]) -> set[tuple[int, int]]:
    """Start and end of a process's anonymous areas that are large and nearly all in memory; lines: its smaps."""
    found = set()
    area: tuple[int, int] | None = None
    for line in lines:
        if match := _AREA.match(line):
            area = int(match[1], 16), int(match[2], 16)
        elif line.startswith("Rss:") and area is not None:
            size = area[1] - area[0]
            if size >= _LEAST_AREA and int(line.split()[1]) * 1024 >= _LEAST_FILLED * size:
                found.add(area)
            area = None
        elif re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            area = None
    return found


def weight_bytes(graph: Path) -> int:
    """Size of an ONNX file and of the weights beside it; 0 where it cannot be read."""
    return sum(path.stat().st_size for path in (graph, graph.with_name(f"{graph.name}.data")) if path.is_file())
