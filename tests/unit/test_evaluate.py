"""Evaluation from a folder to a report, with the template comparison and small fixed rules as predictors."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from rich.console import Console

from auroraedge.data.pack import Truth, load_pack_set
from auroraedge.errors import DatasetError, InvalidImageError, RecipeNotFoundError
from auroraedge.evaluate import EvalReport, evaluate, predictor_name, print_report
from auroraedge.evaluate.predictor import ImageSource, decode, make_result
from auroraedge.evaluate.samples import evenly, free_window, good_samples
from auroraedge.evaluate.schema import Prediction, SampleInfo, SampleKind, TruthBox
from auroraedge.evaluate.scoring import class_scores, differences, image_class_of, score
from auroraedge.evaluate.xor_baseline import XorBaseline
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import Box, Defect, InspectionResult, Severity, Verdict

SIDE = 448


def template(number: int) -> np.ndarray:
    grey = np.full((SIDE, SIDE), 255, np.uint8)
    for y in range(20 + 7 * number, SIDE - 30, 60):
        grey[y : y + 16, 10 : SIDE - 10] = 0
    return grey


def write_set(root: Path, name: str, records: list[dict[str, Any]], images: dict[str, np.ndarray]) -> None:
    folder = root / name
    folder.mkdir()
    for file, pixels in images.items():
        cv2.imwrite(str(folder / file), pixels)
    (folder / "annotations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`boards`: 4 boards with one pin hole each, in the top left, and templates (two of them the same picture).

    `tiles`: ok, ok_presumed and blowhole images of one grey value each: 200, 200 and 50.
    """
    root = tmp_path_factory.mktemp("pack")
    records, images = [], {}
    for number in range(4):
        golden = template(number % 3)
        board, y = golden.copy(), 20 + 7 * (number % 3) + 4
        board[y : y + 8, 40:49] = 255
        images |= {f"t{number}.png": golden, f"b{number}.png": board}
        records.append(
            {
                "file": f"b{number}.png",
                "reference": f"t{number}.png",
                "width": SIDE,
                "height": SIDE,
                "split": "line-7",
                "group": f"g{number % 2}",
                "template_near_train": number == 0,
                "image_label": "defective",
                "objects": [{"label": "pin_hole", "bbox": [30, y - 10, 59, y + 18]}],
            }
        )
    write_set(root, "boards", records, images)
    tiles, pictures = [], {}
    for number, label in enumerate(["ok", "blowhole", "ok_presumed", "blowhole", "ok", "crack"]):
        defective = not label.startswith("ok")
        pictures[f"{number}.png"] = np.full((64, 64), 50 if defective else 200, np.uint8)
        tiles.append(
            {"file": f"{number}.png", "width": 64, "height": 64, "split": "test", "group": f"g{number}"}
            | {"image_label": label, "objects": [{"label": label, "bbox": [8, 8, 40, 40]}] if defective else []}
        )
    write_set(root, "tiles", tiles, pictures)
    return root


class GreyRule:
    """NG with a fixed blowhole box when the image is dark. Counts its calls; may refuse or be interrupted."""

    name = "grey-rule"

    def __init__(self, *, stop_after: int | None = None, refuse: int | None = None) -> None:
        self.calls, self.stop_after, self.refuse = 0, stop_after, refuse

    def inspect(
        self, image: ImageSource, recipe: Recipe, *, reference: ImageSource | None = None, image_name: str = ""
    ) -> InspectionResult:
        assert isinstance(image, bytes) and not image_name, "file names contain the class and must stay hidden"
        if self.stop_after is not None and self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        if self.calls == self.refuse:
            raise InvalidImageError("refused on purpose", field="image")
        rgb = decode(image)
        dark = float(rgb.mean()) < 128
        found = [("blowhole", (8.0, 8.0, 40.0, 40.0), 0.9)] if dark else []
        return make_result(recipe, rgb, predictor=self.name, ng_probability=0.98 if dark else 0.02, boxes=found)


