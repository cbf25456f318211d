"""Figures from raw answers, with intervals over parts and seeds, and paired differences between variants.

A figure is a function of one weight an image: arrays [R, n] give R replicates at once. Whole groups (parts, places) are
drawn with replacement within their set, as in auroraedge.evaluate.metrics.cluster_bootstrap, and seeds with
replacement too: the interval covers other parts and, as far as three seeds tell, other runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auroraedge.train.ablation.scoring import Asked

Array = NDArray[np.float64]
# Sides in patches of the view; a patch is 16 of 256 pixels.
SIZES = {"small": (0.0, 1.4), "medium": (1.4, 2.0), "large": (2.0, 99.0)}
FALSE_ALARMS = 0.10
HIT_IOU = 0.33
MEASURES = {
    "presence": "is a label there: area under the ROC curve, mean over labels",
    "verdict": "is any defect there: area under the ROC curve, mean over sets",
    "class": "class of a steel strip: accuracy",
    "recall": "labels found at 10 % false alarms",
    "recall_small": "the same, largest defect of the label under 1.4 patches (22 px of 256)",
    "recall_medium": "1.4 to 2 patches",
    "recall_large": "from 2 patches (32 px)",
    "located": "first box named for a label that is there: IoU > 0.33 with one of its defects",
    "count": "number of a label that is there: exactly right",
}


def weighted_auc(truth: NDArray[np.bool_], score: Array, weights_Rm: Array) -> Array:
    """P(a positive scores above a negative), ties half, for each row of weights; nan where a kind is missing."""
    values, place = np.unique(score, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    sums = [np.add.reduceat((weights_Rm * kind)[:, order], starts, axis=1) for kind in (truth, ~truth)]
    positive, negative = sums
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.divide((positive * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _known_mean(values_KR: Array) -> Array:
    """[R] mean over what is defined; nan where nothing is."""
    known = ~np.isnan(values_KR)
    total = np.where(known, values_KR, 0.0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(axis=0))


def _share(hit: NDArray[np.bool_], weights_Rm: Array) -> Array:
    total = weights_Rm.sum(1)
    return np.divide(weights_Rm @ hit.astype(float), total, out=np.full(len(total), np.nan), where=total > 0)


def figures(asked: Asked, scores: dict[str, list[float]], weights_Rn: Array) -> dict[str, Array]:
    """Every measure that the questions allow, [R] each."""
    image = np.array([row[0] for row in asked.exists])
    label = np.array([row[1] for row in asked.exists])
    truth = np.array([row[2] for row in asked.exists], dtype=bool)
    side = np.array([row[3] for row in asked.exists])
    score = np.array(scores["exists"])
    sets = np.array(asked.sets)
    weights_Rm = weights_Rn[:, image]
    found: dict[str, Array] = {}
    each = [weighted_auc(truth[label == k], score[label == k], weights_Rm[:, label == k]) for k in np.unique(label)]
    found["presence"] = _known_mean(np.stack(each))
    boxed = [name for name in dict.fromkeys(asked.sets) if name != "steel_strip_xsdd"]
    highest = np.full(len(sets), -np.inf)
    np.maximum.at(highest, image, score)
    defective = np.array(asked.defective)
    judged = [
        weighted_auc(defective[sets == k], highest[sets == k], weights_Rn[:, sets == k])
        for k in boxed
        if 0 < defective[sets == k].sum() < (sets == k).sum()
    ]
    if judged:
        found["verdict"] = _known_mean(np.stack(judged))
    strips = np.flatnonzero(sets == "steel_strip_xsdd")
    if len(strips):
        right = [bool(truth[image == i][score[image == i].argmax()]) for i in strips]
        found["class"] = _share(np.array(right), weights_Rn[:, strips])
    # The threshold is that of all negatives of the set; replicates keep it, as a line would.
    caught = np.zeros(len(truth), dtype=bool)
    for name in boxed:
        own = sets[image] == name
        caught[own] = score[own] > np.quantile(score[own & ~truth], 1 - FALSE_ALARMS)
    there = truth & np.isin(sets[image], boxed)
    found["recall"] = _share(caught[there], weights_Rm[:, there])
    for size, (low, high) in SIZES.items():
        chosen = there & (side >= low) & (side < high)
        if chosen.any():
            found[f"recall_{size}"] = _share(caught[chosen], weights_Rm[:, chosen])
    if asked.there:
        owner = np.array([row[0] for row in asked.there])
        number = np.array([row[2] for row in asked.there])
        if "placed" in scores:
            found["located"] = _share(np.array(scores["placed"]) > HIT_IOU, weights_Rn[:, owner])
        found["count"] = _share(np.array(scores["counted"]) == number, weights_Rn[:, owner])
    return found


def draws(asked: Asked, replicates: int, seed: int = 0) -> Array:
    """Weights [replicates, n]: whole groups drawn with replacement within each set."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((replicates, len(asked.groups)))
    groups, sets = np.array(asked.groups), np.array(asked.sets)
    for name in dict.fromkeys(asked.sets):
        own = np.flatnonzero(sets == name)
        names, member = np.unique(groups[own], return_inverse=True)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
        weights[:, own] = drawn[:, member]
    return weights


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure over seeds with its 95 % interval, and the figure of each seed."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def clear(self) -> bool:
        """For a difference: the interval excludes 0 and no seed says otherwise."""
        one_sign = all(v > 0 for v in self.seeds) or all(v < 0 for v in self.seeds)
        return one_sign and (self.low > 0 or self.high < 0)


