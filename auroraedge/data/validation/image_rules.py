"""Checks of the images one by one: readable, of the annotated size, of one mode, boxes inside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from auroraedge.data.importers import Finding, RawItem, RawObject, Severity
from auroraedge.data.importers.types import GOOD
from auroraedge.data.validation.common import finding, item_classes, note
from auroraedge.data.validation.probe import Probe, probe_image

CLIP_PX = 2.0  # a box that leaves its image by no more is a rounding matter, and cut
TINY_PX = 3.0
_LEAST_CONTRAST = 1.5  # as in runtime.outcome: such a frame shows no part


def check_unreadable(items: Sequence[RawItem], probes: Sequence[Probe]) -> list[Finding]:
    bad = [(item, probe) for item, probe in zip(items, probes, strict=True) if probe.error]
    found = []
    if bad:
        found.append(
            Finding(
                severity=Severity.ERROR,
                code="unreadable-image",
                message=f"{len(bad)} image files cannot be read.",
                remedy="Restore them, or remove them and their annotations.",
                names=tuple(item.name for item, _ in bad),
            )
        )
    wrong = []
    for item in items:
        if item.reference is not None:
            golden = probe_image(item.reference)
            probe = probe_image(item.path)
            if golden.error or (not probe.error and (golden.width, golden.height) != (probe.width, probe.height)):
                wrong.append(item)
    if wrong:
        found.append(
            finding(
                Severity.ERROR,
                "reference-size",
                f"{len(wrong)} golden samples cannot be read or have another size than their image.",
                "Give an aligned golden sample of equal size.",
                wrong,
            )
        )
    return found


def check_sizes_and_modes(items: Sequence[RawItem], probes: Sequence[Probe]) -> list[Finding]:
    found = []
    wrong, captions = [], []
    for item, probe in zip(items, probes, strict=True):
        if item.width is not None and (item.width, item.height) != (probe.width, probe.height):
            turned = (item.height, item.width) == (probe.width, probe.height)
            wrong.append(item)
            captions.append(
                f"annotated {item.width}x{item.height}, the file has {probe.width}x{probe.height}"
                + (" (turned by its EXIF orientation?)" if turned else "")
            )
    if wrong:
        found.append(
            finding(
                Severity.ERROR,
                "size-mismatch",
                f"{len(wrong)} images have another size than their annotation says: the boxes lie elsewhere.",
                "Annotate the files as they are, or restore the annotated ones.",
                wrong,
                captions,
            )
        )
    modes = Counter(probe.mode for probe in probes)
    if len(modes) > 1:
        usual = modes.most_common(1)[0][0]
        odd = [item for item, probe in zip(items, probes, strict=True) if probe.mode != usual]
        what = ", ".join(f"{count} {mode}" for mode, count in modes.most_common())
        found.append(
            finding(
                Severity.WARNING,
                "mixed-modes",
                f"Images differ in colour mode: {what}.",
                "Take all parts with one camera and setting, or the model may learn the camera instead of the defect.",
                odd,
            )
        )
    by_mode: dict[str, set[str]] = defaultdict(set)
    for item, probe in zip(items, probes, strict=True):
        by_mode["good" if item_classes(item) == [GOOD] else "bad"].add(probe.mode)
    if len(modes) > 1 and by_mode["good"] and by_mode["bad"] and not by_mode["good"] & by_mode["bad"]:
        found.append(
            finding(
                Severity.ERROR,
                "mode-tells-class",
                f"Good parts are all {', '.join(sorted(by_mode['good']))}, defective ones all "
                f"{', '.join(sorted(by_mode['bad']))}: the colour mode alone tells them apart.",
                "Convert all images to one mode.",
            )
        )
    sizes = Counter((probe.width, probe.height) for probe in probes)
    if sizes:
        areas = sorted(w * h for w, h in sizes)
        if areas[-1] > 1.5 * areas[0]:
            what = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(4))
            found.append(
                finding(
                    Severity.WARNING,
                    "mixed-sizes",
                    f"Images have {len(sizes)} different sizes: {what}{', ...' if len(sizes) > 4 else ''}.",
                    "Fine where parts differ in size; else crop them alike, so that a defect has one scale.",
                )
            )
    flat = [item for item, p in zip(items, probes, strict=True) if p.thumbnail is not None and _is_flat(p)]
    if flat:
        found.append(
            finding(
                Severity.WARNING,
                "uniform-image",
                f"{len(flat)} images are almost uniform: they show no part.",
                "Remove them; the service answers REVIEW to such frames by rule.",
                flat,
            )
        )
    return found


def _is_flat(probe: Probe) -> bool:
    assert probe.thumbnail is not None
    return float(probe.thumbnail.std()) < _LEAST_CONTRAST


def check_boxes(items: Sequence[RawItem]) -> tuple[list[RawItem], list[Finding]]:
    """Items with usable boxes (slightly protruding ones cut to the image), and what is wrong with the others."""
    outside: list[RawItem] = []
    empty: list[RawItem] = []
    tiny: list[RawItem] = []
    where: dict[str, list[str]] = defaultdict(lambda: ["", "", ""])
    cut = boxes = 0
    clean: list[RawItem] = []
    for item in items:
        assert item.width is not None and item.height is not None
        kept = []
        for box in item.objects:
            boxes += 1
            x1, y1, x2, y2 = box.bbox
            text = f"{box.label} [{x1:g}, {y1:g}, {x2:g}, {y2:g}] in {item.width}x{item.height}"
            if not all(abs(v) < 1e9 for v in box.bbox) or x2 <= x1 or y2 <= y1:
                empty.append(item)
                where[item.name][0] = text
                continue
            over = max(-x1, -y1, x2 - item.width, y2 - item.height)
            if over > CLIP_PX:
                outside.append(item)
                where[item.name][1] = text
                continue
            cut += over > 0
            x1, y1 = max(x1, 0.0), max(y1, 0.0)
            x2, y2 = min(x2, float(item.width)), min(y2, float(item.height))
            if x2 <= x1 or y2 <= y1:
                empty.append(item)
                where[item.name][0] = text
                continue
            if min(x2 - x1, y2 - y1) < TINY_PX:
                tiny.append(item)
                where[item.name][2] = text
            kept.append(RawObject(label=box.label, bbox=(x1, y1, x2, y2)))
        clean.append(replace(item, objects=tuple(kept)))
    found = []
    for kind, severity, code, message, remedy in (
        (outside, Severity.ERROR, "box-outside", "boxes leave their image", "Correct the boxes, or the image's size."),
        (empty, Severity.ERROR, "box-empty", "boxes have no area", "Correct or remove them."),
        (
            tiny,
            Severity.WARNING,
            "box-tiny",
            f"boxes are narrower than {TINY_PX:g} pixels",
            "Draw them around the visible defect; so small a defect needs more magnification or tiles.",
        ),
    ):
        if kind:
            distinct = list({item.name: item for item in kind}.values())
            index = {"box-empty": 0, "box-outside": 1, "box-tiny": 2}[code]
            found.append(
                finding(
                    severity,
                    code,
                    f"{len(kind)} of {boxes} {message}.",
                    remedy,
                    distinct,
                    [where[item.name][index] for item in distinct],
                )
            )
    if cut:
        found.append(note("box-cut", f"{cut} boxes leave their image by at most {CLIP_PX:g} pixels and are cut."))
    return clean, found
