"""The six board defects, drawn on any binary board picture with exact boxes and guaranteed meaning.

Legend: copper is True. The distance transforms give room, ray marching along edge normals gives the width of a trace
and of a gap, and connected components in a window around each candidate decide whether it is what it is called:

    open              the copper in the window falls into more pieces
    short             copper of two different components becomes one
    mousebite, spur   the edge changes, but neither copper nor gap is cut through, with a rim to spare
    spurious_copper   touches no copper; pin_hole: enclosed in copper

A candidate that fails is drawn again elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from auroraedge.data.synthetic_part import Box, SyntheticPart, expose, white_noise
from auroraedge.errors import InvalidImageError

BOARD_LABELS = ("open", "short", "mousebite", "spur", "spurious_copper", "pin_hole")
BOX_MARGIN_PX = 10  # the source's boxes stand this far off the pixels that differ (median of 5,817 training boxes)
_REACH_PX = 90  # rays are followed this far
_LEAST_PIXELS = 18
_TRIES = 24


@dataclass(frozen=True, kw_only=True)
class _Patch:
    """A drawn mask, bool [h, w], with its place in the picture."""

    mask: np.ndarray
    x: int
    y: int


class _Board:
    """The copper of one picture and what has been measured on it before any defect was drawn."""

    def __init__(self, copper: np.ndarray, rng: np.random.Generator) -> None:
        self.copper = copper.copy()  # bool [H, W]; receives the defects
        self.rng = rng
        self.height, self.width = copper.shape
        solid = copper.astype(np.uint8)
        self.room_copper = cv2.distanceTransform(solid, cv2.DIST_L2, 3)
        self.room_gap = cv2.distanceTransform(1 - solid, cv2.DIST_L2, 3)
        self.labels = cv2.connectedComponents(solid, connectivity=8)[1]
        self.boxes: list[Box] = []
        self._measure_edges(copper)

    def _measure_edges(self, copper: np.ndarray) -> None:
        """Random edge points with outward normal, copper width behind, gap ahead and the component beyond it."""
        edge = np.flatnonzero(copper & (self.room_copper < 1.2))
        count = min(360, edge.size)
        ys, xs = np.divmod(self.rng.choice(edge, count, replace=False) if count else edge, self.width)
        inside = (xs > 14) & (ys > 14) & (xs < self.width - 15) & (ys < self.height - 15)
        xs, ys = xs[inside], ys[inside]
        soft = cv2.GaussianBlur(copper.astype(np.uint8) * 255, (0, 0), 2.0)
        nx = soft[ys, xs - 2].astype(np.float64) - soft[ys, xs + 2]
        ny = soft[ys - 2, xs].astype(np.float64) - soft[ys + 2, xs]
        norm = np.hypot(nx, ny)
        keep = norm > 25  # in a notch or on a speck the normal means nothing
        xs, ys, nx, ny, norm = xs[keep], ys[keep], nx[keep], ny[keep], norm[keep]
        self.at = np.stack([xs, ys], 1).astype(np.float64)
        self.normal = np.stack([nx / norm, ny / norm], 1)
        self.trace_px, _ = self._march(copper, -self.normal, copper_is=True)
        self.gap_px, beyond = self._march(copper, self.normal, copper_is=False)
        self.bridges = (beyond > 0) & (beyond != self.labels[ys, xs])

    def _march(self, copper: np.ndarray, step: np.ndarray, *, copper_is: bool) -> tuple[np.ndarray, np.ndarray]:
        """Length of the run of copper or gap at each edge point, and the component at its end (0: off the picture)."""
        steps = np.arange(1, _REACH_PX)
        x = np.rint(self.at[:, :1] + step[:, :1] * steps).astype(int)
        y = np.rint(self.at[:, 1:] + step[:, 1:] * steps).astype(int)
        out = (x < 0) | (y < 0) | (x >= self.width) | (y >= self.height)
        x, y = np.clip(x, 0, self.width - 1), np.clip(y, 0, self.height - 1)
        ended = (copper[y, x] != copper_is) & (steps > 2)
        ended |= out
        index = ended.argmax(1) if len(x) else np.zeros(0, int)
        rows = np.arange(len(index))
        found = ended[rows, index] & ~out[rows, index] if len(index) else np.zeros(0, bool)
        length = np.where(found, index + 1.0, np.inf)
        return length, np.where(found, self.labels[y[rows, index], x[rows, index]], 0)

    # ---- placing -------------------------------------------------------------------------------------------------

    def place(self, label: str) -> Box | None:
        """Draws one defect of this kind and returns its box; None where the board has no room for one."""
        value = label in ("short", "spur", "spurious_copper")
        draw = self._draw_area if label in ("spurious_copper", "pin_hole") else self._draw_edge
        for patch in draw(label):
            box = self._accept(label, patch, value)
            if box is not None:
                self.boxes.append(box)
                return box
        return None

    def _draw_area(self, label: str) -> Iterator[_Patch]:
        room = self.room_gap if label == "spurious_copper" else self.room_copper
        ys = self.rng.integers(4, self.height - 4, size=400)
        xs = self.rng.integers(4, self.width - 4, size=400)
        fits = np.flatnonzero(room[ys, xs] > 8)[:_TRIES]
        for i in fits:
            half = min(float(room[ys[i], xs[i]]) - 5, float(self.rng.gamma(4.0, 2.0)) + 2.5)
            yield self._blob(np.array([xs[i], ys[i]], float), max(half, 3.0), hole=label == "pin_hole")

    def _draw_edge(self, label: str) -> Iterator[_Patch]:
        choose = {
            "open": (self.trace_px >= 4) & (self.trace_px <= 64),
            "short": self.bridges & (self.gap_px >= 4) & (self.gap_px <= 64),
            "mousebite": self.trace_px >= 9,
            "spur": self.gap_px >= 10,
        }[label]
        order = self.rng.permutation(np.flatnonzero(choose))[:_TRIES]
        for i in order:
            at, normal = self.at[i], self.normal[i]
            if label == "open":
                yield self._crossing(at, -normal, float(self.trace_px[i]))
            elif label == "short":
                yield self._crossing(at, normal, float(self.gap_px[i]))
            elif label == "mousebite":
                yield self._notch(at, -normal, float(self.trace_px[i]))
            else:
                yield self._notch(at, normal, float(self.gap_px[i]))

    # ---- shapes --------------------------------------------------------------------------------------------------

    def _crossing(self, at: np.ndarray, along: np.ndarray, length: float) -> _Patch:
        """A cut or a bridge: from just before the edge point to just beyond the other side."""
        rng = self.rng
        tilt = float(rng.normal(0.0, 0.45)) if rng.random() < 0.7 else 0.0
        tilt = float(np.clip(tilt, -0.9, 0.9))
        direction = _turn(along, tilt)
        over = rng.uniform(1.5, 4.5, size=2)
        start, end = at - direction * over[0], at + direction * (length / np.cos(tilt) + over[1])
        width = float(rng.choice([rng.uniform(3.5, 6), rng.uniform(5, 9), rng.uniform(8, 15)], p=[0.45, 0.4, 0.15]))
        if rng.random() < 0.3:
            return _draw(rng, [np.array([start, end])], width, rough=0.08, taper=False)
        bend = _turn(direction, np.pi / 2) * rng.normal(0.0, 0.12) * length
        path = np.array([start, (start + end) / 2 + bend, end])
        strokes = [_wobble(rng, path)]
        if rng.random() < 0.25:
            strokes.append(_wobble(rng, path + rng.normal(0.0, width * 0.6, size=2)))
        return _draw(rng, strokes, width, rough=0.2, taper=True)

    def _notch(self, at: np.ndarray, into: np.ndarray, room: float) -> _Patch:
        """A bite or a bump: from just outside the edge to a part of the room."""
        rng = self.rng
        depth = float(np.clip(rng.gamma(5.0, 1.9), 4.5, max(4.5, min(0.75 * room, room - 4.0))))
        kind = rng.random()
        if kind < 0.25:
            radius = max(3.5, depth * rng.uniform(0.55, 0.8))
            centre = at + into * (depth - radius)
            return _draw(rng, [np.array([centre, centre + into * 0.1])], 2 * radius, rough=0.15, taper=False)
        tilt = float(np.clip(rng.normal(0.0, 0.5), -1.1, 1.1))
        direction = _turn(into, tilt)
        width = float(np.clip(rng.gamma(6.0, 0.95), 3.5, 11.0))
        length = max(1.0, (depth - width / 2) / np.cos(tilt))
        path = np.array([at - direction * rng.uniform(0.5, 3.0), at + direction * length])
        strokes = [_wobble(rng, path)]
        if kind > 0.8:
            side = _turn(into, np.pi / 2) * rng.uniform(-6, 6)
            strokes.append(_wobble(rng, path + side))
        return _draw(rng, strokes, width, rough=0.18, taper=True)

    def _blob(self, centre: np.ndarray, half: float, *, hole: bool) -> _Patch:
        """Something of its own: a dot, a stroke or a scribble of about `half` px from the middle to its ends."""
        rng = self.rng
        kind = rng.random()
        if kind < (0.2 if hole else 0.06):
            return _draw(rng, [np.array([centre, centre + 0.1])], 2 * half, rough=0.05, taper=False)
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        width = float(np.clip(rng.gamma(6.0, 1.0), 3.5, max(4.0, 1.1 * half)))
        ends = [centre - direction * (half - width / 2), centre + direction * (half - width / 2)]
        path = np.array([ends[0], centre + rng.normal(0.0, 0.25 * half, size=2), ends[1]])
        if kind < 0.75:
            return _draw(rng, [_wobble(rng, path)], width, rough=0.18, taper=True)
        strokes = [_wobble(rng, centre + (path - centre) @ _rotation(rng.uniform(0.4, 1.2)) * f) for f in (1.0, 0.7)]
        return _draw(rng, strokes, width * 0.8, rough=0.4, taper=True)

    # ---- judging -------------------------------------------------------------------------------------------------

    def _accept(self, label: str, patch: _Patch, value: bool) -> Box | None:
        """Draws the patch if it is truly what `label` says and its box is clear of all others."""
        height, width = patch.mask.shape
        if patch.x < 2 or patch.y < 2 or patch.x + width > self.width - 2 or patch.y + height > self.height - 2:
            return None
        around = 10
        x1, y1 = max(patch.x - around, 0), max(patch.y - around, 0)
        x2, y2 = min(patch.x + width + around, self.width), min(patch.y + height + around, self.height)
        window = (slice(y1, y2), slice(x1, x2))
        before = self.copper[window]
        drawn = np.zeros(before.shape, bool)
        drawn[patch.y - y1 : patch.y - y1 + height, patch.x - x1 : patch.x - x1 + width] = patch.mask
        changed = drawn & (before != value)
        if np.count_nonzero(changed) < _LEAST_PIXELS:
            return None
        box = self._box(drawn, changed, x1, y1)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self.boxes):
            return None
        after = np.where(drawn, value, before)
        if not self._is(label, before, after, drawn, changed, window):
            return None
        self.copper[window] = after
        return box

    def _box(self, drawn: np.ndarray, changed: np.ndarray, x: int, y: int) -> Box:
        """The changed pixels (and at most 3 px of the stroke beyond them) with the source's margin."""
        cx1, cy1, cx2, cy2 = _bounds(changed)
        dx1, dy1, dx2, dy2 = _bounds(drawn)
        left, top = max(dx1, cx1 - 3) + x - BOX_MARGIN_PX, max(dy1, cy1 - 3) + y - BOX_MARGIN_PX
        right, bottom = min(dx2, cx2 + 3) + x + BOX_MARGIN_PX, min(dy2, cy2 + 3) + y + BOX_MARGIN_PX
        return max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)

    def _is(
        self,
        label: str,
        before: np.ndarray,
        after: np.ndarray,
        drawn: np.ndarray,
        changed: np.ndarray,
        window: tuple[slice, slice],
    ) -> bool:
        """The definition of each kind, checked on the copper of a window (bool [h, w]) before and after."""
        if label == "open":
            return _pieces(after, least=24) > _pieces(before, least=24) and _pieces(~after) <= _pieces(~before)
        touched = np.unique(self.labels[window][_grow(drawn)])
        touched = touched[touched > 0]
        if label == "short":
            if len(touched) != 2:
                return False
            joined = cv2.connectedComponents(after.astype(np.uint8), connectivity=4)[1]
            ends = [set(np.unique(joined[(self.labels[window] == t) & _grow(drawn)])) - {0} for t in touched]
            return bool(ends[0] & ends[1])
        if label == "spurious_copper":
            return not before[_grow(drawn, 7)].any()
        if label == "pin_hole":
            return bool(before[_grow(drawn, 7)].all())
        # A bite is to copper what a spur is to the gap.
        solid, left = (before, after) if label == "mousebite" else (~before, ~after)
        rim = solid & ~_grow(drawn, 5)
        count = _pieces(solid)
        if _pieces(left, 1) != _pieces(solid, 1) or _pieces(~left, 1) != _pieces(~solid, 1) or _pieces(rim) != count:
            return False
        depth = self.room_copper if label == "mousebite" else self.room_gap
        if label == "spur" and len(touched) != 1:
            return False
        return bool(depth[window][changed].max() >= 3.5)


