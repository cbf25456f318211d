"""Metrics against hand-computed cases, scikit-learn, and what must hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auroraedge.evaluate.detection import (
    ImageBoxes,
    LabelledBox,
    average_precision,
    best_confidence,
    f_counts,
    f_score,
    iou_matrix,
    map_statistic,
    match_boxes,
    match_class,
    mean_average_precision,
    micro_f_statistic,
    recall_by_size,
)
from auroraedge.evaluate.metrics import (
    accuracy,
    balanced_accuracy,
    calibration_floor,
    class_statistic,
    cluster_bootstrap,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    roc_auc,
    verdict_scores,
    wilson,
)
from auroraedge.inspection.results import Verdict

OK, NG, REVIEW, ERROR = Verdict.OK, Verdict.NG, Verdict.REVIEW, Verdict.ERROR


def image(truth: list[tuple[str, tuple[float, ...]]], found: list[tuple[str, tuple[float, ...], float]]) -> ImageBoxes:
    return ImageBoxes(
        truth=[LabelledBox(label=label, box=box) for label, box in truth],
        predicted=[LabelledBox(label=label, box=box, confidence=p) for label, box, p in found],
    )


# -- intervals ------------------------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 0.19208) / 1.38416, half width 1.96 / 1.38416 * sqrt(0.016 + 0.009604)
    estimate = wilson(8, 10, z=1.96)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.71674 - 0.22658, abs=1e-4)
    assert estimate.high == pytest.approx(0.71674 + 0.22658, abs=1e-4)


def test_wilson_at_the_ends() -> None:
    none, all_of_them, empty = wilson(0, 20), wilson(20, 20), wilson(0, 0)
    assert none.low == 0.0 and none.high == pytest.approx(0.16113, abs=1e-4)  # z^2 / (n + z^2)
    assert all_of_them.high == 1.0 and all_of_them.low == pytest.approx(1 - 0.16113, abs=1e-4)
    assert empty.value is None and empty.low is None
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(3, 2)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_and_mirrors(case: tuple[int, int]) -> None:
    k, n = case
    ours, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1
    assert ours.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_bootstrap_draws_groups_and_not_images() -> None:
    # 20 images in 2 groups, one all right, one all wrong: by group the accuracy can be 0, 0.5 or 1 only.
    truth, groups = ["a"] * 20, ["x"] * 10 + ["y"] * 10
    predicted = ["a"] * 10 + ["b"] * 10
    statistic = class_statistic(truth, predicted, ["a", "b"], accuracy)
    grouped = cluster_bootstrap(statistic, groups)
    single = cluster_bootstrap(statistic, [str(i) for i in range(20)])
    assert (grouped.value, grouped.low, grouped.high) == (0.5, 0.0, 1.0)
    assert single.low > 0.1 and single.high < 0.9


def test_bootstrap_is_seeded_and_needs_two_groups() -> None:
    truth, predicted = list("aabbab"), list("abbbaa")
    statistic = class_statistic(truth, predicted, ["a", "b"], macro_f1)
    groups = list("123456")
    assert cluster_bootstrap(statistic, groups, seed=3) == cluster_bootstrap(statistic, groups, seed=3)
    assert cluster_bootstrap(statistic, ["one"] * 6).low is None
    assert cluster_bootstrap(lambda _: math.nan, groups).value is None
    assert cluster_bootstrap(statistic, []).value is None


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(60):
        hits = rng.random(200) < 0.7
        estimate = cluster_bootstrap(
            lambda w, h=hits: float(w @ h / w.sum()), [str(i) for i in range(200)], replicates=300, seed=trial
        )
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered >= 50  # 57 expected; fewer than 50 has probability below 0.1 %


# -- images ---------------------------------------------------------------------------------------------------------


def test_confusion_and_figures_by_hand() -> None:
    truth, predicted = list("aaaabbc"), list("aaabbcc")
    matrix = confusion_matrix(truth, predicted, ["a", "b", "c"])
    assert matrix.tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert accuracy(matrix) == pytest.approx(5 / 7)
    assert balanced_accuracy(matrix) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert macro_f1(matrix) == pytest.approx((6 / 7 + 2 / 4 + 2 / 3) / 3)
    with pytest.raises(ValueError, match="without a row: c"):
        confusion_matrix(truth, predicted, ["a", "b"])


def test_figures_without_images_are_undefined() -> None:
    empty = np.zeros((2, 2))
    assert all(math.isnan(figure(empty)) for figure in (accuracy, balanced_accuracy, macro_f1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_figures_agree_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    matrix = confusion_matrix(truth, predicted, list("abcd"))
    assert matrix.tolist() == metrics.confusion_matrix(truth, predicted, labels=list("abcd")).tolist()
    assert accuracy(matrix) == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert macro_f1(matrix) == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0))
    recalls = metrics.recall_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert balanced_accuracy(matrix) == pytest.approx(recalls)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
        lambda rows: len({bad for bad, _ in rows}) == 2
    )
)
def test_roc_auc_agrees_with_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, score = [bad for bad, _ in rows], [value / 6 for _, value in rows]
    assert roc_auc(truth, score) == pytest.approx(metrics.roc_auc_score(truth, score))


def test_weights_act_like_repeated_images() -> None:
    truth, predicted = list("aabb"), list("abba")
    statistic = class_statistic(truth, predicted, ["a", "b"], macro_f1)
    repeated = confusion_matrix(list("aaabb"), list("aaabb"), ["a", "b"])  # first image three times, third twice
    assert statistic(np.array([3.0, 0, 2, 0])) == pytest.approx(macro_f1(repeated))


def test_review_is_neither_escape_nor_overkill_but_ng_in_the_strict_figures() -> None:
    defective = [True] * 5 + [False] * 5
    verdicts = [OK, NG, NG, REVIEW, ERROR, OK, OK, NG, REVIEW, REVIEW]
    scores = verdict_scores(defective, verdicts, [str(i) for i in range(10)])
    assert scores.escape_rate.value == 1 / 5
    assert scores.overkill_rate.value == 1 / 5
    assert scores.review_rate.value == 3 / 10
    assert scores.error_rate.value == 1 / 10
    assert (scores.decided_accuracy.numerator, scores.decided_accuracy.denominator) == (4, 6)
    assert scores.strict_escape_rate.value == 1 / 5
    assert scores.strict_overkill_rate.value == 3 / 5
    assert scores.strict_accuracy.value == 6 / 10
    assert scores.strict_balanced_accuracy.value == pytest.approx((4 / 5 + 2 / 5) / 2)
    assert scores.counts["defective"] == {"OK": 1, "NG": 2, "REVIEW": 1, "ERROR": 1}


def test_verdicts_of_one_kind_only_have_no_balanced_accuracy() -> None:
    scores = verdict_scores([True, True], [NG, OK], ["a", "b"])
    assert scores.strict_balanced_accuracy.value is None and scores.overkill_rate.value is None
    assert scores.escape_rate.value == 0.5
    with pytest.raises(ValueError, match="one entry an image"):
        verdict_scores([True], [NG, OK], ["a", "b"])


def test_calibration_error_by_hand() -> None:
    # bins of 0.5: (0, 0.5] holds 0.3 and 0.5 with one right; (0.5, 1] holds 0.9 and 1.0 with one right
    error = expected_calibration_error([0.3, 0.5, 0.9, 1.0], [True, False, True, False], bins=2)
    assert error == pytest.approx((abs(1 - 0.8) + abs(1 - 1.9)) / 4)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert math.isnan(expected_calibration_error([], []))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        expected_calibration_error([1.2], [True])


def test_a_perfectly_calibrated_model_has_an_error_too_and_less_of_it_with_more_images() -> None:
    rng = np.random.default_rng(3)
    few, many = (calibration_floor(rng.uniform(0.5, 1.0, n), draws=200) for n in (100, 10_000))
    assert few.value is not None and many.value is not None and few.low is not None and few.high is not None
    assert many.value < few.value / 5  # as 1 / sqrt(n)
    assert few.low < few.value < few.high
    p = rng.uniform(0.5, 1.0, 100)
    calibrated = expected_calibration_error(p, rng.random(100) < p)
    overconfident = expected_calibration_error(p, rng.random(100) < p - 0.3)
    assert few.low <= calibrated <= few.high < overconfident
    assert calibration_floor(np.ones(50)).value == 0.0  # sure of everything, and then right in every draw
    assert calibration_floor([]).value is None


# -- boxes ----------------------------------------------------------------------------------------------------------


def test_iou_by_hand() -> None:
    square = (0.0, 0.0, 10.0, 10.0)
    others = [square, (5.0, 0.0, 15.0, 10.0), (10.0, 0.0, 20.0, 10.0), (2.0, 2.0, 2.0, 8.0), (0.0, 0.0, 10.0, 5.0)]
    assert iou_matrix([square], others)[0].tolist() == pytest.approx([1, 50 / 150, 0, 0, 0.5])
    assert iou_matrix([], others).shape == (0, 5)


def test_threshold_is_exceeded_and_not_met() -> None:
    truth, half = [(0.0, 0.0, 10.0, 10.0)], [(0.0, 0.0, 10.0, 5.0)]
    assert match_boxes(truth, half, [1.0], 0.5) == [-1]
    assert match_boxes(truth, half, [1.0], 0.499) == [0]


def test_matching_is_one_to_one_by_confidence() -> None:
    truth = [(0.0, 0.0, 10.0, 10.0)]
    found = [(0.0, 0.0, 10.0, 9.0), (0.0, 0.0, 10.0, 10.0)]
    # The surer box takes the true one although the other fits better.
    assert match_boxes(truth, found, [0.9, 0.8], 0.33) == [0, -1]
    assert match_boxes(truth, found, [0.8, 0.9], 0.33) == [-1, 0]
    # A second true box is left for the second prediction.
    assert match_boxes([*truth, (1.0, 0.0, 11.0, 10.0)], found, [0.9, 0.8], 0.33) == [0, 1]
    assert match_boxes([], found, [0.9, 0.8], 0.33) == [-1, -1]


def two_images() -> list[ImageBoxes]:
    a, b, c = (0.0, 0.0, 20.0, 20.0), (50.0, 50.0, 100.0, 100.0), (0.0, 0.0, 100.0, 100.0)
    far = (200.0, 200.0, 220.0, 220.0)
    return [
        image([("x", a), ("x", b), ("y", c)], [("x", a, 0.9), ("x", far, 0.8), ("y", b, 0.7)]),
        image([("x", b)], [("x", b, 0.6), ("x", far, 0.5)]),
    ]


def test_f_score_by_hand() -> None:
    images = two_images()
    x, y = match_class(images, "x", 0.33), match_class(images, "y", 0.33)
    everything = np.ones(2)
    assert f_counts([x], everything) == (2, 2, 1)
    assert f_counts([y], everything) == (0, 1, 1)  # b covers a quarter of c
    assert f_score(*f_counts([x, y], everything)) == pytest.approx(2 * 2 / (4 + 3 + 2))
    assert f_counts([x], np.array([0.0, 3.0])) == (3, 3, 0)
    assert math.isnan(f_score(0, 0, 0))
    anything = match_class(images, None, 0.2)
    assert f_counts([anything], everything) == (3, 2, 1)


def test_average_precision_by_hand() -> None:
    images = two_images()
    x = match_class(images, "x", 0.33)
    # By confidence: hit, miss, hit, miss of 3 true boxes: precision 1, 1/2, 2/3, 1/2; recall steps of 1/3.
    assert average_precision(x, np.ones(2)) == pytest.approx((1 + 2 / 3) / 3)
    y = match_class(images, "y", 0.33)
    assert average_precision(y, np.ones(2)) == 0
    absent = match_class(images, "z", 0.33)
    assert math.isnan(average_precision(absent, np.ones(2)))
    assert mean_average_precision([x, y, absent], np.ones(2)) == pytest.approx((5 / 9 + 0) / 2)


def test_recall_by_size_edges() -> None:
    sides = (31.9, 32.0, 95.9, 96.0)
    images = [image([("x", (0.0, 0.0, s, s))], [("x", (0.0, 0.0, s, s), 0.9)] if s != 96 else []) for s in sides]
    assert recall_by_size([match_class(images, "x", 0.33)]) == {"small": (1, 1), "medium": (2, 2), "large": (0, 1)}


def test_best_confidence_by_hand() -> None:
    matches = [match_class(two_images(), "x", 0.33)]
    # Kept above 0.9: 2*1/(1+3); above 0.6: 2*2/(3+3)
    assert best_confidence(matches) == (0.6, pytest.approx(2 / 3))
    assert best_confidence([])[0] == 1.0


boxes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
frames = st.builds(
    image,
    st.lists(st.tuples(st.sampled_from("xy"), boxes), max_size=4),
    st.lists(st.tuples(st.sampled_from("xy"), boxes, st.floats(0, 1)), max_size=4),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(frames, min_size=1, max_size=5))
def test_box_figures_hold_for_any_boxes(images: list[ImageBoxes]) -> None:
    matches = [match_class(images, label, 0.33) for label in "xy"]
    everything = np.ones(len(images))
    hits, false, missed = f_counts(matches, everything)
    assert hits + false == sum(len(i.predicted) for i in images)
    assert hits + missed == sum(len(i.truth) for i in images)
    strict = f_counts([match_class(images, label, 0.6) for label in "xy"], everything)[0]
    assert strict <= hits
    for statistic in (micro_f_statistic(matches), map_statistic(matches)):
        value = statistic(everything)
        assert math.isnan(value) or 0 <= value <= 1 + 1e-12
        doubled = statistic(2 * everything)
        assert math.isnan(value) == math.isnan(doubled)
        assert math.isnan(value) or doubled == pytest.approx(value)


@settings(max_examples=30, deadline=None)
@given(st.lists(frames, min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_weights_act_like_repeated_frames(images: list[ImageBoxes], times: list[int]) -> None:
    weights = np.array(times[: len(images)], dtype=float)
    repeated = [i for i, n in zip(images, times, strict=False) for _ in range(n)]
    weighted = f_counts([match_class(images, "x", 0.33)], weights)
    assert weighted == f_counts([match_class(repeated, "x", 0.33)], np.ones(len(repeated)))


@settings(deadline=None)
@given(st.lists(frames, min_size=1, max_size=4))
def test_truth_as_prediction_is_perfect(images: list[ImageBoxes]) -> None:
    echoed = [ImageBoxes(truth=i.truth, predicted=i.truth) for i in images]
    matches = [match_class(echoed, label, 0.5) for label in "xy"]
    everything = np.ones(len(images))
    expected = 1.0 if any(i.truth for i in images) else math.nan
    assert micro_f_statistic(matches)(everything) == pytest.approx(expected, nan_ok=True)
    assert map_statistic(matches)(everything) == pytest.approx(expected, nan_ok=True)
