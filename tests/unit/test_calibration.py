"""Verdict calibration: the fit, the thresholds, and what must hold for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")  # calib imports the training data's sources
from auroraedge.errors import DatasetError
from auroraedge.evaluate.perturb import AS_TAKEN, PERTURBATIONS
from auroraedge.inspection.recipe import Severity
from auroraedge.inspection.results import Box, Defect
from calib.examine import Examined, Kept, matched
from calib.verdict import (
    calibrate,
    calibration_error,
    fit_logistic,
    fit_verdicts,
    out_of_fold,
    review_band,
    smooth_quantile,
)


def test_the_fit_agrees_with_sklearn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * [3.0, 0.2] + [1.0, -2.0]
    y = (rng.random(400) < 1 / (1 + np.exp(-(x @ [0.8, 5.0] + 9.0)))).astype(float)
    weights, bias = fit_logistic(x, y, 1e-6)
    theirs = linear.LogisticRegression(C=1e8, max_iter=5000, tol=1e-10).fit(x, y)
    assert weights == pytest.approx(theirs.coef_[0], rel=1e-2)
    assert bias == pytest.approx(theirs.intercept_[0], rel=1e-2)


def _examined(rng: np.random.Generator, key: int, defective: bool, condition: str = AS_TAKEN.name) -> Examined:
    strength = rng.normal(3.0 if defective else -3.0, 1.5)
    confidences = [0.9, 0.6, 0.2] if defective else [0.15]
    return Examined(
        key=str(key),
        group=f"part {key // 3}",
        condition=condition,
        features={"verdict": strength, "evidence": strength + rng.normal(0, 0.3), "presence": rng.normal()},
        confidences=confidences,
        hits=[bool(rng.random() < c) for c in confidences] if defective else [False],
        defective=defective,
        boxes=2 if defective else 0,
    )


def test_calibration_separates_what_can_be_separated() -> None:
    rng = np.random.default_rng(1)
    found, notes = calibrate([_examined(rng, i, i % 9 < 3) for i in range(300)])
    assert found.verdict + found.evidence > 0
    assert abs(found.presence) < found.verdict + found.evidence
    assert notes["escape"] <= 0.01
    assert notes["overkill"] <= 0.02
    assert 0 < notes["ok_below"] <= notes["ng_above"] < 1
    assert notes["review"] < 0.1
    assert notes["ece"]["value"] < 0.05 and notes["ece"]["low"] <= notes["ece"]["value"] <= notes["ece"]["high"]
    assert notes["escape_as_taken"]["denominator"] == sum(i % 9 < 3 for i in range(300))
    assert 0 < notes["defect_confidence"] < 1
    assert notes["f"] > 0.7


def test_perturbed_copies_widen_the_band_and_do_not_count_as_parts() -> None:
    """A fifth of the defective parts looks good when it is brighter: a person must see those."""
    rng = np.random.default_rng(3)
    plain = [_examined(rng, i, i % 9 < 3) for i in range(180)]
    brighter = []
    for i, one in enumerate(plain):
        pale = one.defective and i % 5 == 0
        features = {name: x - (4.0 if pale else 0.0) for name, x in one.features.items()}
        brighter.append(Examined(**{**one.__dict__, "condition": "brighter by 20", "features": features}))
    _, alone = calibrate(plain)
    _, both = calibrate([*plain, *brighter])
    assert both["images"] == alone["images"] == 180
    assert both["ok_below"] < alone["ok_below"] or both["review"] > alone["review"]
    assert both["escape"] <= 0.02


def test_a_figure_that_tells_nothing_is_left_out() -> None:
    rng = np.random.default_rng(4)
    examined = []
    for i in range(90):
        defective = i % 3 == 0
        strength = rng.normal(1.5 if defective else -1.5, 1.0)
        features = {"verdict": rng.normal(0, 5), "evidence": strength, "presence": strength + rng.normal(0, 0.5)}
        one = _examined(rng, i * 3, defective)
        examined.append(Examined(**{**one.__dict__, "features": features}))
    fit = fit_verdicts(examined)
    assert fit.notes["figures"] == ["evidence", "presence"]
    assert set(fit.weights) == {"evidence", "presence"}


def test_overconfident_fits_are_cooled() -> None:
    """Log-odds that promise more than they hold get a slope below 1, and the error is then small."""
    rng = np.random.default_rng(5)
    truth = rng.normal(0, 2, size=600)
    y = (rng.random(600) < 1 / (1 + np.exp(-truth))).astype(float)
    (slope,), offset = fit_logistic(3 * truth[:, None], y, 1e-3)
    assert slope == pytest.approx(1 / 3, rel=0.25)
    groups = [str(i // 2) for i in range(600)]
    hot = calibration_error(1 / (1 + np.exp(-3 * truth)), y, groups).value
    cool = calibration_error(1 / (1 + np.exp(-(3 * slope * truth + offset))), y, groups).value
    assert hot is not None and cool is not None and cool < 0.06 < hot


def test_the_band_holds_what_no_threshold_could() -> None:
    """Two defective parts look better than many good ones: they must go to a person, not to the customer."""
    good, bad = np.linspace(-7, -1.4, 100), np.concatenate([[-2.9, -2.8], np.linspace(0.4, 4.6, 98)])
    found = review_band(np.concatenate([good, bad]), np.concatenate([np.zeros(100), np.ones(100)]))
    assert found["escape"] <= 0.01
    assert found["overkill"] <= 0.02
    assert found["ok_below"] < 1 / (1 + np.exp(2.8)) < found["ng_above"]
    assert 0.1 < found["review"] < 0.5


def test_the_smooth_quantile_keeps_a_margin_that_the_spread_sets() -> None:
    rng = np.random.default_rng(6)
    few = rng.normal(5, 1, size=40)
    assert smooth_quantile(few, 0.01) < few.min()
    many = rng.normal(5, 1, size=20000)
    assert smooth_quantile(many, 0.01) == pytest.approx(5 - 2.326, abs=0.15)
    assert smooth_quantile(few + 3, 0.01) == pytest.approx(smooth_quantile(few, 0.01) + 3, abs=1e-6)


def test_out_of_fold_probabilities_are_honest() -> None:
    """Features without meaning: a fit on the same images would separate them, one on others cannot."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 20)), (np.arange(60) % 2).astype(float)
    weights, bias = fit_logistic(x, y, 1e-3)
    seen = ((x @ weights + bias > 0) == (y == 1)).mean()
    unseen = ((out_of_fold(x, y, [str(i) for i in range(60)], 1e-3) > 0) == (y == 1)).mean()
    assert seen > 0.75 > 0.65 > unseen


