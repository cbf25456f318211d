"""Splits by group: images of one part stay together, and every kind of defect is in every split where it can be.

Method. Each of 2,000 seeded draws deals the groups out at random with the wanted shares; the draw whose splits come
nearest to the wanted number of images of every class wins. A class that a split lacks altogether costs extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLIT_NAMES = ("train", "val", "test")
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
DRAWS = 2000
# Fewer groups, or groups with a defect, than this: nothing is held back for val, everything is needed for training.
LEAST_GROUPS, LEAST_DEFECTIVE_GROUPS = 12, 6


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """splits: train, val or test an image. note: how they came about, in words. made: False where all were given."""

    splits: tuple[str, ...]
    note: str
    made: bool


def plan_splits(
    given: Sequence[str | None],
    groups: Sequence[int],
    classes: Sequence[str],
    *,
    good: str,
    seed: int = 0,
    resplit: bool = False,
) -> SplitPlan:
    """Splits [n] from what the annotation gives [n], the group of each image [n] and its class [n] (`good` or other).

    Given splits stay, unless `resplit` or only one is given. A missing val or test is taken out of train, group by
    group. Too few groups: nothing is held back, and the note says so.
    """
    present = [name for name in SPLIT_NAMES if name in given]
    if resplit or len(present) < 2 or "train" not in present:
        pool = list(range(len(given)))
        wanted = dict(SHARES)
        splits: list[str] = ["train"] * len(given)
        how = "made by group (same part or near duplicate)"
    else:
        splits = [split or "train" for split in given]
        wanted = {"train": 1 - sum(SHARES[n] for n in ("val", "test") if n not in present)}
        wanted |= {n: SHARES[n] for n in ("val", "test") if n not in present}
        pool = [i for i, split in enumerate(splits) if split == "train"]
        if len(wanted) == 1:
            return SplitPlan(splits=tuple(splits), note="Splits as given.", made=False)
        how = f"given; {' and '.join(n for n in wanted if n != 'train')} taken out of train by group"
    members = sorted({groups[i] for i in pool})
    defective = {groups[i] for i in pool if classes[i] != good}
    if len(members) < LEAST_GROUPS or len(defective) < LEAST_DEFECTIVE_GROUPS:
        held = " and ".join(n for n in ("val", "test") if n in wanted)
        return SplitPlan(
            splits=tuple(splits),
            note=f"{len(members)} groups, {len(defective)} of them with a defect, are too few to hold back {held}.",
            made=True,
        )
    assigned = _best_draw(pool, groups, classes, wanted, seed)
    for index in pool:
        splits[index] = assigned[groups[index]]
    return SplitPlan(splits=tuple(splits), note=f"Splits {how}, the best of {DRAWS} draws (seed {seed}).", made=True)


def _best_draw(
    pool: Sequence[int], groups: Sequence[int], classes: Sequence[str], wanted: dict[str, float], seed: int
) -> dict[int, str]:
    """The split of each group."""
    members = sorted({groups[i] for i in pool})
    names = sorted({classes[i] for i in pool})
    counts = np.zeros((len(members), len(names)))
    for i in pool:
        counts[members.index(groups[i]), names.index(classes[i])] += 1
    shares = np.array(list(wanted.values())) / sum(wanted.values())
    target = counts.sum(0)[None, :] * shares[:, None]
    rng = np.random.default_rng(seed)
    best, least = None, np.inf
    for _ in range(DRAWS):
        drawn = rng.choice(len(shares), size=len(members), p=shares)
        found = np.stack([counts[drawn == s].sum(0) for s in range(len(shares))])
        cost = (np.abs(found - target) / (target + 1.0)).sum() + 2.0 * ((found == 0) & (target >= 0.5)).sum()
        if cost < least:
            best, least = drawn, cost
    assert best is not None
    split_names = list(wanted)
    return {group: split_names[int(s)] for group, s in zip(members, best, strict=True)}
