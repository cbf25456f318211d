"""Exact and near duplicates: images of one part, or of one place, that must not be in two splits.

Method. Two files with equal pixels are exact duplicates. For near duplicates every image is shrunk to 64x64 grey, what
is coarser than about a sixteenth of the image is taken away (a Gaussian of 4 px), and the mean of all images of the set
is subtracted after each was scaled to unit variance: parts that lie alike before the camera have their common outline
removed, what remains is the image's own. Images whose remainders correlate above a threshold are near duplicates, and
chains of them are one group. The threshold starts at 0.6 and rises in steps until no group that only looks join is
larger than a tenth of the set (at most to 0.95), because a chain through a uniform set would join everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95)
LARGEST_SHARE = 0.1
_SIGMA_PX = 4.0
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """groups: a number an image; images of one number belong together. exact, near: pairs of indices."""

    groups: tuple[int, ...]
    exact: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int, float], ...]
    threshold: float


def descriptors(thumbnails: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32 [n, 4096] of unit length: each image's own detail (see the module). Rows without any are zero."""
    rows = np.empty((len(thumbnails), thumbnails[0].size), dtype=np.float32)
    for index, thumbnail in enumerate(thumbnails):
        detail = np.log1p(thumbnail)
        detail = detail - cv2.GaussianBlur(detail, (0, 0), _SIGMA_PX)
        rows[index] = (detail / max(float(detail.std()), 1e-3)).reshape(-1)
    if len(rows) >= 8:  # the mean of a handful is their content, not what they share
        rows -= rows.mean(axis=0)
    rows -= rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > 1e-3, rows / np.maximum(length, 1e-3), 0.0).astype(np.float32)


def find_likeness(
    hashes: Sequence[str], thumbnails: Sequence[NDArray[np.float32]], known: Sequence[str | None]
) -> Likeness:
    """Groups of images that show one part. known: the group that the annotation gives, or None; it always holds."""
    count = len(hashes)
    by_hash: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(hashes):
        by_hash[digest].append(index)
    exact = tuple((found[0], other) for found in by_hash.values() for other in found[1:])
    pairs = _alike(thumbnails, THRESHOLDS[0]) if count > 1 else []
    by_group: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(known):
        if group is not None:
            by_group[group].append(index)
    given = [(found[0], other) for found in by_group.values() for other in found[1:]]
    chosen = THRESHOLDS[-1]
    for threshold in THRESHOLDS:
        looks = _components(count, [(a, b) for a, b, r in pairs if r >= threshold])
        if max(np.bincount(looks), default=0) <= max(3, LARGEST_SHARE * count):
            chosen = threshold
            break
    near = tuple((a, b, r) for a, b, r in pairs if r >= chosen and hashes[a] != hashes[b])
    joined = _components(count, [*exact, *given, *((a, b) for a, b, _ in near)])
    return Likeness(groups=tuple(int(g) for g in joined), exact=exact, near=near, threshold=chosen)


def _alike(thumbnails: Sequence[NDArray[np.float32]], least: float) -> list[tuple[int, int, float]]:
    """Pairs (a < b) whose details correlate by at least `least`."""
    rows = descriptors(thumbnails)
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(rows), _BLOCK):
        correlation = rows[start : start + _BLOCK] @ rows[start:].T
        first, second = np.nonzero(correlation >= least)
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if b > a:
                found.append((start + a, start + b, float(correlation[a, b])))
    return found


def _components(count: int, edges: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Connected components [count], numbered by their first member (union-find)."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for a, b in edges:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    roots = [root(index) for index in range(count)]
    number = {r: i for i, r in enumerate(dict.fromkeys(roots))}
    return np.array([number[r] for r in roots], dtype=np.int64)