def test_images_of_one_part_stay_in_one_fold() -> None:
    """Twins that only differ in name: with the twin in the fit anything could be remembered."""
    rng = np.random.default_rng(7)
    x = np.repeat(rng.normal(size=(30, 25)), 2, axis=0)
    y = np.repeat((np.arange(30) % 2).astype(float), 2)
    pairs = [str(i // 2) for i in range(60)]
    apart = ((out_of_fold(x, y, pairs, 1e-3) > 0) == (y == 1)).mean()
    leaking = ((out_of_fold(x, y, [str(i) for i in range(60)], 1e-3) > 0) == (y == 1)).mean()
    assert leaking > apart + 0.15


def test_boxes_are_matched_once_each() -> None:
    def box(x: float) -> Box:
        return Box(x1=x, y1=0, x2=x + 10, y2=10)

    defects = [
        Defect(label=label, severity=Severity.MAJOR, box=box(x), confidence=c)
        for label, x, c in (("a", 1, 0.9), ("a", 0, 0.8), ("b", 0, 0.7))
    ]
    assert matched(defects, [("a", box(0))]) == [True, False, False]


def test_what_was_examined_is_kept_and_gone_on_from(tmp_path: Path) -> None:
    path, identity = tmp_path / "kept.jsonl", {"weights_sha256": "a"}
    first = _examined(np.random.default_rng(0), 1, True)
    Kept(path, identity).add(first)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "2", "gro')  # killed while it wrote
    again = Kept(path, identity)
    assert again.get("1", AS_TAKEN.name) == first
    assert again.get("2", AS_TAKEN.name) is None
    again.add(_examined(np.random.default_rng(0), 2, False))
    assert Kept(path, identity).get("2", AS_TAKEN.name) is not None
    with pytest.raises(DatasetError, match="another engine"):
        Kept(path, {"weights_sha256": "b"})


def test_the_conditions_of_calibration_are_known_ones() -> None:
    from calib.verdict import EXAMINED_UNDER

    assert set(EXAMINED_UNDER) < set(PERTURBATIONS)
