"""What a measurement must record about where it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import numpy as np

PACKAGES = ("onnxruntime", "openvino", "numpy", "opencv-python-headless", "torch", "transformers", "tokenizers")
# What decides how fast a processor multiplies; its name alone may hide it in a virtual machine.
_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _cpu_flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    found = next((line for line in info.read_text(encoding="utf-8").splitlines() if line[:5] in ("flags", "Featu")), "")
    return [flag for flag in _FLAGS if flag in found.split()]


def memory_gb() -> float:
    """Installed memory in GB; 0 where it cannot be read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (OSError, ValueError):
        return 0.0


def _precedence() -> str:
    """Niceness of this process and, where Linux groups sessions, of its group: 'nice 0, group nice -10'."""
    group = Path("/proc/self/autogroup")
    found = f"nice {os.nice(0)}" if hasattr(os, "nice") else ""
    if group.is_file():
        found += f", group {group.read_text(encoding='ascii').strip().partition(' ')[2]}"
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, object]:
    """Date, commit, processor, cores, load and package versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _command("git", "rev-parse", "HEAD"),
        "dirty": bool(_command("git", "status", "--porcelain")),
        "cpu": _cpu(),
        "cpu_flags": _cpu_flags(),
        "memory_gb": round(memory_gb(), 1),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "precedence": _precedence(),
        "python": platform.python_version(),
        "packages": _versions(),
    }


def percentiles(samples_ms: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the least of samples in milliseconds."""
    p50, p95, p99 = np.percentile(samples_ms, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "min": float(min(samples_ms))}


def peak_rss_mb() -> float:
    """Resident memory of this process in MB (Linux), 0 where it cannot be read."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0
