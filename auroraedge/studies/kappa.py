"""Agreement beyond chance: Cohen's and Fleiss' kappa with intervals.

Legend: n parts (subjects), r ratings of a part, q categories. Ratings are integers 0..q-1.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from auroraedge.studies.proportions import z_of

Table = NDArray[np.float64]
Method = Literal["cohen", "fleiss"]
Interval = Literal["asymptotic", "jackknife", "none"]


class Kappa(BaseModel):
    """A kappa with its interval, cut at -1 and 1. `value` is None where it is undefined: one category only.

    agreement: share of pairs that agree, chance: what would agree by chance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | None
    se: float | None = None
    low: float | None = None
    high: float | None = None
    agreement: float | None = None
    chance: float | None = None
    pairs: int = 0
    parts: int = 0
    method: Method
    interval: Interval = "none"


def _kappa(agreement: float, chance: float) -> float:
    return math.nan if chance >= 1 - 1e-12 else (agreement - chance) / (1 - chance)


def cohen_value(table: Table) -> tuple[float, float, float]:
    """Kappa (nan where undefined), observed agreement and chance agreement of a q x q table of counts or weights."""
    p = table / table.sum()
    agreement = float(np.trace(p))
    chance = float(p.sum(1) @ p.sum(0))
    return _kappa(agreement, chance), agreement, chance


def cohen_se(table: Table) -> float:
    """Large-sample standard error of Cohen's kappa for independent pairs.

    Source: Fleiss, Cohen and Everitt, "Large sample standard errors of kappa and weighted kappa", Psychological
    Bulletin 72 (1969), eq. 13.
    """
    n = float(table.sum())
    p = table / n
    kappa, agreement, chance = cohen_value(table)
    if math.isnan(kappa):
        return math.nan
    rows, columns = p.sum(1), p.sum(0)
    # Entry (i, j): how often the first says j plus how often the second says i.
    sums = columns[:, None] + rows[None, :]
    diagonal = np.diag(p) @ ((1 - chance) - np.diag(sums) * (1 - agreement)) ** 2
    off = (p * sums**2).sum() - np.diag(p) @ np.diag(sums) ** 2
    rest = (agreement * chance - 2 * chance + agreement) ** 2
    variance = (diagonal + (1 - agreement) ** 2 * off - rest) / (n * (1 - chance) ** 4)
    return math.sqrt(max(0.0, variance))


def _bounded(
    value: float,
    se: float,
    level: float,
    method: Literal["cohen", "fleiss"],
    interval: Literal["asymptotic", "jackknife"],
) -> dict[str, object]:
    if math.isnan(value):
        return {"value": None, "method": method}
    # An interval of no width would claim certainty: the formulas know nothing when there was no disagreement at all.
    if math.isnan(se) or se < 1e-12:
        return {"value": value, "method": method}
    half = z_of(level) * se
    bounds = {"low": max(-1.0, value - half), "high": min(1.0, value + half)}
    return {"value": value, "se": se, **bounds, "method": method, "interval": interval}


def cohen_kappa(tables: NDArray[np.float64], level: float = 0.95) -> Kappa:
    """Cohen's kappa of the pairs of all parts together. tables: [n, q, q], the pairs of each part.

    With one pair a part the interval is the asymptotic one. Several pairs of a part are not independent: then it comes
    from the jackknife, which leaves out one part at a time. Source: Cohen, "A coefficient of agreement for nominal
    scales", Educational and Psychological Measurement 20 (1960); Efron and Stein, "The jackknife estimate of variance",
    Annals of Statistics 9 (1981).
    """
    used = tables[tables.sum((1, 2)) > 0]
    if not len(used):
        return Kappa(value=None, method="cohen")
    total = used.sum(0)
    value, agreement, chance = cohen_value(total)
    if float(used.sum((1, 2)).max()) <= 1:
        found = _bounded(value, cohen_se(total), level, "cohen", "asymptotic")
    else:
        left = np.array([cohen_value(total - table)[0] for table in used]) if len(used) > 1 else np.array([math.nan])
        found = _bounded(value, _jackknife_se(left), level, "cohen", "jackknife")
    return Kappa(agreement=agreement, chance=chance, pairs=round(float(total.sum())), parts=len(used), **found)  # type: ignore[arg-type]


def _jackknife_se(left: NDArray[np.float64]) -> float:
    n = len(left)
    if n < 2 or np.isnan(left).any():
        return math.nan
    return math.sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))


def fleiss_kappa(counts: NDArray[np.float64], level: float = 0.95) -> Kappa:
    """Fleiss' kappa. counts: [n, q], how often each part was put into each category; parts may differ in ratings.

    Sources: Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76 (1971); the
    variance, which also holds where kappa is not zero, and parts with different numbers of ratings: Gwet, "Handbook of
    Inter-Rater Reliability", 4th ed. (2014), 5.2 and 5.4.
    """
    r = counts.sum(1)
    counts, r = counts[r > 0], r[r > 0]
    several = r >= 2
    if not several.any():
        return Kappa(value=None, method="fleiss")
    n, n_several = len(r), int(several.sum())
    prevalence = (counts / r[:, None]).mean(0)
    chance = float((prevalence**2).sum())
    within = np.zeros(n)
    within[several] = ((counts * (counts - 1)).sum(1)[several]) / (r[several] * (r[several] - 1))
    agreement = float(within[several].mean())
    value = _kappa(agreement, chance)
    facts = {
        "agreement": agreement,
        "chance": chance,
        "pairs": round(float((r * (r - 1) / 2).sum())),
        "parts": n_several,
    }
    if math.isnan(value):
        return Kappa(value=None, method="fleiss", **facts)  # type: ignore[arg-type]
    se = math.nan
    if n > 1:
        # Each part's own contribution to kappa; parts with one rating tell about the prevalence alone.
        own = np.where(several, n / n_several * (within - chance) / (1 - chance), 0.0)
        own_chance = (counts @ prevalence) / r
        linear = own - 2 * (1 - value) * (own_chance - chance) / (1 - chance)
        se = math.sqrt(float(((linear - value) ** 2).sum()) / (n * (n - 1)))
    return Kappa(**facts, **_bounded(value, se, level, "fleiss", "asymptotic"))  # type: ignore[arg-type]
