"""Engine packages on disk: the manifest, publishing one atomically, verifying one before it is used.

A package is a folder. `manifest.json` names every other file in it with its SHA-256; a file that is missing, changed or
not listed makes the package unusable, with the command that builds it again.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from auroraedge.config import PRESETS
from auroraedge.errors import EngineDamagedError, EngineError, EngineIncompatibleError, EngineNotFoundError

SCHEMA_VERSION: Final = 1
MANIFEST_FILE = "manifest.json"
# In every package, besides the graphs; calibration.json is optional.
REQUIRED_FILES = ("embeddings.safetensors", "tokenizer.json", "processor.json")
# Older leftovers of builds that were killed are removed by the next build.
_STALE_SECONDS = 24 * 3600

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Shape = tuple[int | Name, ...]  # sizes; names for dynamic axes


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TensorSpec(_Model):
    """One input or output of a graph. dtype: numpy's name."""

    name: Name
    dtype: Name
    shape: Shape


class ShapeProfile(_Model):
    """Sizes that a compiled graph accepts for one input, and those that it is fastest for."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


class GraphSpec(_Model):
    """One compiled graph. profiles: by input name; empty where the compiler knows no such thing."""

    file: Name
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: dict[str, ShapeProfile] = Field(default_factory=dict)


class CompilerInfo(_Model):
    name: Name
    version: Name


class DecoderSpec(_Model):
    """What the host needs to run the key/value cache: past.{i}.key is [B, kv_heads, P, head_dim]."""

    layers: Count
    kv_heads: Count
    head_dim: Count
    hidden: Count
    vocab: Count


class KernelChoice(_Model):
    """How an engine computes an op that there is a kernel for: a plug-in, or the compiler's own layers and why.

    packs: SHA-256 of the PTX by variant, of the kernels that the compiler could choose from.
    """

    op: Name
    how: Literal["plugin", "plain"]
    reason: str = ""
    packs: dict[str, Sha256] = Field(default_factory=dict)


class EngineDescription(_Model):
    """What the builder of a package knows about it.

    precision: by graph, such as "fp32" or "int8-dynamic". parity: by stage, figures against the model it was built from
    (max_abs, cosine, task metrics). compute_capability: of the GPU that the graphs are compiled for, such as "8.9".
    decoder_checkpoints: by backend (tensorrt-llm, edge-llm), what the build kit held for it beside the graphs.
    """

    model_id: Name
    weights_sha256: Sha256
    target: Name
    compute_capability: Name | None = None
    compiler: CompilerInfo
    precision: dict[str, Name]
    graphs: dict[str, GraphSpec]
    decoder: DecoderSpec
    calibration_set_sha256: Sha256 | None = None
    parity: dict[str, dict[str, Figure]] = Field(default_factory=dict)
    kernels: tuple[KernelChoice, ...] = ()
    decoder_checkpoints: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _precision_of_every_graph(self) -> Self:
        if set(self.precision) != set(self.graphs):
            raise ValueError(f"precision names {sorted(self.precision)}, but the graphs are {sorted(self.graphs)}")
        return self


class EngineManifest(EngineDescription):
    """manifest.json. files: SHA-256 by path inside the package, forward slashes, the manifest itself left out."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created_at: AwareDatetime
    files: dict[str, Sha256]
    engine_sha256: Sha256

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.files:
            if not _is_safe(name):
                raise ValueError(f"files names {name!r}, which leaves the package or is the manifest")
        needed = [*REQUIRED_FILES, *(graph.file for graph in self.graphs.values())]
        absent = sorted(set(needed) - set(self.files))
        if absent:
            raise ValueError(f"files lacks {', '.join(absent)}")
        if self.engine_sha256 != engine_sha256(self.files):
            raise ValueError("engine_sha256 is not the hash of files")
        return self