def tile_recipe(pack: Path) -> str:
    """The built-in recipe with thresholds of its own, which do not move when the model is calibrated anew."""
    content = load_recipe("magnetic_tile").model_dump(mode="json", exclude_none=True)
    content["thresholds"] = {"ok_below": 0.3, "ng_above": 0.7, "defect_confidence": 0.3}
    path = pack.parent / "magnetic_tile.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return str(path)


def run(pack: Path, name: str = "tiles", split: str = "test", **options: Any) -> EvalReport:
    predictor = options.pop("predictor", None) or GreyRule()
    recipe = options.pop("recipe") if "recipe" in options else tile_recipe(pack)
    return evaluate(pack, name, split, predictor, recipe, progress=False, **options)


def test_boards_with_templates(pack: Path) -> None:
    report = run(pack, "boards", "line-7", predictor=XorBaseline(), recipe="pcb", baseline=True)
    scores = report.model
    assert scores.detection is not None and scores.detection.micro.f_score.value == 1.0
    assert scores.detection.per_class["pin_hole"].truth == 4
    assert set(scores.detection.f_score_by_subset) == {"template_near_train=False", "template_near_train=True"}
    # Three distinct templates; the boxes leave room for a view-sized crop on every board.
    assert {kind: good.samples for kind, good in scores.good_by_kind.items()} == {
        "template_identical": 3,
        "template_perturbed": 3,
        "crop": 3,
    }
    assert scores.verdict is not None
    assert (scores.verdict.good, scores.verdict.defective) == (3, 4), "identical templates and crops stay apart"
    assert scores.verdict.escape_rate.value == 0 and scores.verdict.overkill_rate.value == 0
    assert scores.image_class is None, "'defective' is no class of the recipe"
    assert report.groups == 2 and any("2 image groups" in note for note in report.notes)
    assert report.baseline is not None and report.difference["f_score"].value == 0
    assert len(report.predictions) == len(report.baseline_predictions) == 13


def test_presumed_good_images_stay_out_of_strict_figures(pack: Path) -> None:
    scores = run(pack, baseline=False).model
    assert scores.verdict is not None and (scores.verdict.good, scores.verdict.defective) == (2, 3)
    assert scores.presumed_good is not None
    assert (scores.presumed_good.samples, scores.presumed_good.overkill_rate.value) == (1, 0.0)
    assert scores.detection is not None and scores.detection.images == 5
    # Two blowholes found; the crack is boxed as a blowhole: a false alarm and a miss, found when labels do not count.
    assert scores.detection.micro.f_score.value == pytest.approx(4 / 6)
    assert scores.detection.any_label.f_score.value == 1.0
    assert scores.image_class is not None
    assert scores.image_class.labels == ("ok", "blowhole", "crack")
    assert scores.image_class.confusion == ((2, 0, 0), (0, 2, 0), (0, 1, 0))
    assert scores.roc_auc == 1.0 and scores.expected_calibration_error == pytest.approx(0.02)


def test_no_good_samples_are_made_where_real_ones_exist(pack: Path) -> None:
    assert {p.sample.kind for p in run(pack, baseline=False).predictions} == {SampleKind.ANNOTATED}


def test_missing_train_split_leaves_the_baseline_out_and_says_so(pack: Path) -> None:
    report = run(pack)
    assert report.baseline is None and report.difference == {}
    assert any("No baseline: the train split has no boxes" in note for note in report.notes)


def test_refused_image_is_an_error_and_a_miss_but_never_ok(pack: Path) -> None:
    scores = run(pack, predictor=GreyRule(refuse=2), baseline=False).model
    assert scores.errors == 1 and scores.verdict is not None
    assert scores.verdict.counts["defective"]["ERROR"] == 1
    assert scores.verdict.escape_rate.value == 0 and scores.verdict.error_rate.numerator == 1
    assert scores.detection is not None and scores.detection.per_class["blowhole"].recall.value == 0.5