def _turn(vector: np.ndarray, angle: float) -> np.ndarray:
    return vector @ _rotation(angle)


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def _wobble(rng: np.random.Generator, path: np.ndarray) -> np.ndarray:
    """A freehand version of the path: about one point every 5 px, each a little off; the ends stay."""
    lengths = np.hypot(*np.diff(path, axis=0).T)
    total = float(lengths.sum())
    count = max(2, int(total / 5) + 1)
    s = np.concatenate([[0.0], np.cumsum(lengths)])
    t = np.linspace(0, total, count)
    points = np.stack([np.interp(t, s, path[:, 0]), np.interp(t, s, path[:, 1])], 1)
    points[1:-1] += rng.normal(0.0, 0.9, size=points[1:-1].shape)
    return points


def _draw(rng: np.random.Generator, strokes: list[np.ndarray], width: float, *, rough: float, taper: bool) -> _Patch:
    """Strokes of about `width` px. rough: how ragged the edge is, 0..0.5; taper: the pen's pressure varies."""
    points = np.concatenate(strokes)
    pad = int(width / 2) + 4
    x, y = np.floor(points.min(0)).astype(int) - pad
    w, h = (np.ceil(points.max(0)).astype(int) + pad + 1 - (x, y)).tolist()
    canvas = np.zeros((h, w), np.uint8)
    for stroke in strokes:
        local = np.rint((stroke - (x, y)) * 16).astype(int)
        widths = np.full(len(local), width)
        if taper:
            widths = np.clip(width * rng.uniform(0.7, 1.25, size=len(local)), 3.0, None)
        for i in range(len(local)):
            centre = (int(local[i][0]), int(local[i][1]))
            cv2.circle(canvas, centre, int(widths[i] * 8), 255, -1, cv2.LINE_AA, shift=4)
            if i:
                last = (int(local[i - 1][0]), int(local[i - 1][1]))
                thick = max(1, round(float(min(widths[i], widths[i - 1]))))
                cv2.line(canvas, last, centre, 255, thick, cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), 0.8)
    soft = soft + cv2.blur(white_noise(rng, h, w), (2, 2)) * np.float32(rough)
    mask = (soft > 0.5) & (cv2.dilate(canvas, np.ones((3, 3), np.uint8)) > 0)
    return _Patch(mask=_tidy(mask), x=int(x), y=int(y))


