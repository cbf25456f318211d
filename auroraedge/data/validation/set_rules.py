"""Checks of the set as a whole: labels, copies, leakage between splits, amounts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from auroraedge.config import IMAGE_SIZE
from auroraedge.data.importers import Finding, RawItem, Severity, is_good_name
from auroraedge.data.importers.types import GOOD
from auroraedge.data.validation.common import finding, item_classes, note, pair_finding
from auroraedge.data.validation.duplicates import Likeness

MAX_LABELS = 64
FEW_PARTS, FEW_OF_CLASS, IMBALANCE = 20, 5, 20.0


def check_labels(items: Sequence[RawItem], labels: Sequence[str], known: Sequence[str], boxed: bool) -> list[Finding]:
    found = []
    if len(labels) > MAX_LABELS:
        found.append(
            finding(
                Severity.ERROR,
                "too-many-labels",
                f"{len(labels)} labels; a recipe has at most {MAX_LABELS}.",
                "Merge rare kinds.",
            )
        )
    new = [label for label in labels if label not in known]
    if new and known:
        old = [label for label in labels if label in known]
        found.append(
            note(
                "new-labels",
                f"New to the base model: {', '.join(new)}"
                + (f"; known: {', '.join(old)}." if old else ". The grounding head gets a row for each."),
            )
        )
    images = Counter(name for item in items for name in item_classes(item) if name in labels)
    rare = {label: images[label] for label in labels if images[label] < FEW_OF_CLASS}
    if rare:
        what = ", ".join(f"{label} {count}" for label, count in rare.items())
        found.append(
            finding(
                Severity.WARNING,
                "rare-label",
                f"Fewer than {FEW_OF_CLASS} images of: {what}.",
                "Label more of them, or merge them with a like kind.",
            )
        )
    if len(images) > 1 and max(images.values()) > IMBALANCE * min(images.values()):
        most, least = images.most_common()[0], images.most_common()[-1]
        found.append(
            finding(
                Severity.WARNING,
                "imbalance",
                f"Classes are uneven: {most[1]} images of {most[0]}, {least[1]} of {least[0]}.",
                "Rare kinds are drawn more often in training; more of them would still help most.",
            )
        )
    if boxed:
        bare = [i for i in items if not i.objects and item_classes(i) != [GOOD]]
        if bare:
            found.append(
                finding(
                    Severity.WARNING,
                    "defect-without-box",
                    f"{len(bare)} defective images have no box.",
                    "Draw boxes; without them they count for the verdict in val and test, and are not trained on.",
                    bare,
                )
            )
    named_good = sorted(label for label in labels if is_good_name(label))
    if named_good:
        found.append(
            finding(
                Severity.WARNING,
                "good-label",
                f"A label means 'good' but is used for defects: {', '.join(named_good)}.",
                "Remove those boxes, or rename the label.",
            )
        )
    return found


def check_duplicates(items: Sequence[RawItem], hashes: Sequence[str], likeness: Likeness) -> list[Finding]:
    found = []
    if likeness.exact:
        conflicting = [(a, b) for a, b in likeness.exact if item_classes(items[a]) != item_classes(items[b])]
        if conflicting:
            found.append(
                pair_finding(
                    Severity.ERROR,
                    "conflicting-duplicates",
                    f"{len(conflicting)} pairs of images have equal pixels and different labels.",
                    "Decide which label is right, and remove the other file.",
                    items,
                    conflicting,
                )
            )
        found.append(
            pair_finding(
                Severity.WARNING,
                "exact-duplicates",
                f"{len(likeness.exact)} images have the pixels of another one.",
                "Remove the copies; they stay in one split meanwhile.",
                items,
                likeness.exact,
            )
        )
    if likeness.near:
        pairs = [(a, b) for a, b, _ in sorted(likeness.near, key=lambda pair: -pair[2])]
        found.append(
            pair_finding(
                Severity.NOTE,
                "near-duplicates",
                f"{len(pairs)} pairs look alike (correlation of details above {likeness.threshold:g}) and stay in one "
                "split.",
                "Where file names tell the part, say so with --group-by.",
                items,
                pairs[:40],
            )
        )
    return found


def check_leakage(
    items: Sequence[RawItem], hashes: Sequence[str], likeness: Likeness, splits: Sequence[str]
) -> list[Finding]:
    found = []
    crossing = [(a, b) for a, b in likeness.exact if splits[a] != splits[b]]
    if crossing:
        found.append(
            pair_finding(
                Severity.ERROR,
                "leakage",
                f"{len(crossing)} images are in two splits: scores would be those of memory.",
                "Remove the copies, or let new splits be made with --resplit.",
                items,
                crossing,
            )
        )
    by_group: dict[int, set[str]] = defaultdict(set)
    for group, split in zip(likeness.groups, splits, strict=True):
        by_group[group].add(split)
    torn = {group for group, names in by_group.items() if len(names) > 1}
    pairs = [(a, b) for a, b, _ in likeness.near if splits[a] != splits[b]]
    if torn:
        known = {item.group for item, g in zip(items, likeness.groups, strict=True) if g in torn and item.group}
        what = f", {len(pairs)} pairs of near duplicates among them" if pairs else ""
        found.append(
            pair_finding(
                Severity.WARNING,
                "group-leakage",
                f"{len(torn)} groups of images that belong together are in several splits{what}"
                + (f" ({len(known)} named by the annotation)." if known else "."),
                "Scores may be too good; --resplit keeps each group in one split.",
                items,
                pairs[:20],
            )
        )
    return found


def check_amounts(items: Sequence[RawItem], labels: Sequence[str], split_note: str) -> list[Finding]:
    """Good parts, number of parts, and what each split lacks."""
    found = []
    train = [item for item in items if item.split == "train"]
    defective = [item for item in train if item_classes(item) != [GOOD]]
    good = [item for item in items if item_classes(item) == [GOOD]]
    if not labels:
        found.append(
            finding(
                Severity.ERROR,
                "no-defects",
                "There is no defective part: nothing can be learned.",
                "Add labelled ones.",
            )
        )
    elif not defective:
        found.append(finding(Severity.ERROR, "no-defects", "The train split has no defective part.", "Use --resplit."))
    if not good and len(labels) > 1 and not any(item.objects for item in items):
        found.append(
            note("no-ok-parts", "There are no OK parts: the model will tell kinds apart, and nothing will be OK.")
        )
    elif not good and not any(item.reference for item in items):
        found.append(
            finding(
                Severity.WARNING,
                "no-ok-parts",
                "There are no OK parts: overkill cannot be measured, and the verdict will not be calibrated.",
                "Add images of good parts; at least as many as defective ones.",
            )
        )
    if len(train) < 2:
        found.append(
            finding(Severity.ERROR, "too-few-parts", f"{len(train)} images to train on.", "Label at least 2 parts.")
        )
    elif len(items) < FEW_PARTS or "too few" in split_note:
        found.append(
            finding(
                Severity.WARNING,
                "too-few-parts",
                f"{len(items)} images, {len({i.group for i in items})} different parts. {split_note}".strip(),
                "docs/finetune.md shows what to expect of so few; label more.",
            )
        )
    missing = []
    for split in ("val", "test"):
        there = {name for item in items if item.split == split for name in item_classes(item)}
        if there:
            missing += [f"{label} ({split})" for label in labels if label not in there]
    if missing:
        found.append(
            finding(
                Severity.WARNING,
                "split-lacks-label",
                f"No image of: {', '.join(missing)}.",
                "Nothing is said there about these kinds; label more of them.",
            )
        )
    small = [
        i for i in items if i.width is not None and i.height is not None and max(i.width, i.height) < IMAGE_SIZE // 4
    ]
    if small:
        found.append(
            finding(
                Severity.WARNING,
                "small-images",
                f"{len(small)} images are smaller than {IMAGE_SIZE // 4} pixels.",
                f"The model sees {IMAGE_SIZE}x{IMAGE_SIZE} pixels; take larger pictures.",
                small,
            )
        )
    return found
