"""Verdict calibration: the fit, the thresholds, and what must hold for them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")  # calib imports the training data's sources
from auroraedge.inspection.recipe import Severity
from auroraedge.inspection.results import Box, Defect
from calib.verdict import Examined, calibrate, fit_logistic, out_of_fold, review_band


def test_the_fit_agrees_with_sklearn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * [3.0, 0.2] + [1.0, -2.0]
    y = (rng.random(400) < 1 / (1 + np.exp(-(x @ [0.8, 5.0] + 9.0)))).astype(float)
    weights, bias = fit_logistic(x, y, 1e-6)
    theirs = linear.LogisticRegression(C=1e8, max_iter=5000, tol=1e-10).fit(x, y)
    assert weights == pytest.approx(theirs.coef_[0], rel=1e-2)
    assert bias == pytest.approx(theirs.intercept_[0], rel=1e-2)


def _examined(rng: np.random.Generator, defective: bool) -> Examined:
    strength = rng.normal(3.0 if defective else -3.0)
    box = Box(x1=0, y1=0, x2=1, y2=1)
    confidences = [0.9, 0.6, 0.2] if defective else [0.15]
    defects = [Defect(label="a", severity=Severity.MAJOR, box=box, confidence=c) for c in confidences]
    return Examined(
        features={"verdict": strength, "evidence": strength, "presence": rng.normal()},
        defects=defects,
        hits=[bool(rng.random() < d.confidence) for d in defects] if defective else [False],
        defective=defective,
        boxes=2 if defective else 0,
    )


def test_calibration_separates_what_can_be_separated() -> None:
    rng = np.random.default_rng(1)
    found, notes = calibrate([_examined(rng, i % 3 == 0) for i in range(300)])
    assert found.verdict > 0
    assert found.evidence > 0
    assert abs(found.presence) < found.verdict
    assert notes["escape"] <= 0.01
    assert notes["overkill"] <= 0.02
    assert 0 < notes["ok_below"] <= notes["ng_above"] < 1
    assert notes["review"] < 0.05
    assert notes["ece"] < 0.05
    assert 0 < notes["defect_confidence"] < 1
    assert notes["f"] > 0.7


def test_the_band_holds_what_no_threshold_could() -> None:
    """Two defective parts look better than many good ones: they must go to a person, not to the customer."""
    p = np.concatenate([np.linspace(0.001, 0.2, 100), [0.05, 0.06], np.linspace(0.6, 0.99, 98)])
    y = np.concatenate([np.zeros(100), np.ones(100)])
    found = review_band(p, y)
    assert found["ok_below"] < 0.05
    assert 0.19 < found["ng_above"] < 0.6
    assert found["escape"] == 0
    assert found["overkill"] <= 0.02
    assert 0.3 < found["review"] < 0.5


def test_out_of_fold_probabilities_are_honest() -> None:
    """Features without meaning: a fit on the same images would separate them, one on others cannot."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 20)), (np.arange(60) % 2).astype(float)
    weights, bias = fit_logistic(x, y, 1e-3)
    seen = ((x @ weights + bias > 0) == (y == 1)).mean()
    unseen = ((out_of_fold(x, y) > 0.5) == (y == 1)).mean()
    assert seen > 0.75 > 0.65 > unseen