def _tidy(mask: np.ndarray) -> np.ndarray:
    """The stroke without specks of fewer than 4 pixels and without holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    for outline in outlines:
        if len(outline) >= 4:
            cv2.drawContours(filled, [outline], -1, 1, cv2.FILLED)
    return filled > 0


def _grow(mask: np.ndarray, size: int = 3) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def _pieces(mask: np.ndarray, least: int = 6) -> int:
    """Number of 8-connected pieces of at least `least` pixels."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return int(np.count_nonzero(stats[1:count, cv2.CC_STAT_AREA] >= least))


def _bounds(mask: np.ndarray) -> Box:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def draw_defects(rng: np.random.Generator, copper: np.ndarray, n: int) -> tuple[np.ndarray, list[tuple[str, Box]]]:
    """Copper with up to `n` defects, bool [H, W], and their labels and boxes. The six kinds are drawn evenly.

    A board without room for a kind (no two nets, no copper) gets another kind, a full one fewer defects.
    """
    if n <= 0 or min(copper.shape) < 48:
        return copper.copy(), []
    board = _Board(copper, rng)
    objects: list[tuple[str, Box]] = []
    barren: set[str] = set()
    queue: list[str] = []
    while len(objects) < n and len(barren) < len(BOARD_LABELS):
        if not queue:
            queue = [str(label) for label in rng.permutation(BOARD_LABELS) if label not in barren]
        label = queue.pop()
        if label in barren:
            continue
        box = board.place(label)
        if box is None:
            barren.add(label)
        else:
            objects.append((label, box))
    return board.copper, objects


