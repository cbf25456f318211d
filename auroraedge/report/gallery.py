"""The pictures of the page: small JPEGs as data URIs under a limit of bytes, boxes as a layer above them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from markupsafe import Markup

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.palette import LabelStyle
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.report import charts
from auroraedge.report.statistics import Entry, worst_defects, worst_first

_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """What one page holds at most, so that it opens on an office PC; the files beside it hold everything."""

    pictures_ng: int = 60
    pictures_review: int = 60
    pictures_ok: int = 12
    picture_px: int = 560
    pictures_mb: float = 12.0
    table_rows: int = 5000


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture of the gallery. `number`: its row in the table."""

    number: int
    entry: Entry
    image_uri: str
    reference_uri: str | None
    overlay: Markup
    defects: list[Defect]
    width: int
    height: int

    @property
    def result(self) -> InspectionResult:
        return self.entry.result

    @property
    def by_label(self) -> list[list[Defect]]:
        """The defects, those of one label together, the worst label first."""
        groups: dict[str, list[Defect]] = {}
        for defect in self.defects:
            groups.setdefault(defect.label, []).append(defect)
        return list(groups.values())

    @property
    def alt(self) -> str:
        found = ", ".join(f"{d.label} {d.confidence:.0%}" for d in self.defects[:6]) or "no defects"
        return f"{self.entry.item.name}: {self.result.verdict.value}, {found}"


@dataclass(kw_only=True)
class Section:
    """The pictures of one verdict. `total`: images with this verdict, shown or not."""

    verdict: Verdict
    total: int
    cards: list[Card] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def thumbnail(image: np.ndarray, longest: int) -> bytes:
    """JPEG of uint8 RGB [H, W, 3] whose long side is at most `longest` pixels; never enlarged."""
    h, w = image.shape[:2]
    scale = longest / max(h, w)
    if scale < 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return data.tobytes()


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


class _Changed(Exception):
    """The file is no longer the one that was inspected."""


def _pictures(entry: Entry, longest: int) -> tuple[bytes, bytes | None]:
    content = entry.item.path.read_bytes()
    if entry.result.image_sha256 and hashlib.sha256(content).hexdigest() != entry.result.image_sha256:
        raise _Changed
    picture = thumbnail(decode_image(content).pixels, longest)
    golden = None
    if entry.result.reference_used and entry.item.reference is not None:
        golden = thumbnail(decode_image(entry.item.reference, field="reference").pixels, longest)
    return picture, golden


def build_gallery(
    entries: Sequence[Entry], styles: Mapping[str, LabelStyle], limits: PageLimits | None = None
) -> list[Section]:
    """NG and REVIEW, worst first, then the passed images closest to the limit; ERROR has no pictures.

    Reads the files again. One that has changed since or is gone is named in `Section.unreadable`, not shown.
    """
    limits = limits or PageLimits()
    numbers = {id(entry): number for number, entry in enumerate(entries, start=1)}
    room = limits.pictures_mb * 1e6
    sections = []
    plan = (
        (Verdict.NG, limits.pictures_ng, 0.55),
        (Verdict.REVIEW, limits.pictures_review, 0.9),
        (Verdict.OK, limits.pictures_ok, 1.0),
    )
    used = 0.0
    for verdict, most, share in plan:
        chosen = worst_first(entry for entry in entries if entry.result.verdict is verdict)
        section = Section(verdict=verdict, total=len(chosen))
        for entry in chosen[:most]:
            if used >= room * share:
                break
            try:
                picture, golden = _pictures(entry, limits.picture_px)
            except (OSError, AuroraEdgeError, _Changed):
                section.unreadable.append(entry.item.name)
                continue
            # Base64 writes four characters for three bytes.
            used += (len(picture) + len(golden or b"")) * 4 / 3
            result = entry.result
            section.cards.append(
                Card(
                    number=numbers[id(entry)],
                    entry=entry,
                    image_uri=_uri(picture),
                    reference_uri=_uri(golden) if golden else None,
                    overlay=charts.boxes_overlay(result.image_width, result.image_height, result.defects, styles),
                    defects=worst_defects(result.defects),
                    width=result.image_width,
                    height=result.image_height,
                )
            )
        sections.append(section)
    return sections
