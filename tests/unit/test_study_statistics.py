"""The statistics of studies, against published examples and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from auroraedge.studies.kappa import cohen_kappa, cohen_se, cohen_value, fleiss_kappa
from auroraedge.studies.proportions import (
    clustered_share,
    fisher_p,
    ks_distance,
    ks_p,
    share,
    stability_index,
    z_of,
)

# Gwet, irrCAC: 3x3 table of two abstractors, with its published kappa and standard error.
ABSTRACTORS = np.array([[13, 0, 0], [0, 20, 7], [0, 4, 56]], dtype=float)
# AIAG MSA 4th ed., III C: cross tables of three appraisers with each other and with the reference (0, 1), 150 pairs.
AIAG = {
    ("A", "B"): ([[44, 6], [3, 97]], 0.86),
    ("B", "C"): ([[42, 5], [9, 94]], 0.79),
    ("A", "C"): ([[43, 7], [8, 92]], 0.78),
    ("A", "reference"): ([[45, 5], [3, 97]], 0.88),
    ("B", "reference"): ([[45, 2], [3, 100]], 0.92),
    ("C", "reference"): ([[42, 9], [6, 93]], 0.77),
}
# Fleiss (1971) as in many textbooks: 10 subjects, 14 raters, 5 categories; kappa 0.210.
TEXTBOOK = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ],
    dtype=float,
)
# Gwet (2014), p. 120: 4 raters, 12 units, ratings missing; irrCAC gives kappa 0.76117 with standard error 0.15302.
_RAW = ["11.1", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", ".555", "..11", ".3.."]
GWET = np.array([[row.count(str(k)) for k in range(1, 6)] for row in _RAW], dtype=float)


def pairs_of(table: np.ndarray) -> np.ndarray:
    """One table for each pair: the pairs of different parts."""
    q = len(table)
    singles = []
    for i in range(q):
        for j in range(q):
            single = np.zeros((q, q))
            single[i, j] = 1
            singles += [single] * int(table[i, j])
    return np.array(singles)


def test_cohen_published() -> None:
    assert cohen_value(ABSTRACTORS)[0] == pytest.approx(0.7964094, abs=5e-8)
    assert cohen_se(ABSTRACTORS) == pytest.approx(0.05891072, abs=5e-9)
    found = cohen_kappa(pairs_of(ABSTRACTORS))
    assert found.interval == "asymptotic"
    assert found.low == pytest.approx(0.7964094 - z_of(0.95) * 0.05891072, abs=1e-6)
    assert (found.pairs, found.parts) == (100, 100)


@pytest.mark.parametrize("pair", AIAG)
def test_cohen_on_the_example_of_aiag(pair: tuple[str, str]) -> None:
    counts, published = AIAG[pair]
    assert round(cohen_value(np.array(counts, dtype=float))[0], 2) == published


def test_cohen_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    for size in (2, 3, 4):
        a, b = rng.integers(0, size, (2, 200))
        b = np.where(rng.random(200) < 0.6, a, b)
        table = np.zeros((size, size))
        np.add.at(table, (a, b), 1)
        assert cohen_value(table)[0] == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_cohen_standard_error_against_statsmodels() -> None:
    # statsmodels 0.15 cohens_kappa(...).std_kappa
    table = np.array([[20, 5, 2], [3, 30, 8], [1, 6, 25]], dtype=float)
    assert cohen_value(table)[0] == pytest.approx(0.6183788734544344, abs=1e-12)
    assert cohen_se(table) == pytest.approx(0.06666711022905053, abs=1e-12)


def test_fleiss_published() -> None:
    assert fleiss_kappa(TEXTBOOK).value == pytest.approx(0.20993, abs=5e-6)
    found = fleiss_kappa(GWET)
    assert found.value == pytest.approx(0.76117, abs=5e-6)
    assert found.se == pytest.approx(0.15302, abs=5e-6)
    assert found.parts == 11  # one unit was rated once


def test_fleiss_interval_covers_the_truth() -> None:
    """Simulated studies whose true kappa is known from a very large one."""
    rng = np.random.default_rng(2)

    def study(parts: int) -> np.ndarray:
        bad = rng.random(parts) < 0.4
        skill = rng.choice([0.98, 0.75], parts)
        right = rng.random((parts, 6)) < skill[:, None]
        ng = (right == bad[:, None]).sum(1).astype(float)
        return np.stack([6 - ng, ng], axis=1)

    truth = fleiss_kappa(study(200_000)).value
    assert truth is not None
    hits = 0
    for _ in range(400):
        found = fleiss_kappa(study(60))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 400 <= 0.985


def test_cohen_jackknife_covers_the_truth_where_pairs_repeat() -> None:
    """Three trials of one part are not three parts: the asymptotic formula would be far too narrow."""
    rng = np.random.default_rng(3)

    def study(parts: int) -> np.ndarray:
        bad = rng.random(parts) < 0.4
        hard = rng.random(parts) < 0.2
        wrong = hard & (rng.random(parts) < 0.6)  # the same mistake in every trial
        slips = rng.random((parts, 3)) < 0.03
        rating = (bad ^ wrong)[:, None] ^ slips
        tables = np.zeros((parts, 2, 2))
        for trial in range(3):
            np.add.at(tables, (np.arange(parts), rating[:, trial].astype(int), bad.astype(int)), 1)
        return tables

    truth = cohen_value(study(200_000).sum(0))[0]
    hits = naive = 0
    for _ in range(300):
        tables = study(50)
        found = cohen_kappa(tables)
        assert found.interval == "jackknife"
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
        half = z_of(0.95) * cohen_se(tables.sum(0))
        naive += abs(cohen_value(tables.sum(0))[0] - truth) <= half
    assert 0.90 <= hits / 300 <= 0.99
    assert naive / 300 < 0.85


def test_kappas_without_an_answer() -> None:
    one_category = np.array([[5.0, 0.0], [5.0, 0.0]])
    assert fleiss_kappa(one_category).value is None
    assert fleiss_kappa(np.array([[1.0, 0.0], [0.0, 1.0]])).value is None  # one rating each
    assert cohen_kappa(np.zeros((3, 2, 2))).value is None
    perfect = fleiss_kappa(np.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]))
    assert perfect.value == pytest.approx(1.0)
    assert perfect.low is None  # no disagreement tells nothing about the spread
    apart = np.array([[[0.0, 1.0], [1.0, 0.0]]] * 4)
    assert cohen_kappa(apart).value == pytest.approx(-1.0)


def test_wilson() -> None:
    # scipy.stats.binomtest(42, 50).proportion_ci(method="wilson")
    found = share(42, 50)
    assert (found.low, found.high) == (pytest.approx(0.7148578393696501), pytest.approx(0.916625793219666))
    assert share(0, 10).low == 0.0
    assert share(10, 10).high == 1.0
    assert share(0, 0).value is None
    with pytest.raises(ValueError, match="not a proportion"):
        share(3, 2)


def test_repeated_judgements_count_for_less() -> None:
    assert clustered_share([0, 3, 0, 3], [3, 3, 3, 3]).effective == pytest.approx(4.0)  # repeats tell nothing new
    assert clustered_share([0, 0, 0, 0], [3, 3, 3, 3]).effective == pytest.approx(4.0)  # nothing is known: be careful
    spread = clustered_share([1] * 30, [3] * 30)
    assert spread.effective == pytest.approx(90.0)
    single = clustered_share([1, 0, 0, 1, 1], [1] * 5)
    assert (single.low, single.high) == (share(3, 5).low, share(3, 5).high)
    assert clustered_share([], []).value is None


def test_clustered_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(4)
    hits = naive = 0
    for _ in range(600):
        rates = rng.beta(0.5, 2.0, 40)  # 0.2 on average, very different from part to part
        counts = rng.binomial(5, rates)
        found = clustered_share(list(counts), [5] * 40)
        plain = share(int(counts.sum()), 200)
        hits += (found.low or 0) <= 0.2 <= (found.high or 1)
        naive += (plain.low or 0) <= 0.2 <= (plain.high or 1)
    assert 0.91 <= hits / 600 <= 0.985
    assert naive / 600 < 0.88


@pytest.mark.parametrize("counts", [(3, 50, 20, 1000), (0, 20, 5, 500), (10, 10, 3, 9), (40, 60, 400, 900)])
def test_fisher_against_scipy(counts: tuple[int, int, int, int]) -> None:
    from scipy import stats

    k1, n1, k2, n2 = counts
    expected = stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]])[1]
    assert fisher_p(*counts) == pytest.approx(expected, rel=1e-6)


def test_kolmogorov_smirnov_against_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(5)
    for n, m, shift in ((60, 800, 0.0), (300, 500, 0.2), (40, 40, 0.8)):
        a, b = rng.normal(size=n), rng.normal(shift, 1, m)
        reference = stats.ks_2samp(a, b)
        distance = ks_distance(a, b)
        assert distance == pytest.approx(reference.statistic, abs=1e-12)
        assert 0.99 * reference.pvalue <= ks_p(distance, n, m) <= 1.3 * reference.pvalue
    assert ks_p(0.0, 10, 10) == 1.0


def test_stability_index() -> None:
    rng = np.random.default_rng(6)
    before = rng.normal(size=5000)
    assert stability_index(before, rng.normal(size=5000)) < 0.02
    assert 0.15 < stability_index(before, rng.normal(0.5, 1, 5000)) < 0.35
    assert stability_index(before, np.full(200, 9.0)) > 2
    assert stability_index(np.zeros(100), np.zeros(100)) == 0.0  # one value only
    assert stability_index(np.zeros(100), np.ones(100)) > 1
