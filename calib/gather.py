"""Gathers calibration frames, without duplicates, from every recipe and verdict alike.

    python -m calib.gather --source DIR|VIDEO|PACK|STORE [--source ...] [--recipe ID] --out SET
    python -m calib.gather --source /var/lib/auroraedge/store --exclude PACK --out SET
    python engine_build/build.py --target orin --calibration SET

Frames that are the same, pixel for pixel, or nearly so (perceptual hash, within one recipe and verdict) are taken once.
Of what is left, every stratum (recipe and verdict) gives as many as any other, as far as it has them. Frames of splits
other than train are never taken; --exclude also keeps out everything that equals or resembles such a frame of a pack,
which may have come back as traffic. The set, with the list of what was left out, appears complete or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from auroraedge.errors import AuroraEdgeError, CalibrationError
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.runtime import InspectionJob, Inspector
from calib.gather_sources import UNKNOWN, Candidate, Found, Refused, held_out, open_source, redacted
from calib.gathered import FILE, FRAMES, GatheredFrame, GatheredManifest, KnownDefect, LeftOut, hash_of, is_gathered

MOST = 256
# Bits of 255 in which two frames of one recipe and verdict may differ and still count as one.
DISTANCE = 20
# Frames that are looked at; a store of years of traffic has more than any calibration needs.
MOST_SEEN = 20_000
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"RIFF": ".webp", b"II*\0": ".tif"}


def likeness(pixels: np.ndarray) -> np.ndarray:
    """Perceptual hash of uint8 RGB [H, W, 3]: signs of the 255 lowest frequencies around their median, uint8 [32].

    A DCT hash as in C. Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010), with
    16 x 16 frequencies, not 8 x 8: parts of one kind look alike to fewer.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    frequencies = cv2.dct(small)[:16, :16].ravel()[1:]
    return np.packbits(frequencies > np.median(frequencies))


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of the decoded picture: the same for a PNG and a BMP of it."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


class _Known:
    """Hashes of one stratum."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows = np.zeros((0, 32), dtype=np.uint8)

    def like(self, row: np.ndarray, distance: int) -> str:
        """The frame that the given one resembles, or ""."""
        if not self._names:
            return ""
        apart = np.bitwise_count(self._rows[: len(self._names)] ^ row).sum(axis=1)
        nearest = int(apart.argmin())
        return self._names[nearest] if int(apart[nearest]) <= distance else ""

    def add(self, name: str, row: np.ndarray) -> None:
        if len(self._names) == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros((max(64, len(self._rows)), 32), dtype=np.uint8)])
        self._rows[len(self._names)] = row
        self._names.append(name)


@dataclass
class _Sieve:
    """What has been seen: frames that are in, and why the others are not."""

    folder: Path
    distance: int
    inspector: Inspector | None
    frames: list[GatheredFrame] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    exact: dict[str, str] = field(default_factory=dict)  # of all frames in, by pixels: their origin
    forbidden: dict[str, str] = field(default_factory=dict)
    forbidden_alike: _Known = field(default_factory=_Known)
    strata: dict[str, _Known] = field(default_factory=dict)

    def exclude(self, pack: Path) -> None:
        for item in held_out(pack):
            pixels = item.load()
            origin = f"{item.set_name}/{item.file} ({item.split})"
            self.forbidden[pixels_sha256(pixels)] = origin
            self.forbidden_alike.add(origin, likeness(pixels))

    def take(self, found: Found) -> None:
        if isinstance(found, Refused):
            self.left_out.append(LeftOut(origin=found.origin, reason=found.reason))
            return
        try:
            pixels = decode_image(found.content).pixels
            found = self._labelled(found)
        except AuroraEdgeError as error:
            self.left_out.append(LeftOut(origin=found.origin, reason=f"not usable ({error.reason})"))
            return
        stratum = f"{found.recipe.id} {found.verdict}"
        self.seen[stratum] += 1
        exact, alike = pixels_sha256(pixels), likeness(pixels)
        known = self.strata.setdefault(stratum, _Known())
        for reason, twin in (
            ("a frame of a held-out split", self.forbidden.get(exact, "")),
            ("like a frame of a held-out split", self.forbidden_alike.like(alike, self.distance)),
            ("the same picture", self.exact.get(exact, "")),
            ("nearly the same picture", known.like(alike, self.distance)),
        ):
            if twin:
                self.left_out.append(LeftOut(origin=found.origin, reason=reason, like=twin))
                return
        self.exact[exact] = found.origin
        known.add(found.origin, alike)
        self.recipes[found.recipe.sha256] = found.recipe
        golden = found.reference
        self.frames.append(
            GatheredFrame(
                file=self._write(found.content),
                sha256=hashlib.sha256(found.content).hexdigest(),
                pixels_sha256=exact,
                likeness=alike.tobytes().hex(),
                reference=None if golden is None else self._write(golden),
                reference_sha256=None if golden is None else hashlib.sha256(golden).hexdigest(),
                width=int(pixels.shape[1]),
                height=int(pixels.shape[0]),
                recipe_sha256=found.recipe.sha256,
                recipe_id=found.recipe.id,
                verdict=found.verdict,
                image_class=found.image_class,
                defects=found.defects,
                origin=found.origin,
            )
        )

    def _labelled(self, found: Candidate) -> Candidate:
        """With an engine's opinion where nobody else has one."""
        if self.inspector is None or found.verdict != UNKNOWN:
            return found
        job = InspectionJob(image=found.content, recipe=found.recipe, reference=found.reference)
        result = self.inspector.inspect_batch([job])[0]
        if isinstance(result, AuroraEdgeError):
            raise result
        defects = tuple(
            KnownDefect(label=d.label, box=(d.box.x1, d.box.y1, d.box.x2, d.box.y2))
            for d in result.defects
            if d.box is not None
        )
        return Candidate(
            origin=found.origin,
            content=found.content,
            reference=found.reference,
            recipe=found.recipe,
            verdict=result.verdict.value,
            image_class=result.predicted_class if found.recipe.task == "classify" else None,
            defects=defects,
        )

    def _write(self, content: bytes) -> str:
        suffix = next((s for head, s in _SUFFIXES.items() if content.startswith(head)), ".img")
        name = f"{FRAMES}/{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        (self.folder / name).write_bytes(content)
        return name


