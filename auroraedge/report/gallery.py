"""The pictures of the page: small JPEGs as data URIs under a limit of bytes, boxes as a layer above them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from markupsafe import Markup

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.palette import LabelStyle
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.report import charts
from auroraedge.report.pictures import PictureGoneError, Pictures
from auroraedge.report.statistics import Entry, Figures, worst_defects

_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """What one page holds at most, so that it opens on an office PC; the files beside it hold everything."""

    pictures_ng: int = 60
    pictures_review: int = 60
    pictures_ok: int = 12
    pictures_every: int = 60
    picture_px: int = 560
    pictures_mb: float = 12.0
    table_rows: int = 5000


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture of the gallery, with the golden sample that it was compared with."""

    entry: Entry
    image: bytes
    reference: bytes | None
    overlay: Markup
    defects: list[Defect]
    width: int
    height: int

    @property
    def number(self) -> int:
        return self.entry.number

    @property
    def image_uri(self) -> str:
        return _uri(self.image)

    @property
    def reference_uri(self) -> str | None:
        return _uri(self.reference) if self.reference else None

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
        found = ", ".join(f"{d.label} {d.confidence:.0%}" for d in self.defects[:6]) or "–"
        return f"{self.entry.item.name}: {self.entry.verdict.value}, {found}"


@dataclass(kw_only=True)
class Section:
    """Pictures of one kind: ng, review, ok, every. `total`: images of this kind, shown or not."""

    name: str
    total: int
    cards: list[Card] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    without: int = 0


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


def _card(entry: Entry, pictures: Pictures, styles: Mapping[str, LabelStyle], longest: int) -> Card:
    """Raises PictureGoneError or AuroraEdgeError."""
    content, golden = pictures.load(entry)
    picture = thumbnail(decode_image(content).pixels, longest)
    sample = thumbnail(decode_image(golden, field="reference").pixels, longest) if golden is not None else None
    result = entry.result
    return Card(
        entry=entry,
        image=picture,
        reference=sample,
        overlay=charts.boxes_overlay(result.image_width, result.image_height, entry.defects, styles),
        defects=worst_defects(entry.defects),
        width=result.image_width,
        height=result.image_height,
    )


def build_gallery(
    figures: Figures,
    sections: Iterable[str],
    pictures: Pictures,
    styles: Mapping[str, LabelStyle],
    limits: PageLimits | None = None,
) -> list[Section]:
    """The sections that have pictures: NG and REVIEW worst first, the passed ones closest to the limit, or every one.

    Reads the pictures again. One that has changed since or is gone is named in `Section.unreadable`, not shown.
    """
    limits = limits or PageLimits()
    kinds = {
        "ng": (Verdict.NG, limits.pictures_ng, 0.55),
        "review": (Verdict.REVIEW, limits.pictures_review, 0.9),
        "ok": (Verdict.OK, limits.pictures_ok, 1.0),
    }
    room, used, found = limits.pictures_mb * 1e6, 0.0, []
    wanted = set(sections)
    for name in ("ng", "review", "ok", "every"):
        if name not in wanted:
            continue
        if name == "every":
            chosen, total, share = figures.rows[: limits.pictures_every], figures.total, 1.0
        else:
            verdict, most, share = kinds[name]
            chosen, total = figures.worst[verdict].entries()[:most], figures.worst[verdict].total
        section = Section(name=name, total=total)
        for entry in chosen:
            if used >= room * share:
                break
            if entry.result.image_width <= 0:  # a failure: it has its own table
                continue
            if not pictures.kept(entry):
                section.without += 1
                continue
            try:
                card = _card(entry, pictures, styles, limits.picture_px)
            except (OSError, AuroraEdgeError, PictureGoneError):
                section.unreadable.append(entry.item.name)
                continue
            # Base64 writes four characters for three bytes.
            used += (len(card.image) + len(card.reference or b"")) * 4 / 3
            section.cards.append(card)
        found.append(section)
    return found