def _figure(exact_S: Array, replicates_SR: Array, picks_RS: NDArray[np.int64]) -> Figure:
    mixed_R = replicates_SR[picks_RS, np.arange(picks_RS.shape[0])[:, None]].mean(axis=1)
    known = mixed_R[~np.isnan(mixed_R)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Figure(value=float(exact_S.mean()), low=float(low), high=float(high), seeds=tuple(map(float, exact_S)))


def compare(
    asked: Asked, runs: dict[str, dict[int, dict[str, list[float]]]], base: str, replicates: int = 1000
) -> tuple[dict[str, dict[str, Figure]], dict[str, dict[str, Figure]]]:
    """(figures by variant and measure, differences from `base` by variant and measure).

    runs: raw scores by variant and seed. Differences pair the same seed and the same drawn parts; only seeds that both
    have are compared.
    """
    weights = draws(asked, replicates)
    ones = np.ones((1, len(asked.groups)))
    exact = {v: {s: figures(asked, raw, ones) for s, raw in seeds.items()} for v, seeds in runs.items()}
    drawn = {v: {s: figures(asked, raw, weights) for s, raw in seeds.items()} for v, seeds in runs.items()}
    rng = np.random.default_rng(1)
    own: dict[str, dict[str, Figure]] = {}
    against: dict[str, dict[str, Figure]] = {}
    for variant, seeds in runs.items():
        order = sorted(seeds)
        picks = rng.integers(len(order), size=(replicates, len(order)))
        own[variant] = {
            m: _figure(
                np.array([exact[variant][s][m][0] for s in order]),
                np.stack([drawn[variant][s][m] for s in order]),
                picks,
            )
            for m in exact[variant][order[0]]
        }
        shared = [s for s in order if s in runs.get(base, {})]
        if variant == base or not shared:
            continue
        picks = rng.integers(len(shared), size=(replicates, len(shared)))
        against[variant] = {
            m: _figure(
                np.array([exact[variant][s][m][0] - exact[base][s][m][0] for s in shared]),
                np.stack([drawn[variant][s][m] - drawn[base][s][m] for s in shared]),
                picks,
            )
            for m in exact[variant][shared[0]]
            if m in exact[base][shared[0]]
        }
    return own, against
