"""A result drawn on its frame: boxes with label and confidence, a verdict banner, the golden sample beside it.

All arrays are uint8 RGB [H, W, 3]. Small frames are enlarged by a whole factor so that text fits; the banner stands
above the frame and hides nothing of it. Text is drawn with the fonts inside OpenCV 5 (Latin and CJK), so a picture is
the same on every machine.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.palette import VERDICT_STYLES, LabelStyle, Rgb, ink_on, with_extra_labels
from auroraedge.inspection.results import Box, Defect, InspectionResult

# A frame whose long side is shorter is enlarged; below this a label tag is wider than the part.
_LEAST_SIDE = 640
_MAX_ENLARGE = 8
_LEAST_BANNER_WIDTH = 420
_BACKGROUND: Rgb = (32, 34, 38)
_CASING: Rgb = (0, 0, 0)
_REGULAR, _BOLD = 400, 700


@dataclass(frozen=True)
class Rect:
    """Whole pixels of the canvas; x2 and y2 exclusive."""

    x1: int
    y1: int
    x2: int
    y2: int

    def overlap(self, other: Rect) -> int:
        w = min(self.x2, other.x2) - max(self.x1, other.x1)
        h = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(0, w) * max(0, h)


def printable(text: str) -> str:
    """`text` without control characters and line breaks, which a font cannot show."""
    kept = (" " if ch.isspace() else ch for ch in text if ch.isspace() or unicodedata.category(ch)[0] != "C")
    return " ".join("".join(kept).split())


def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def text_width(text: str, size: int, weight: int = _REGULAR) -> int:
    """Pixels that `text` advances at font size `size`."""
    return int(cv2.getTextSize((16, 16), text, (0, 0), _font(), size, weight)[2]) if text else 0


def fit_text(text: str, max_width: int, size: int, least: int, weight: int = _REGULAR) -> tuple[str, int]:
    """`text` and a font size that fit `max_width` pixels: smaller down to `least`, then cut with an ellipsis."""
    text = printable(text)
    width = text_width(text, size, weight)
    if width <= max_width:
        return text, size
    size = max(least, min(size, size * max_width // max(width, 1)))
    while size > least and text_width(text, size, weight) > max_width:
        size -= 1
    if text_width(text, size, weight) <= max_width:
        return text, size
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size, weight) <= max_width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…", size


def _put(canvas: np.ndarray, text: str, x: int, baseline: int, color: Rgb, size: int, weight: int = _REGULAR) -> None:
    if text:
        cv2.putText(canvas, text, (x, baseline), color, _font(), size, weight)


def _dashes(length: float, dash: tuple[float, ...], width: int) -> list[tuple[float, float]]:
    """Stretches (start, end) along a line of `length` pixels that are drawn."""
    if not dash:
        return [(0.0, length)]
    stretches, position, index = [], 0.0, 0
    while position < length:
        step = dash[index % len(dash)] * width
        if index % 2 == 0:
            stretches.append((position, min(position + step, length)))
        position += step
        index += 1
    return stretches


def _outline(canvas: np.ndarray, rect: Rect, style: LabelStyle, width: int) -> None:
    """A frame of `width` pixels around `rect`, patterned, on a black casing: it reads on dark and bright parts."""
    casing = max(1, width // 2)
    for grow, color, dash in ((casing, _CASING, ()), (0, style.color, style.dash)):
        w = width + 2 * grow
        # The line with its casing lies outside the box, so that it covers none of the defect, except where that would
        # be outside the image.
        off = edge = width / 2 + casing
        x1, y1 = max(rect.x1 - off, edge), max(rect.y1 - off, edge)
        x2, y2 = min(rect.x2 + off, canvas.shape[1] - edge), min(rect.y2 + off, canvas.shape[0] - edge)
        for ax, ay, bx, by in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)):
            length = abs(bx - ax) + abs(by - ay)
            for start, end in _dashes(length, dash, width):
                ux, uy = (bx - ax) / max(length, 1e-9), (by - ay) / max(length, 1e-9)
                px, py, qx, qy = ax + ux * start, ay + uy * start, ax + ux * end, ay + uy * end
                half = w / 2
                grown = half if not dash else 0.0
                left, right = min(px, qx) - (half if uy else grown), max(px, qx) + (half if uy else grown)
                top, bottom = min(py, qy) - (half if ux else grown), max(py, qy) + (half if ux else grown)
                _fill(canvas, Rect(round(left), round(top), round(right), round(bottom)), color)


def _fill(canvas: np.ndarray, rect: Rect, color: Rgb) -> None:
    h, w = canvas.shape[:2]
    canvas[max(0, rect.y1) : min(h, rect.y2), max(0, rect.x1) : min(w, rect.x2)] = color


def _tag_place(box: Rect, w: int, h: int, area: Rect, taken: list[Rect], boxes: list[Rect], gap: int) -> Rect:
    """Where in `area` a tag of `w` x `h` hides least of other tags and boxes: above, below, beside or in its box."""
    spots = [
        (box.x1, box.y1 - h - gap),
        (box.x1, box.y2 + gap),
        (box.x2 - w, box.y1 - h - gap),
        (box.x2 - w, box.y2 + gap),
        (box.x2 + gap, box.y1),
        (box.x1 - w - gap, box.y1),
        (box.x2 + gap, box.y2 - h),
        (box.x1 - w - gap, box.y2 - h),
        (box.x1, box.y1),
    ]
    best, best_cost = None, float("inf")
    for order, (x, y) in enumerate(spots):
        inside_x = min(max(x, area.x1), max(area.x1, area.x2 - w))
        inside_y = min(max(y, area.y1), max(area.y1, area.y2 - h))
        place = Rect(inside_x, inside_y, inside_x + w, inside_y + h)
        cost = 4.0 * sum(place.overlap(other) for other in taken) + sum(place.overlap(other) for other in boxes)
        cost += order * 0.01 * w * h
        cost += (abs(inside_x - x) + abs(inside_y - y)) * 0.1 * h
        if cost < best_cost:
            best, best_cost = place, cost
    assert best is not None
    return best


def draw_boxes(
    canvas: np.ndarray,
    defects: tuple[Defect, ...] | list[Defect],
    styles: Mapping[str, LabelStyle],
    *,
    scale: float = 1.0,
    titles: Mapping[str, str] | None = None,
    tags: bool = True,
) -> None:
    """Draws the boxes (source pixels times `scale`) into `canvas`, the most confident last, so that it lies on top.

    styles: by label (palette.label_styles). titles: shown instead of the label's name. tags: label and confidence.
    """
    h, w = canvas.shape[:2]
    width = max(2, round(max(h, w) / 250))
    size = max(13, round(max(h, w) / 46))
    pad = max(3, size // 4)
    placed = [
        (defect, _to_canvas(defect.box, scale))
        for defect in sorted(defects, key=lambda d: (d.confidence, d.label))
        if defect.box is not None
    ]
    for defect, rect in placed:
        _outline(canvas, rect, styles[defect.label], width)
    taken: list[Rect] = []
    boxes, whole = [rect for _, rect in placed], Rect(0, 0, w, h)
    for defect, rect in reversed(placed if tags else []):
        style = styles[defect.label]
        name = (titles or {}).get(defect.label, defect.label)
        text, fitted = fit_text(f"{name} {defect.confidence:.0%}", w - 2 * pad - 2, size, 9, _BOLD)
        tag_w, tag_h = text_width(text, fitted, _BOLD) + 2 * pad, fitted + 2 * pad
        place = _tag_place(rect, tag_w, tag_h, whole, taken, boxes, 2 * width)
        taken.append(place)
        _fill(canvas, place, _CASING)
        _fill(canvas, Rect(place.x1 + 1, place.y1 + 1, place.x2 - 1, place.y2 - 1), style.color)
        _put(canvas, text, place.x1 + pad, place.y2 - pad - fitted // 8, ink_on(style.color), fitted, _BOLD)


def _to_canvas(box: Box, scale: float) -> Rect:
    x1, y1 = int(np.floor(box.x1 * scale)), int(np.floor(box.y1 * scale))
    return Rect(x1, y1, max(x1 + 1, int(np.ceil(box.x2 * scale))), max(y1 + 1, int(np.ceil(box.y2 * scale))))


def _glyph(canvas: np.ndarray, kind: str, x: int, y: int, side: int, ink: Rgb) -> None:
    """The verdict's sign in a square of `side` pixels."""
    stroke = max(2, side // 8)
    if kind in "✓✕":
        lines = {
            "✓": [(0.08, 0.55), (0.38, 0.85), (0.92, 0.18)],
            "✕": [(0.14, 0.14), (0.86, 0.86), (0.5, 0.5), (0.86, 0.14), (0.14, 0.86)],
        }[kind]
        points = np.array([(x + px * side, y + py * side) for px, py in lines], np.float32)
        cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, ink, stroke, cv2.LINE_AA)
    else:
        width = text_width(kind, side, 800)
        _put(canvas, kind, x + (side - width) // 2, y + round(side * 0.87), ink, side, 800)


def summary_line(result: InspectionResult) -> str:
    """NG probability, number of defects, class and recipe in one line; the error's message when there is no verdict."""
    if result.error is not None:
        return result.error.message
    parts = []
    if result.ng_probability is not None:
        parts.append(f"NG probability {result.ng_probability:.1%}")
    if result.predicted_class is not None:
        sure = f" {result.class_probability:.0%}" if result.class_probability is not None else ""
        parts.append(f"{result.predicted_class}{sure}")
    count = len(result.defects)
    if count or result.predicted_class is None:
        parts.append("no defects" if count == 0 else f"{count} defect{'s' if count > 1 else ''}")
    unplaced = sorted({d.label for d in result.defects if d.box is None})
    if unplaced:
        parts.append(f"without place: {', '.join(unplaced)}")
    parts.append(f"{result.recipe_id} v{result.recipe_version}")
    return "  ·  ".join(parts)


def banner(result: InspectionResult, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: the verdict's sign and word, and the facts in the room that is left."""
    style = VERDICT_STYLES[result.verdict]
    strip = np.full((height, width, 3), style.color, np.uint8)
    margin, side = height // 4, height // 2
    _glyph(strip, style.glyph, margin, margin, side, style.ink)
    x = margin + side + margin // 2
    word, size = fit_text(result.verdict.value, width - x - margin, side, 10, 800)
    _put(strip, word, x, (height + round(size * 0.72)) // 2, style.ink, size, 800)
    x += text_width(word, size, 800) + margin
    room = width - x - margin
    if room < height:
        return strip
    small = max(11, round(height * 0.27))
    name = result.image_name or result.request.part_id
    lines = [line for line in (summary_line(result), name) if line]
    for index, line in enumerate(lines):
        text, fitted = fit_text(line, room, small, max(10, round(small * 0.7)), _BOLD if index == 0 else _REGULAR)
        middle = height * (index + 1) / (len(lines) + 1) + (0.04 * height * (2 * index - 1) if len(lines) > 1 else 0)
        _put(strip, text, x, round(middle + fitted * 0.36), style.ink, fitted, _BOLD if index == 0 else _REGULAR)
    return strip


def _enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return image.copy()
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)


def _captioned(panel: np.ndarray, caption: str, height: int) -> np.ndarray:
    strip = np.full((height, panel.shape[1], 3), _BACKGROUND, np.uint8)
    text, size = fit_text(caption, panel.shape[1] - height // 2, round(height * 0.55), 9)
    _put(strip, text, height // 4, (height + round(size * 0.72)) // 2, (235, 235, 235), size)
    return np.vstack([strip, panel])


def _pad_to(panel: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.full((max(height, panel.shape[0]), max(width, panel.shape[1]), 3), _BACKGROUND, np.uint8)
    out[: panel.shape[0], : panel.shape[1]] = panel
    return out


def draw_result(
    image: np.ndarray,
    result: InspectionResult,
    *,
    labels: tuple[str, ...] = (),
    reference: np.ndarray | None = None,
    titles: Mapping[str, str] | None = None,
) -> np.ndarray:
    """`image` with the result on it, as a new uint8 RGB array, larger than the frame by the banner at least.

    labels: the recipe's labels, which fix each label's colour and line pattern (else: the labels found).
    reference: the golden sample, drawn beside the frame (below a wide one) with the same places outlined.
    titles: display names by label. Raises InvalidRequestError for an array that is not uint8 [H, W, 3].
    """
    _check(image, "image")
    styles = with_extra_labels(labels, (defect.label for defect in result.defects))
    h, w = image.shape[:2]
    factor = min(_MAX_ENLARGE, max(1, -(-_LEAST_SIDE // max(h, w))))
    frame = _enlarged(image, factor)
    draw_boxes(frame, result.defects, styles, scale=factor, titles=titles)
    scale = max(frame.shape[:2]) / 1000
    body = frame
    if reference is not None:
        _check(reference, "reference")
        golden = _enlarged(reference, factor)
        draw_boxes(golden, result.defects, styles, scale=factor, tags=False)
        caption = max(22, round(34 * scale))
        panels = [_captioned(frame, "Frame", caption), _captioned(golden, "Golden sample", caption)]
        gap = max(4, round(8 * scale))
        if w <= 1.6 * h:
            tall = max(p.shape[0] for p in panels)
            body = np.hstack([_pad_to(panels[0], tall, panels[0].shape[1] + gap), _pad_to(panels[1], tall, 0)])
        else:
            wide = max(p.shape[1] for p in panels)
            body = np.vstack([_pad_to(p, 0, wide) for p in panels])
    width = max(body.shape[1], _LEAST_BANNER_WIDTH)
    strip = banner(result, width, max(56, min(round(84 * scale), width // 6)))
    return np.vstack([strip, _pad_to(body, 0, width)])


def _check(image: np.ndarray, field: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidRequestError(
            f"Expected uint8 RGB [H, W, 3], got {image.dtype} {list(image.shape)}.",
            field=field,
            remedy="Convert the pixels to 8-bit RGB first.",
        )


def save_picture(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB [H, W, 3] as PNG or JPEG by the suffix of `path`, atomically."""
    suffix = path.suffix.lower()
    if suffix not in {".png", ".jpg", ".jpeg"}:
        raise InvalidRequestError(
            f"Cannot write a picture as '{path.name}'.", field="out", remedy="Name a .png or .jpg file."
        )
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise InvalidRequestError(f"{path.name} could not be encoded.", field="out", remedy="Write a .png file.")
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data.tobytes())
        temporary.replace(path)
    except OSError as error:
        raise InvalidRequestError(
            f"{path} cannot be written: {error.strerror or error}.", field="out", remedy="Name a writable folder."
        ) from error