def choose(frames: Sequence[GatheredFrame], most: int, seed: int) -> list[GatheredFrame]:
    """At most `most` frames: every stratum gives as many as any other, as far as it has them, chosen by chance.

    The chance is of the pixels and the seed, not of the order in which the frames were found.
    """
    strata: dict[str, list[GatheredFrame]] = {}
    for frame in frames:
        strata.setdefault(frame.stratum, []).append(frame)
    for members in strata.values():
        members.sort(key=lambda frame: hashlib.sha256(f"{seed} {frame.pixels_sha256}".encode()).hexdigest())
    chosen: list[GatheredFrame] = []
    deepest = max((len(members) for members in strata.values()), default=0)
    for turn in range(deepest):
        for name in sorted(strata):
            if turn < len(strata[name]) and len(chosen) < most:
                chosen.append(strata[name][turn])
    return chosen


def gather(
    sources: Sequence[str],
    out: Path,
    *,
    recipe: Recipe | None = None,
    most: int = MOST,
    distance: int = DISTANCE,
    every: int = 1,
    exclude: Sequence[Path] = (),
    inspector: Inspector | None = None,
    seed: int = 2026,
    most_seen: int = MOST_SEEN,
    console: Console | None = None,
) -> GatheredManifest:
    """Writes the set to `out`, a new folder or one that holds a set. Raises AuroraEdgeError; then nothing is changed.

    recipe: of frames that do not say theirs. most: frames of the set. distance: bits in which two frames may differ and
    count as one; 0 drops only equals. every: of a video, one frame in so many. exclude: packs whose held-out splits
    must not come back. inspector: gives frames without a verdict one.
    """
    if out.exists() and not is_gathered(out) and not (out.is_dir() and not any(out.iterdir())):
        raise CalibrationError(f"{out} exists and is no gathered set.", field="--out", remedy="Name a new folder.")
    if most < 1 or every < 1 or not 0 <= distance <= 255:
        raise CalibrationError("most and every must be at least 1, distance 0 to 255.", field="most")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / FRAMES).mkdir(parents=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        sieve = _Sieve(folder=draft, distance=distance, inspector=inspector)
        with Progress(*columns, console=console or Console(stderr=True), transient=True) as progress:
            task = progress.add_task("held-out splits", total=None)
            for pack in exclude:
                sieve.exclude(pack)
            for source in sources:
                for number, found in enumerate(_some(open_source(source, recipe, every=every), most_seen), start=1):
                    sieve.take(found)
                    progress.update(task, description=f"{redacted(source)}: {number} seen, {len(sieve.frames)} taken")
        if not sieve.frames:
            raise CalibrationError(
                "There is no usable frame.", field="source", remedy=f"Left out: {_reasons(sieve.left_out)}."
            )
        manifest = _publish(sieve, draft, out, sources, exclude, most, seed)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _some(found: Iterator[Found], most: int) -> Iterator[Found]:
    candidates = 0
    for item in found:
        if isinstance(item, Candidate):
            candidates += 1
            if candidates > most:
                return
        yield item


def _publish(
    sieve: _Sieve, draft: Path, out: Path, sources: Sequence[str], exclude: Sequence[Path], most: int, seed: int
) -> GatheredManifest:
    chosen = choose(sieve.frames, most, seed)
    kept = {frame.pixels_sha256 for frame in chosen}
    surplus = [
        LeftOut(origin=frame.origin, reason="more than are needed of its kind")
        for frame in sieve.frames
        if frame.pixels_sha256 not in kept
    ]
    files = {name for frame in chosen for name in (frame.file, frame.reference) if name is not None}
    for path in (draft / FRAMES).iterdir():
        if f"{FRAMES}/{path.name}" not in files:
            path.unlink()
    manifest = GatheredManifest(
        created_at=datetime.now(UTC),
        sources=tuple(redacted(source) for source in sources),
        excluded=tuple(str(pack) for pack in exclude),
        seed=seed,
        distance=sieve.distance,
        most=most,
        seen=dict(sorted(sieve.seen.items())),
        frames=tuple(chosen),
        left_out=(*sieve.left_out, *surplus),
        recipes={frame.recipe_sha256: sieve.recipes[frame.recipe_sha256] for frame in chosen},
        sha256=hash_of(tuple(chosen)),
    )
    (draft / FILE).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if out.exists():
        aside = out.with_name(f".{out.name}.before")
        shutil.rmtree(aside, ignore_errors=True)
        out.rename(aside)
        draft.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        draft.rename(out)
    return manifest


def _reasons(left_out: Iterable[LeftOut]) -> str:
    counts = Counter(item.reason for item in left_out)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing"


def table_of(manifest: GatheredManifest) -> Table:
    table = Table(title=f"{len(manifest.frames)} calibration frames, set {manifest.sha256[:12]}")
    table.caption = f"Left out: {_reasons(manifest.left_out)}."
    for column in ("recipe", "verdict", "seen", "taken"):
        table.add_column(column, justify="right" if column in ("seen", "taken") else "left")
    for stratum, seen in manifest.seen.items():
        recipe_id, _, verdict = stratum.rpartition(" ")
        table.add_row(recipe_id, verdict, str(seen), str(manifest.taken.get(stratum, 0)))
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, help="folder, video, pack, or store; may repeat")
    parser.add_argument("--out", type=Path, required=True, help="folder of the set; an earlier set is replaced")
    parser.add_argument("--recipe", help="of frames that do not say theirs: an id or a file")
    parser.add_argument("--most", type=int, default=MOST, help=f"frames of the set ({MOST})")
    parser.add_argument(
        "--distance", type=int, default=DISTANCE, help=f"bits of 255 that may differ in near duplicates ({DISTANCE})"
    )
    parser.add_argument("--every", type=int, default=1, help="of a video, one frame in so many (1)")
    parser.add_argument("--exclude", type=Path, action="append", default=[], metavar="PACK", help="its held-out splits")
    parser.add_argument(
        "--inspect", nargs="?", const="", metavar="ENGINE", help="an engine gives frames without a verdict one"
    )
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args(arguments)
    console = Console()
    try:
        inspector = None if options.inspect is None else Inspector.open(options.inspect or None)
        manifest = gather(
            options.source,
            options.out,
            recipe=None if options.recipe is None else load_recipe(options.recipe),
            most=options.most,
            distance=options.distance,
            every=options.every,
            exclude=options.exclude,
            inspector=inspector,
            seed=options.seed,
            console=console,
        )
    except AuroraEdgeError as error:
        console.print(f"error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was changed.", style="yellow")
        return 130
    console.print(table_of(manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
