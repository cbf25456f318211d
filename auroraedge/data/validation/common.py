"""What the checks share: the class of an item, label names, findings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from auroraedge.data.importers import Example, Finding, RawItem, Severity
from auroraedge.data.importers.types import GOOD
from auroraedge.data.pack import GOOD_LABELS, PRESUMED_GOOD_LABELS


def item_classes(item: RawItem) -> list[str]:
    """'ok' for a good image; else the labels of its boxes, or its class."""
    if item.objects:
        return sorted({o.label for o in item.objects})
    if item.image_label in GOOD_LABELS | PRESUMED_GOOD_LABELS:
        return [GOOD]
    return [item.image_label]


def label_name(text: str) -> str:
    """A label that a recipe can carry: word characters, not starting with a digit."""
    cleaned = re.sub(r"[^\w-]+", "_", text.strip()).strip("_-")
    return ("defect_" + cleaned if not cleaned or cleaned[0].isdigit() else cleaned)[:48]


def note(code: str, message: str, names: Iterable[str] = ()) -> Finding:
    return Finding(severity=Severity.NOTE, code=code, message=message, names=tuple(names))


def finding(
    severity: Severity,
    code: str,
    message: str,
    remedy: str,
    items: Sequence[RawItem] = (),
    captions: Sequence[str] = (),
) -> Finding:
    return Finding(
        severity=severity,
        code=code,
        message=message,
        remedy=remedy,
        names=tuple(item.name for item in items),
        examples=tuple(
            Example(path=item.path, caption=f"{item.name}: {caption}" if caption else item.name, objects=item.objects)
            for item, caption in zip(items, captions or [""] * len(items), strict=True)
        ),
    )


def pair_finding(
    severity: Severity, code: str, message: str, remedy: str, items: Sequence[RawItem], pairs: Sequence[tuple[int, int]]
) -> Finding:
    shown = [index for pair in pairs for index in pair]
    captions = [f"{'first' if i % 2 == 0 else 'second'} of pair {i // 2 + 1}" for i in range(len(shown))]
    return finding(severity, code, message, remedy, [items[index] for index in shown], captions)