def engine_sha256(files: Mapping[str, str]) -> str:
    """One hash for the content of a package: SHA-256 over the lines "HASH  NAME", sorted by name."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def build_command(target: str = "cpu", model: str = "nano") -> str:
    return f"python engine_build/build.py --target {target} --model {model}"


# --- reading ---------------------------------------------------------------------------------------------------------


def load_manifest(directory: Path | str) -> EngineManifest:
    """The manifest of a package; the files are not looked at (see `verify_package`).

    Raises EngineNotFoundError, EngineDamagedError (not valid), EngineIncompatibleError (another schema version).
    """
    directory = Path(directory)
    path = directory / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"{directory} has no {MANIFEST_FILE}" if directory.is_dir() else f"There is no folder {directory}"
        raise EngineNotFoundError(
            f"{what}, so it is no engine package.",
            field="engine",
            remedy=f"Name the folder of a package, or build one: `{build_command()}`.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON
        raise EngineDamagedError(f"{path} cannot be read: {error}.", field=MANIFEST_FILE) from error
    if not isinstance(content, dict):
        raise EngineDamagedError(f"{path} is not a JSON object.", field=MANIFEST_FILE)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise EngineIncompatibleError(
            f"{directory} has schema version {version!r}; this AuroraEdge reads version {SCHEMA_VERSION}.",
            field="schema_version",
            remedy=f"Build it again with this AuroraEdge: `{_command_from(content)}`.",
        )
    try:
        # JSON mode, because a list is a tuple there.
        return EngineManifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise EngineDamagedError(
            f"{path} is not valid: {_first(error)}.", field=MANIFEST_FILE, remedy=_rebuild(_command_from(content))
        ) from error


def verify_package(directory: Path | str) -> EngineManifest:
    """The manifest of a package whose every file is there, listed and unchanged.

    Raises what `load_manifest` raises, and EngineDamagedError naming all missing, unlisted and damaged files.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    present = _files_of(directory)
    root = Path(os.path.realpath(directory))
    faults = [f"{name} is missing" for name in sorted(set(manifest.files) - present)]
    faults += [f"{name} is not listed" for name in sorted(present - set(manifest.files))]
    for name in sorted(present & set(manifest.files)):
        path = directory / name
        if not Path(os.path.realpath(path)).is_relative_to(root):
            faults.append(f"{name} is a link that leaves the package")
        elif not path.is_file():
            faults.append(f"{name} is not a file")
        elif _sha256(path) != manifest.files[name]:
            faults.append(f"{name} is damaged")
    if faults:
        command = build_command(manifest.target, _preset(manifest.model_id))
        raise EngineDamagedError(
            f"The engine package {directory} is not what was built: {'; '.join(faults)}.",
            field="engine",
            remedy=_rebuild(command),
        )
    return manifest


def check_target(
    manifest: EngineManifest,
    target: str,
    *,
    compute_capability: str | None = None,
    compiler_version: str | None = None,
    weights_sha256: str | None = None,
) -> None:
    """Raises EngineIncompatibleError unless the package is built for `target` and, if given, the GPU, the compiler and
    from the weights."""
    wanted = (
        ("target", manifest.target, target),
        ("compute_capability", manifest.compute_capability, compute_capability),
        ("compiler.version", manifest.compiler.version, compiler_version),
        ("weights_sha256", manifest.weights_sha256, weights_sha256),
    )
    for field, built, here in wanted:
        if here is not None and built != here:
            command = build_command(target, _preset(manifest.model_id))
            raise EngineIncompatibleError(
                f"The engine package is built for {field} {built}, but here it is {here}.",
                field=field,
                remedy=f"Build one for this machine: `{command}`.",
            )


# --- publishing ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class PackageDraft:
    """A package in the making. Write the files into `path`, set `description`; `manifest` is there after success."""

    path: Path
    description: EngineDescription | None = None
    manifest: EngineManifest | None = None


@contextmanager
def publish_package(destination: Path | str) -> Iterator[PackageDraft]:
    """Builds a package beside `destination` and puts it there in one step when the block ends well.

    with publish_package(folder) as draft:
        (draft.path / "vision.onnx").write_bytes(...)
        draft.description = EngineDescription(...)

    Hashes and manifest are written at the end, everything reaches the disk before the swap, and readers see the old
    package or the new one. After any exception, or if the process is killed, the old package is still there. Raises
    EngineError if the destination is something else than a package, or if the draft is incomplete.
    """
    with _building(destination) as folder:
        draft = PackageDraft(path=folder)
        yield draft
        draft.manifest = _seal(draft)


@contextmanager
def adopt_package(destination: Path | str) -> Iterator[Path]:
    """Puts a finished package, which the block writes into the given folder with its manifest, into place in one step.

    It is verified first. Raises what `verify_package` raises, and EngineError if the destination is something else.
    """
    with _building(destination) as folder:
        yield folder
        manifest = verify_package(folder)
        for item in (*(folder / name for name in manifest.files), folder / MANIFEST_FILE, folder):
            _sync(item)


