"""Engine packages on their way: into one file, out of it, and what two of them differ in."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from auroraedge.errors import EngineDamagedError, EngineError, EngineNotFoundError
from auroraedge.manifest import MANIFEST_FILE, EngineManifest, adopt_package, load_manifest, verify_package

SUFFIX = ".engine.tar"
# A package that unpacks to more than this is none.
MOST_BYTES = 64 * 1024**3
_PARTS = ("model_id", "weights_sha256", "target", "compute_capability", "compiler", "precision", "decoder")


def pack(folder: Path, file: Path) -> EngineManifest:
    """Writes a verified package into one tar file, the same bytes for the same package; the old file stays until then.

    Weights and plans do not compress, so nothing is compressed. Raises what `verify_package` raises, and EngineError
    when the file exists and is something else.
    """
    manifest = verify_package(folder)
    if file.exists() and not _is_pack(file):
        raise EngineError(f"{file} exists and is no packed engine.", field="file", remedy="Name another file.")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name in (MANIFEST_FILE, *sorted(manifest.files)):
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = (folder / name).stat().st_size, 0o644
                    with (folder / name).open("rb") as content:
                        archive.addfile(entry, content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return manifest


def unpack(file: Path, folder: Path) -> EngineManifest:
    """Unpacks and verifies; the folder gets the whole package or stays as it was.

    Raises EngineNotFoundError, EngineDamagedError for a file that is cut off, changed or no packed engine, and
    EngineError when the folder holds something else.
    """
    if not file.is_file():
        raise EngineNotFoundError(f"There is no file {file}.", field="file", remedy="Name a packed engine.")
    with adopt_package(folder) as draft:
        try:
            with tarfile.open(file, mode="r:") as archive:
                entries = archive.getmembers()
                _check(entries, file)
                archive.extractall(draft, members=entries, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise EngineDamagedError(
                f"{file} cannot be unpacked: {error}.", field="file", remedy="Copy the file again, or pack it again."
            ) from error
    return load_manifest(folder)


def _check(entries: list[tarfile.TarInfo], file: Path) -> None:
    names = [entry.name for entry in entries]
    odd = [e.name for e in entries if not e.isfile() or ".." in PurePosixPath(e.name).parts or e.name.startswith("/")]
    if MANIFEST_FILE not in names or odd or len(set(names)) < len(names):
        what = f" (it holds {odd[0]})" if odd else ""
        raise EngineDamagedError(f"{file} is no packed engine{what}.", field="file", remedy="Pack the engine again.")
    if sum(entry.size for entry in entries) > MOST_BYTES:
        raise EngineDamagedError(f"{file} unpacks to more than 64 GiB.", field="file", remedy="Pack the engine again.")


def _is_pack(file: Path) -> bool:
    try:
        with tarfile.open(file, mode="r:") as archive:
            first = archive.next()
            return first is not None and first.name == MANIFEST_FILE
    except (tarfile.TarError, OSError):
        return False


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that two packages differ in; None where one of them has no such thing."""

    what: str
    first: str | None
    second: str | None


def diff(first: Path, second: Path) -> list[Difference]:
    """What differs between two packages, the meaning before the files. Raises what `verify_package` raises."""
    a, b = verify_package(first), verify_package(second)
    found: list[Difference] = []

    def compare(what: str, x: Any, y: Any) -> None:
        if x != y:
            found.append(Difference(what=what, first=_text(x), second=_text(y)))

    for part in _PARTS:
        compare(part, getattr(a, part), getattr(b, part))
    for name in sorted({*a.graphs, *b.graphs}):
        x, y = a.graphs.get(name), b.graphs.get(name)
        compare(f"{name}: inputs", x and _tensors(x.inputs), y and _tensors(y.inputs))
        compare(f"{name}: outputs", x and _tensors(x.outputs), y and _tensors(y.outputs))
        compare(f"{name}: profiles", x and x.profiles, y and y.profiles)
    compare("calibration_set_sha256", a.calibration_set_sha256, b.calibration_set_sha256)
    for stage in sorted({*a.parity, *b.parity}):
        compare(f"parity {stage}", a.parity.get(stage), b.parity.get(stage))
    for name in sorted({*a.files, *b.files}):
        compare(f"file {name}", a.files.get(name), b.files.get(name))
    return found


def _tensors(specs: Any) -> str:
    plain = [spec for spec in specs if not spec.name.startswith(("past.", "present."))]
    text = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in plain)
    return f"{text}, {len(specs) - len(plain)} key/value tensors" if len(plain) < len(specs) else text


def _text(value: Any) -> str | None:
    if value is None or value == {}:
        return None
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.5g}" if isinstance(value, float) else str(value)
