"""What thresholds would do to stored results: escape, overkill and REVIEW rates, with people's reviews as truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from auroraedge.inspection.recipe import Thresholds
from auroraedge.report.statistics import Share, wilson
from service.ui.queries import Scores

_BINS = 40


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Rates at one pair of thresholds.

    escape: reviewed as NG, would be OK. overkill: reviewed as OK, would be NG. review: of all results, would go to a
    person. counts: results that would get each verdict.
    """

    escape: Share
    overkill: Share
    review: Share
    counts: dict[str, int]


def effect(scores: Scores, thresholds: Thresholds) -> Effect:
    """Applies the rule of recipe.Thresholds to stored probabilities."""
    ng = scores.p >= thresholds.ng_above
    ok = (scores.p < thresholds.ok_below) & ~ng & ~scores.forced
    review = ~ng & ~ok
    bad, good = scores.truth == 1, scores.truth == 0
    return Effect(
        escape=wilson(int((ok & bad).sum()), int(bad.sum())),
        overkill=wilson(int((ng & good).sum()), int(good.sum())),
        review=wilson(int(review.sum()), len(scores.p)),
        counts={"OK": int(ok.sum()), "NG": int(ng.sum()), "REVIEW": int(review.sum())},
    )


def _share(share: Share) -> dict[str, Any]:
    return {"count": share.count, "total": share.total, "value": share.value, "low": share.low, "high": share.high}


def as_json(found: Effect) -> dict[str, Any]:
    return {
        "escape": _share(found.escape),
        "overkill": _share(found.overkill),
        "review": _share(found.review),
        "counts": found.counts,
    }


def histogram(scores: Scores) -> dict[str, list[int]]:
    """Results by P(NG) in equal bins of 0..1: reviewed as OK, reviewed as NG, and not decided by a person."""
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    return {
        name: np.histogram(scores.p[scores.truth == value], edges)[0].tolist()
        for name, value in (("ok", 0), ("ng", 1), ("unknown", -1))
    }


def boxes_hidden(confidences: dict[str, np.ndarray], minimum: dict[str, float]) -> dict[str, list[int]]:
    """By label: stored defects that a higher confidence limit would hide, and all of them."""
    return {
        label: [int((values < minimum.get(label, 0.0)).sum()), len(values)] for label, values in confidences.items()
    }