@contextmanager
def _building(destination: Path | str) -> Iterator[Path]:
    """A folder beside `destination` that takes its place when the block ends well."""
    destination = Path(destination).resolve()
    if destination.exists() and not _is_replaceable(destination):
        raise EngineError(
            f"{destination} exists and is no engine package; it is left as it is.",
            field="destination",
            remedy="Name a new folder, or one that holds an engine package.",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    _recover(destination)
    folder = _sibling(destination, "building")
    folder.mkdir()
    try:
        yield folder
        _replace(folder, destination)
    finally:
        # After success, what lies here is the old package or nothing; otherwise it is the unfinished one.
        shutil.rmtree(folder, ignore_errors=True)


def _seal(draft: PackageDraft) -> EngineManifest:
    if draft.description is None:
        raise EngineError("The draft has no description.", field="description", remedy="Set draft.description.")
    names = sorted(_files_of(draft.path))
    links = [name for name in names if (draft.path / name).is_symlink()]
    if links:
        raise EngineError(f"The draft holds links: {', '.join(links)}.", field="files", remedy="Copy the files.")
    # As readable as the folder is: some libraries write files that only their owner may read.
    readable = stat.S_IMODE(draft.path.stat().st_mode) & 0o666
    for name in names:
        (draft.path / name).chmod(readable)
    files = {name: _sha256(draft.path / name) for name in names}
    try:
        manifest = EngineManifest(
            **{name: getattr(draft.description, name) for name in EngineDescription.model_fields},
            created_at=datetime.now(UTC),
            files=files,
            engine_sha256=engine_sha256(files),
        )
    except ValidationError as error:
        raise EngineError(
            f"The package is incomplete: {_first(error)}.", field="files", remedy="Write the missing files."
        ) from error
    path = draft.path / MANIFEST_FILE
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    folders = {draft.path / parent for name in files for parent in PurePosixPath(name).parents}
    for item in (*(draft.path / name for name in files), path, *folders):
        _sync(item)
    return manifest


def _sync(path: Path) -> None:
    """Has a file or folder reach the disk."""
    if os.name == "nt":
        if path.is_dir():  # Windows cannot open a folder, and NTFS journals its changes
            return
        flags = os.O_RDWR
    else:
        flags = os.O_RDONLY
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(built: Path, destination: Path) -> None:
    """Puts `built` at `destination`. An old package ends up at `built`, or is gone."""
    if not destination.exists():
        built.rename(destination)
    elif not _exchange(built, destination):
        # Two steps: a kill between them leaves the old package aside, and the next build puts it back.
        aside = _sibling(destination, "old")
        destination.rename(aside)
        try:
            built.rename(destination)
        except BaseException:
            aside.rename(destination)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(destination.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step (Linux renameat2, RENAME_EXCHANGE); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    at_cwd, rename_exchange = -100, 2
    return renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0


def _sibling(destination: Path, purpose: str) -> Path:
    return destination.with_name(f".{destination.name}.{purpose}-{uuid.uuid4().hex}")


def _recover(destination: Path) -> None:
    """Puts an old package back that a killed build left aside, and removes old leftovers."""
    aside = sorted(destination.parent.glob(f".{destination.name}.old-*"))
    if aside and not destination.exists():
        aside.pop().rename(destination)
    building = destination.parent.glob(f".{destination.name}.building-*")
    for path in (*aside, *building):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _is_replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / MANIFEST_FILE).is_file() or not any(path.iterdir()))


# --- helpers ---------------------------------------------------------------------------------------------------------


def _is_safe(name: str) -> bool:
    """A path that stays inside the package on every system, in its one spelling, and is not the manifest."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not set(name) & set("\\:\0") and name != MANIFEST_FILE


def _files_of(directory: Path) -> set[str]:
    """Everything in the package that is no folder, links included, except the manifest."""
    found = set()
    for folder, folders, names in os.walk(directory):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found |= {(Path(folder) / name).relative_to(directory).as_posix() for name in (*names, *links)}
    return found - {MANIFEST_FILE}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineDamagedError(f"{path} cannot be read: {error.strerror}.", field=path.name) from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _rebuild(command: str) -> str:
    return f"Build it again: `{command}`."


def _preset(model_id: str) -> str:
    """The preset that a model's name speaks of, such as nano in auroraedge-nano."""
    return next((name for name in PRESETS if name in model_id.lower().replace("_", "-").split("-")), "nano")


def _command_from(content: Mapping[str, Any]) -> str:
    """The build command for a manifest that is not valid; only plain names are taken from it."""
    target, model = content.get("target"), content.get("model_id")
    known = isinstance(target, str) and target.replace("-", "").replace("_", "").isalnum()
    return build_command(str(target) if known else "cpu", _preset(model if isinstance(model, str) else ""))
