"""Perturbations, the boxes under them, exposure, and `auroraedge bench robustness` on a set made here."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from auroraedge.errors import InvalidRequestError
from auroraedge.evaluate.perturb import AS_TAKEN, PERTURBATIONS, moved_box, perturbed_pixels
from auroraedge.evaluate.predictor import make_result
from auroraedge.evaluate.robustness import measure_robustness
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.recipe import load_recipe
from auroraedge.runtime.frames import MOST_EXPOSURE, InspectionJob, exposure_table, prepare


def _scene(seed: int, box: tuple[int, int, int, int] | None) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(90, 110, size=(120, 160), dtype=np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = 230
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_changes_the_picture_and_is_the_same_each_time(name: str) -> None:
    pixels = _scene(0, (40, 30, 60, 50))
    before = pixels.copy()
    once, twice = (perturbed_pixels(pixels, "part", PERTURBATIONS[name]) for _ in range(2))
    assert once.shape == pixels.shape and once.dtype == np.uint8
    assert (once == twice).all() and (pixels == before).all()
    assert (once != pixels).mean() > 0.05
    difference = once.astype(float).mean() - pixels.astype(float).mean()
    assert difference == pytest.approx({"brighter by 20": 20, "darker by 20": -20}.get(name, difference), abs=1.5)


@pytest.mark.parametrize("name", [name for name, each in PERTURBATIONS.items() if each.place])
def test_boxes_move_with_the_part(name: str) -> None:
    change = PERTURBATIONS[name]
    assert change.place is not None
    box = (110, 20, 130, 34)
    after = perturbed_pixels(_scene(1, box), "part", change)[..., 0] > 200
    rows, columns = np.nonzero(after)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert moved_box(box, change.place(120, 160), 120, 160) == pytest.approx(seen, abs=1.6)


def test_a_box_that_leaves_the_frame_is_cut() -> None:
    change = PERTURBATIONS["moved by (3, 2) px"]
    assert change.place is not None
    assert moved_box((150, 110, 160, 120), change.place(120, 160), 120, 160) == pytest.approx((153, 112, 160, 120))


# -- exposure ----------------------------------------------------------------------------------------------------------


def test_exposure_makes_the_lamp_s_brightness_invisible() -> None:
    recipe, limits = load_recipe("magnetic_tile"), ImageLimits()
    dim = _scene(2, (20, 20, 50, 60))
    bright = np.minimum(np.rint(dim * 1.1), 255).astype(np.uint8)
    seen = {
        exposure: [
            prepare(InspectionJob(image=image, recipe=recipe), limits, exposure=exposure).views.patches.astype(int)
            for image in (dim, bright)
        ]
        for exposure in (None, 90.0)
    }
    assert np.abs(seen[None][0] - seen[None][1]).mean() > 5
    assert np.abs(seen[90.0][0] - seen[90.0][1]).mean() < 1
    assert seen[90.0][0].mean() == pytest.approx(90, abs=1)


def test_exposure_leaves_frames_beside_a_golden_sample_alone_and_the_contrast_as_it_was() -> None:
    pcb, tile, limits = load_recipe("pcb"), load_recipe("magnetic_tile"), ImageLimits()
    image = _scene(3, None)
    job = InspectionJob(image=image, recipe=pcb, reference=_scene(4, None))
    with_, without = (prepare(job, limits, exposure=exposure) for exposure in (200.0, None))
    assert (with_.views.patches == without.views.patches).all()
    dark = np.full((64, 64, 3), 2, dtype=np.uint8)
    dark[::2] = 3
    shown = prepare(InspectionJob(image=dark, recipe=tile), limits, exposure=90.0)
    assert shown.views.contrasts[0] < 1.0, "a covered lens must not gain contrast by being made brighter"


def test_exposure_is_bounded() -> None:
    table = exposure_table([np.full((8, 8, 3), 2, dtype=np.uint8)], 200.0)
    assert table[2] == 2 * MOST_EXPOSURE and table[255] == 255
    assert (np.diff(table.astype(int)) >= 0).all()


# -- the measurement ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Six tiles, three of them with a bright hole."""
    folder = tmp_path / "magnetic_tile"
    folder.mkdir()
    lines = []
    for index in range(6):
        box = (30 + 10 * index, 40, 60 + 10 * index, 70) if index % 2 else None
        name = f"{index}.png"
        cv2.imwrite(str(folder / name), _scene(index, box))
        lines.append(
            {
                "file": name,
                "width": 160,
                "height": 120,
                "split": "test",
                "group": str(index),
                "image_label": "blowhole" if box else "ok",
                "objects": [{"label": "blowhole", "bbox": list(box)}] if box else [],
            }
        )
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


class _BrightSpots:
    """NG where a pixel is above 215, which the brightness of the lamp decides."""

    name = "bright-spots"

    def __init__(self) -> None:
        self.calls = 0

    def inspect(self, image, recipe, *, reference=None, image_name=""):  # type: ignore[no-untyped-def]
        self.calls += 1
        rgb = cv2.cvtColor(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        ys, xs = np.nonzero(rgb[..., 0] > 215)
        found = [("blowhole", (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), 1.0)] if len(xs) > 20 else []
        return make_result(recipe, rgb, predictor=self.name, ng_probability=float(bool(found)), boxes=found)


def test_robustness_tells_what_breaks_and_what_does_not(pack: Path, tmp_path: Path) -> None:
    predictor, keep = _BrightSpots(), tmp_path / "keep"
    names = ("darker by 20", "moved by (3, 2) px", "turned by 1 degree", "blur, sigma 1 px")
    report = measure_robustness(pack, "magnetic_tile", "test", predictor, names=names, keep=keep, progress=False)
    assert [c.name for c in report.conditions] == [AS_TAKEN.name, *names]
    figures = {c.name: c for c in report.conditions}
    plain, darker = figures[AS_TAKEN.name], figures["darker by 20"]
    assert plain.escape_rate is not None and plain.escape_rate.value == 0 and plain.changed.value == 0
    assert plain.f_score is not None and plain.f_score.value == 1
    assert darker.escape_rate is not None and darker.escape_rate.value == 1 and darker.changed.value == 0.5
    for name in names[1:]:
        condition = figures[name]
        assert condition.changed.value == 0 and condition.f_score is not None and condition.f_score.value == 1
    calls = predictor.calls
    again = measure_robustness(pack, "magnetic_tile", "test", predictor, names=names, keep=keep, progress=False)
    assert predictor.calls == calls, "what is finished is kept"
    assert again.conditions == report.conditions
    with pytest.raises(InvalidRequestError, match="no perturbation"):
        measure_robustness(pack, "magnetic_tile", "test", predictor, names=["fog"])


def test_the_command_runs_the_embedded_engine(pack: Path) -> None:
    from auroraedge.cli import app

    arguments = ["bench", "robustness", "--pack", str(pack), "--set", "magnetic_tile", "--split", "test"]
    arguments += ["--limit", "2", "--only", "darker by 20", "--threads", "1"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "darker by 20" in shown.output
    repeat = ["bench", "repeatability", "--pack", str(pack), "--set", "magnetic_tile", "--split", "test"]
    done = CliRunner().invoke(
        app, [*repeat, "--limit", "2", "--times", "1", "--batches", "1", "--threads", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["inspections"], found["verdicts"], found["largest_difference"]) == (4, 0, 0.0)