def test_report_survives_json_and_prints(pack: Path) -> None:
    report = run(pack, "boards", "line-7", predictor=XorBaseline(), recipe="pcb")
    assert EvalReport.model_validate_json(report.model_dump_json()) == report
    console = Console(record=True, width=160, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    for part in ("boards / line-7", "escape rate", "F-score, IoU > 0.33", "pin_hole", "Note: ", "model - baseline"):
        assert part in text


def test_interrupted_run_goes_on_where_it_stopped(pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "predictions.jsonl"
    first = run(pack, predictor=GreyRule(stop_after=2), out=out)
    assert first.interrupted and len(first.predictions) == 2 and first.baseline is None
    assert any("Interrupted" in note for note in first.notes)
    with out.open("ab") as file:
        file.write(b'{"input_sha256": "cut sho')  # a crash in the middle of a line
    second_rule = GreyRule()
    second = run(pack, predictor=second_rule, out=out, baseline=False)
    assert second_rule.calls == 4 and len(second.predictions) == 6 and not second.interrupted
    third_rule = GreyRule()
    third = run(pack, predictor=third_rule, out=out, baseline=False)
    assert third_rule.calls == 0
    assert third.model == second.model == run(pack, baseline=False).model
    assert third.predictions == second.predictions


def test_interrupt_before_the_first_result_is_raised_on(pack: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pack, predictor=GreyRule(stop_after=0))


def test_changed_image_is_inspected_again(pack: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pack"
    copy.mkdir()
    record = {"file": "a.png", "width": 64, "height": 64, "split": "test", "group": "g", "image_label": "ok"}
    write_set(copy, "tiles", [record], {"a.png": np.full((64, 64), 200, np.uint8)})
    out = tmp_path / "p.jsonl"
    assert run(copy, out=out, baseline=False).predictions[0].result.verdict is Verdict.OK
    cv2.imwrite(str(copy / "tiles/a.png"), np.full((64, 64), 50, np.uint8))
    assert run(copy, out=out, baseline=False).predictions[0].result.verdict is Verdict.NG


def test_predictions_of_another_run_are_not_mixed_in(pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    run(pack, out=out, baseline=False)
    with pytest.raises(DatasetError, match="different: recipe_sha256"):
        run(pack, out=out, recipe="ball_screw")
    other = GreyRule()
    other.name = "other"
    with pytest.raises(DatasetError, match="different: predictor"):
        run(pack, predictor=other, out=out)
    out.write_text("something else\n")
    with pytest.raises(DatasetError, match="not a file of predictions"):
        run(pack, out=out)
    assert out.read_text() == "something else\n", "a file that is not ours is left alone"


def test_bad_requests(pack: Path) -> None:
    with pytest.raises(DatasetError, match="--recipe"):
        run(pack, recipe=None)
    with pytest.raises(RecipeNotFoundError):
        run(pack, recipe="nothing")
    with pytest.raises(DatasetError, match="no item of split"):
        run(pack, split="val")
    with pytest.raises(DatasetError, match="at least 1"):
        run(pack, limit=0)


def test_limit_spreads_evenly(pack: Path) -> None:
    items = load_pack_set(pack, "tiles")
    assert [item.file for item in evenly(items, 3)] == ["0.png", "2.png", "4.png"]
    assert len(evenly(items, 99)) == len(evenly(items, None)) == 6
    assert len(run(pack, limit=2, baseline=False).predictions) == 2


def test_free_window_keeps_clear_of_boxes(pack: Path) -> None:
    (item, *_) = load_pack_set(pack, "boards")
    window = free_window(item, 256)
    assert window is not None
    x1, y1, x2, y2 = window
    bx1, by1, bx2, by2 = item.objects[0].bbox
    assert x2 - x1 == y2 - y1 == 256 and x2 <= SIDE and y2 <= SIDE
    assert bx2 + 4 <= x1 or bx1 - 4 >= x2 or by2 + 4 <= y1 or by1 - 4 >= y2
    assert free_window(item, SIDE) is None and free_window(item, SIDE + 1) is None


def test_good_samples_need_templates(pack: Path) -> None:
    assert good_samples(load_pack_set(pack, "tiles"), load_recipe("pcb")) == []
    assert good_samples(load_pack_set(pack, "boards"), load_recipe("magnetic_tile")) == []


def prediction(label: str, result: dict[str, Any], key: str = "k", objects: tuple[TruthBox, ...] = ()) -> Prediction:
    truth = Truth.GOOD if label == "ok" else Truth.DEFECTIVE
    info = SampleInfo(
        key=key,
        kind=SampleKind.ANNOTATED,
        file=key,
        split="s",
        group=key,
        truth=truth,
        image_label=label,
        objects=objects,
    )
    return Prediction(sample=info, result=InspectionResult(image_width=50, image_height=40, **result))


def defect(label: str, confidence: float, box: Box | None = None) -> Defect:
    return Defect(label=label, severity=Severity.MAJOR, box=box, confidence=confidence)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"verdict": Verdict.OK}, "ok"),
        ({"verdict": Verdict.ERROR}, "(error)"),
        ({"verdict": Verdict.NG}, "(unnamed defect)"),
        ({"verdict": Verdict.NG, "defects": (defect("a", 0.3), defect("b", 0.8))}, "b"),
        ({"verdict": Verdict.REVIEW, "defects": (defect("a", 0.3),)}, "a"),
        ({"verdict": Verdict.NG, "predicted_class": "red_iron"}, "red_iron"),
    ],
)
def test_class_of_a_result(result: dict[str, Any], expected: str) -> None:
    assert image_class_of(InspectionResult(**result)) == expected