def add_board_defects(rng: np.random.Generator, template: np.ndarray, n: int) -> SyntheticPart:
    """A photograph of the board of `template` with up to `n` defects; the template becomes the reference.

    template: uint8 [H, W] or [H, W, 3], binary, black (< 128) is copper. The result has its shape. The copy differs
    from the template along edges too, as two photographs of real boards do. Raises InvalidImageError.
    """
    if template.dtype != np.uint8 or template.ndim not in (2, 3) or template.size == 0:
        raise InvalidImageError(
            f"A template is uint8 [H, W] or [H, W, 3], not {template.dtype} {list(template.shape)}.", field="template"
        )
    grey = template if template.ndim == 2 else template[..., 0]
    template_copper = grey < 128
    # The template's own noise is fixed, so this one photograph carries the noise of two.
    copper = expose_again(rng, template_copper.astype(np.uint8) * 255, template_copper, most_noise=1.5)
    copper, objects = draw_defects(rng, copper, n)
    image = np.where(copper, np.uint8(0), np.uint8(255))
    if template.ndim == 3:
        image = np.repeat(image[..., None], template.shape[2], axis=2)
    return SyntheticPart(image, template, tuple(objects), "defective" if objects else "ok", "board")


def expose_again(
    rng: np.random.Generator, latent: np.ndarray, template: np.ndarray, *, most_noise: float = 1.0
) -> np.ndarray:
    """A second photograph, bool [H, W], of the board whose first one is `template`: shifted, noisy, the same nets.

    The shift is small in most real pairs and over a pixel in a few. Where noise would break a hair line or close a
    hair gap the picture is taken again: what has no label must be no defect.
    """
    registration_px = float(rng.choice([0.12, 0.4, 1.2], p=[0.8, 0.14, 0.06]))
    keep = np.zeros(template.shape, bool)
    pieces = _pieces(template), _pieces(~template)
    for noise in most_noise * np.array([1.0, 0.8, 0.5, 0.3]):
        copper = expose(rng, latent, registration_px=registration_px * noise, noise=noise)
        copper = np.where(keep, template, copper)
        if (_pieces(copper), _pieces(~copper)) == pieces:
            return copper
        if not keep.any():
            keep = _delicate(template)
    return template.copy()


def _delicate(copper: np.ndarray) -> np.ndarray:
    """Pixels on or beside structures, of copper or gap, that are too thin to survive noise, bool [H, W]."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    solid = copper.astype(np.uint8)
    opened, closed = cv2.morphologyEx(solid, cv2.MORPH_OPEN, kernel), cv2.morphologyEx(solid, cv2.MORPH_CLOSE, kernel)
    # Single pixels of a dithered edge are no structure.
    thin = cv2.morphologyEx(closed - opened, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    thin[[0, 1, -2, -1]] = 1
    thin[:, [0, 1, -2, -1]] = 1
    return cv2.dilate(thin, np.ones((5, 5), np.uint8)) > 0
