"""A folder of generated sample parts: something to try the product on without any photograph.

    OUT/images/part_0001.png        the parts
    OUT/references/part_0001.png    the golden samples of the boards
    OUT/annotations.jsonl           the truth, in the format of data.pack (split "test")
    OUT/manifest.csv                image,reference,recipe,part_id: what `auroraedge report` reads

File names say nothing of the class. The folder appears complete or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from auroraedge.data.synthetic import (
    GROUND_LABELS,
    ROLLED_LABELS,
    SyntheticPart,
    generate_board,
    generate_ground_surface,
    generate_rolled_surface,
)
from auroraedge.errors import DatasetError, InvalidRequestError

MANIFEST_COLUMNS = ("image", "reference", "recipe", "part_id")
_BOARD_GOOD_SHARE = 0.25

Draw = Callable[[np.random.Generator], SyntheticPart]


def write_samples(out_dir: Path | str, seed: int = 0, n_per_kind: int = 12) -> list[Path]:
    """Writes n_per_kind parts for each of the recipes pcb, magnetic_tile and steel_strip; returns the image paths.

    The same seed and number give the same pixels. Labels take turns, so that few parts show many kinds.
    Raises InvalidRequestError for a bad number, DatasetError when `out_dir` is not empty or cannot be written.
    """
    if n_per_kind < 1:
        raise InvalidRequestError(f"{n_per_kind} parts cannot be drawn.", field="n_per_kind", remedy="Use 1 or more.")
    if seed < 0:
        raise InvalidRequestError(f"{seed} is no seed.", field="seed", remedy="Use 0 or more.")
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not an empty folder.", field="out_dir", remedy="Give a new folder.")
    fresh: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        names = _write_into(fresh, seed, n_per_kind)
        fresh.chmod(0o755)  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        fresh.replace(out)
    except OSError as error:
        raise DatasetError(
            f"The samples cannot be written to {out} ({error.strerror}).", field="out_dir", remedy="Free the folder."
        ) from error
    finally:
        if fresh is not None and fresh.exists():
            shutil.rmtree(fresh, ignore_errors=True)
    return [out / name for name in names]


def _write_into(folder: Path, seed: int, n_per_kind: int) -> list[str]:
    (folder / "images").mkdir()
    (folder / "references").mkdir()
    annotations, rows, names = [], [], []
    draws = _plan(seed, n_per_kind)
    for number, (recipe, rng, draw) in enumerate(draws, start=1):
        part, part_id = draw(rng), f"part_{number:0{max(4, len(str(len(draws))))}d}"
        image, reference = f"images/{part_id}.png", None
        _write_png(folder / image, part.image)
        if part.reference is not None:
            reference = f"references/{part_id}.png"
            _write_png(folder / reference, part.reference)
        annotations.append(_annotation(part, image, reference, recipe, part_id))
        rows.append((image, reference or "", recipe, part_id))
        names.append(image)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in annotations)
    (folder / "annotations.jsonl").write_text(text, encoding="utf-8")
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([MANIFEST_COLUMNS, *rows])
    (folder / "manifest.csv").write_text(table.getvalue(), encoding="utf-8")
    return names


def _plan(seed: int, n_per_kind: int) -> list[tuple[str, np.random.Generator, Draw]]:
    """Recipe, random stream and generator of each part, in a shuffled order: the number tells nothing of the label."""
    order = np.random.default_rng([seed, 0])
    tile_labels = [label for defect in GROUND_LABELS for label in ("ok", defect)]
    good = max(1, round(_BOARD_GOOD_SHARE * n_per_kind)) if n_per_kind > 1 else 0
    parts: list[tuple[str, np.random.Generator, Draw]] = []
    for i in range(n_per_kind):
        tile = tile_labels[i % len(tile_labels)]
        # The recipe for strips names the class of a defective strip; it has no word for a good one.
        strip = ROLLED_LABELS[i % len(ROLLED_LABELS)]
        parts.append(("pcb", np.random.default_rng([seed, 1, i]), _board(i >= good)))
        parts.append(("magnetic_tile", np.random.default_rng([seed, 2, i]), _labelled(generate_ground_surface, tile)))
        parts.append(("steel_strip", np.random.default_rng([seed, 3, i]), _labelled(generate_rolled_surface, strip)))
    return [parts[int(k)] for k in order.permutation(len(parts))]


def _board(defective: bool) -> Draw:
    return lambda rng: generate_board(rng, n_defects=int(rng.integers(1, 13)) if defective else 0)


def _labelled(generate: Callable[[np.random.Generator, str], SyntheticPart], label: str) -> Draw:
    return lambda rng: generate(rng, label)


def _annotation(part: SyntheticPart, image: str, reference: str | None, recipe: str, part_id: str) -> dict[str, Any]:
    height, width = part.image.shape[:2]
    return {
        "file": image,
        "reference": reference,
        "width": width,
        "height": height,
        "split": "test",
        "group": part_id,
        "image_label": part.image_label,
        "recipe": recipe,
        "objects": [{"label": label, "bbox": list(box)} for label, box in part.objects],
    }


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W] or RGB [H, W, 3] as PNG; a picture of only black and white takes one bit a pixel."""
    binary = pixels.ndim == 2 and bool(np.isin(pixels, (0, 255)).all())
    options = [cv2.IMWRITE_PNG_BILEVEL, 1] if binary else []
    done, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1], options)
    assert done
    path.write_bytes(data.tobytes())
