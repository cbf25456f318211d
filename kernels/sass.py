"""What a compiled kernel really is: registers, spills and instructions, from the CUDA tools in Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# HMMA, IMMA, QMMA: mma.sync; the same with G: wgmma; UTC...MMA: tcgen05. LDL and STL: local memory, that is spills.
_INSTRUCTION = re.compile(r"\b(UTC[A-Z]+MMA|[HIQO]G?MMA|LDL|STL)\b")


class PackError(Exception):
    """A kernel that cannot be packed, or that breaks one of the pack's promises."""


def tool(name: str) -> Path:
    """ptxas, ptxas-blackwell, cuobjdump or nvdisasm of the installed Triton."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise PackError(f"Triton {triton.__version__} bundles no {name}.")
    return path


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise PackError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of one kernel. Bytes, but for registers (32 bit, a thread) and instructions (counts in the SASS)."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    instructions: dict[str, int]


def assemble(ptx: str, sm: int) -> tuple[bytes, Resources]:
    """The cubin of a PTX text, and what it uses. Raises PackError."""
    architecture = f"sm_{sm}a" if sm >= 90 else f"sm_{sm}"
    program = tool("ptxas-blackwell" if sm >= 90 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8")
        report = _run(program, "-v", f"--gpu-name={architecture}", source, "-o", binary)
        cubin = binary.read_bytes()
        sass = _run(tool("nvdisasm"), "-c", binary)
    used = re.search(r"Used (\d+) registers", report)
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if used is None or frame is None:
        raise PackError(f"ptxas reports no resources: {report[-500:]}")
    return cubin, Resources(
        registers=int(used[1]),
        stack=int(frame[1]),
        spill_stores=int(frame[2]),
        spill_loads=int(frame[3]),
        instructions=dict(sorted(Counter(_INSTRUCTION.findall(sass)).items())),
    )


def entry_parameters(ptx: str) -> list[str]:
    """Names of the parameters of the one entry of a PTX text."""
    return re.findall(r"\.param\s[^,\n)]*?(\w+)\s*(?=[,\n)])", _entry(ptx)[1])


def _entry(ptx: str) -> re.Match[str]:
    found = re.search(r"\.visible \.entry \w+\(\n((?:.*\n)*?)\)", ptx)
    if found is None:
        raise PackError("The PTX has no entry.")
    return found


def drop_scratch_parameters(ptx: str, arguments: int) -> str:
    """The PTX with `arguments` parameters.

    Triton appends pointers to scratch memory, which no launcher but its own passes. They may be dropped when nothing
    reads them, which is checked. Raises PackError.
    """
    found = _entry(ptx)
    lines = found[1].rstrip("\n").split(",\n")
    surplus = lines[arguments:]
    body = ptx[found.end() :]
    for line in surplus:
        name = line.split()[-1]
        if re.search(rf"\b{name}\b", body):
            raise PackError(f"The kernel uses its scratch parameter {name}.")
    kept = ",\n".join(lines[:arguments]) + "\n"
    return ptx[: found.start(1)] + kept + ptx[found.end(1) :]