def test_classification_recipe_has_classes_and_no_verdicts() -> None:
    recipe = load_recipe("steel_strip")
    truth = ["red_iron", "red_iron", "surface_scratch", "iron_sheet_ash"]
    named = ["red_iron", "surface_scratch", "surface_scratch", "iron_sheet_ash"]
    predictions = [
        prediction(t, {"verdict": Verdict.NG, "predicted_class": p, "class_probability": 0.75}, key=str(i))
        for i, (t, p) in enumerate(zip(truth, named, strict=True))
    ]
    scores = score(predictions, recipe, predictor="p")
    assert scores.verdict is None and scores.detection is None and scores.roc_auc is None
    assert scores.image_class is not None and scores.image_class.accuracy.value == 0.75
    assert scores.image_class.balanced_accuracy.value == pytest.approx((0.5 + 1 + 1) / 3)
    assert scores.expected_calibration_error == 0.0


def test_classes_that_the_recipe_lacks_are_kept() -> None:
    recipe = load_recipe("magnetic_tile")
    predictions = [prediction("odd", {"verdict": Verdict.OK}, "1"), prediction("ok", {"verdict": Verdict.OK}, "2")]
    assert class_scores(predictions, recipe).labels == ("ok", "odd")


def test_defect_without_a_box_covers_the_image() -> None:
    recipe = load_recipe("magnetic_tile")
    whole = (TruthBox(label="uneven", box=(0, 0, 50, 38)),)
    found = {"verdict": Verdict.NG, "defects": (defect("uneven", 0.9),)}
    scores = score([prediction("uneven", found, objects=whole)], recipe, predictor="p")
    assert scores.detection is not None and scores.detection.micro.f_score.value == 1.0


def test_differences_need_the_same_samples() -> None:
    recipe = load_recipe("magnetic_tile")
    one, two = prediction("ok", {"verdict": Verdict.OK}, "1"), prediction("ok", {"verdict": Verdict.OK}, "2")
    with pytest.raises(ValueError, match="same samples"):
        differences([one], [two], recipe)


def test_name_of_an_engine() -> None:
    class Engine:
        model_id, engine_sha256 = "nano", "0123456789abcdef0123"

    class Holder(GreyRule):
        engine = Engine()

    assert predictor_name(Holder()) == "nano@0123456789abcdef"
    assert predictor_name(XorBaseline()) == "baseline-xor"
