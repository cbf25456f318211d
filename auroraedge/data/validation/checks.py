"""What is wrong with a dataset, and what is decided about it, before an hour is spent on training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from auroraedge.data.importers import Finding, RawDataset, RawItem, RawObject, Severity
from auroraedge.data.importers.types import DEFECTIVE, GOOD
from auroraedge.data.pack import GOOD_LABELS, PRESUMED_GOOD_LABELS
from auroraedge.data.validation.common import item_classes, label_name, note
from auroraedge.data.validation.duplicates import find_likeness
from auroraedge.data.validation.image_rules import check_boxes, check_sizes_and_modes, check_unreadable
from auroraedge.data.validation.probe import probe_all
from auroraedge.data.validation.set_rules import check_amounts, check_duplicates, check_labels, check_leakage
from auroraedge.data.validation.splits import SPLIT_NAMES, plan_splits
from auroraedge.errors import DatasetError

_LABEL = re.compile(r"^[^\W\d][\w-]{0,47}$")


@dataclass(frozen=True, kw_only=True)
class CheckedDataset:
    """A dataset after the checks: usable items with split and group, and all findings.

    task: 'inspect' where there are boxes, else 'classify'. labels: of defects, by name. widths and heights are set in
    every item. likeness: what was found alike.
    """

    raw: RawDataset
    items: tuple[RawItem, ...]
    labels: tuple[str, ...]
    task: str
    findings: tuple[Finding, ...]
    split_note: str
    modes: dict[str, int]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class ('ok' or the first label of a defective one)."""
        found: dict[str, dict[str, int]] = {name: {} for name in SPLIT_NAMES}
        for item in self.items:
            row = found[item.split or "train"]
            for name in item_classes(item):
                row[name] = row.get(name, 0) + 1
        return {name: row for name, row in found.items() if row}


def check_dataset(
    dataset: RawDataset,
    *,
    known_labels: Sequence[str] = (),
    group_pattern: str | None = None,
    resplit: bool = False,
    seed: int = 0,
    each: Callable[[], None] = lambda: None,
) -> CheckedDataset:
    """Runs every check. known_labels: those that the base model names. group_pattern: a regular expression whose first
    group, or whole match, in an image's name tells the part. each: called after every image read.

    Raises DatasetError for a pattern that is none.
    """
    findings: list[Finding] = list(dataset.findings)
    items, renamed = _with_label_names(dataset.items)
    if renamed:
        what = ", ".join(f"'{old}' -> {new}" for old, new in renamed.items())
        findings.append(note("label-renamed", f"Labels are written with word characters: {what}."))
    items = _grouped(items, group_pattern)
    probes = probe_all(items, each)
    findings += check_unreadable(items, probes)
    usable = [(item, probe) for item, probe in zip(items, probes, strict=True) if not probe.error]
    items, probes = [item for item, _ in usable], [probe for _, probe in usable]
    findings += check_sizes_and_modes(items, probes)
    items = [replace(i, width=p.width, height=p.height) for i, p in zip(items, probes, strict=True)]
    items, found = check_boxes(items)
    findings += found
    boxed = any(item.objects for item in items)
    labels = sorted(
        {name for item in items for name in item_classes(item)} - {GOOD} - ({DEFECTIVE} if boxed else set())
    )
    findings += check_labels(items, labels, known_labels, boxed)
    split_note, modes = "", Counter(probe.mode for probe in probes)
    if items:
        thumbnails = [probe.thumbnail for probe in probes if probe.thumbnail is not None]
        hashes = [probe.pixels_sha256 for probe in probes]
        likeness = find_likeness(hashes, thumbnails, [item.group for item in items])
        plan = plan_splits(
            [item.split for item in items],
            likeness.groups,
            [item_classes(item)[0] for item in items],
            good=GOOD,
            seed=seed,
            resplit=resplit,
        )
        split_note = plan.note
        findings += check_duplicates(items, hashes, likeness)
        if not plan.made or not resplit:
            findings += check_leakage(items, hashes, likeness, plan.splits)
        items = [
            replace(item, split=split, group=f"g{group:05d}")
            for item, split, group in zip(items, plan.splits, likeness.groups, strict=True)
        ]
        findings += check_amounts(items, labels, plan.note)
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return CheckedDataset(
        raw=dataset,
        items=tuple(items),
        labels=tuple(labels),
        task="inspect" if boxed else "classify",
        findings=tuple(findings),
        split_note=split_note,
        modes=dict(modes),
    )


def _with_label_names(items: Sequence[RawItem]) -> tuple[list[RawItem], dict[str, str]]:
    """Items whose labels a recipe can carry, and what was renamed."""
    renamed: dict[str, str] = {}

    def name(text: str) -> str:
        if _LABEL.match(text) or text in GOOD_LABELS | PRESUMED_GOOD_LABELS:
            return text
        return renamed.setdefault(text, label_name(text))

    found = [
        replace(
            item,
            image_label=name(item.image_label),
            objects=tuple(RawObject(label=name(o.label), bbox=o.bbox) for o in item.objects),
        )
        for item in items
    ]
    return found, renamed


def _grouped(items: Sequence[RawItem], pattern: str | None) -> list[RawItem]:
    if pattern is None:
        return list(items)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"'{pattern}' is no regular expression: {error}.", field="group-by") from error
    found = []
    for item in items:
        match = compiled.search(item.name)
        if match is None:
            raise DatasetError(
                f"'{item.name}' does not match the pattern '{pattern}'.",
                field="group-by",
                remedy="Give a pattern that finds the part in every image's name.",
            )
        found.append(replace(item, group=next((g for g in match.groups() if g), match.group(0))))
    return found
