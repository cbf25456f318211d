"""Made-up copper layouts: bars, trace bundles, connectors, pads, vias and pours that keep their clearances.

Copper is 255 in uint8 [H, W]. Nets are drawn one after the other; what would come too close to copper that is already
there is left out, so that no two nets touch by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

_SHIFT = 4  # cv2 draws with 1/16 px
_SCALE = 1 << _SHIFT


class Layout:
    """A board under construction. copper: uint8 [H, W]; keepout: copper grown by the clearance."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.copper = np.zeros((height, width), np.uint8)
        # The grain of the board: fine-pitch boards and coarse power boards.
        low, high = ((5, 8), (8, 14), (14, 26))[int(rng.choice(3, p=[0.4, 0.42, 0.18]))]
        self.trace = float(rng.uniform(low, high))
        self.gap = float(np.clip(self.trace * rng.uniform(0.9, 1.8), 8, 30))

    def add(self, draw: Callable[[np.ndarray, float], None]) -> bool:
        """Draws a shape if, grown by the clearance, it meets no copper. draw(canvas, grow_px) draws it grown."""
        keepout = np.zeros_like(self.copper)
        draw(keepout, self.gap * 0.8)
        if cv2.countNonZero(cv2.bitwise_and(keepout, self.copper)):
            return False
        draw(self.copper, 0.0)
        return True

    def point(self, margin: float = 0.0) -> np.ndarray:
        return self.rng.uniform([margin, margin], [self.width - margin, self.height - margin])


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(points) * _SCALE).astype(np.int32)


def line(canvas: np.ndarray, points: np.ndarray, width: float, value: int = 255) -> None:
    """A trace of this width with round corners and ends."""
    fixed = _fixed(points).reshape(-1, 1, 2)
    cv2.polylines(canvas, [fixed], False, value, max(1, round(width)), cv2.LINE_8, _SHIFT)


def disc(canvas: np.ndarray, centre: np.ndarray, radius: float, value: int = 255) -> None:
    x, y = _fixed(centre)
    cv2.circle(canvas, (int(x), int(y)), max(1, round(radius * _SCALE)), value, -1, cv2.LINE_8, _SHIFT)


def polygon(canvas: np.ndarray, points: np.ndarray, value: int = 255) -> None:
    cv2.fillPoly(canvas, [_fixed(points).reshape(-1, 1, 2)], value, cv2.LINE_8, _SHIFT)


def rectangle(canvas: np.ndarray, centre: np.ndarray, half: np.ndarray, corner: float, value: int = 255) -> None:
    """A pad with corners cut or rounded by `corner` px."""
    (cx, cy), (hx, hy) = centre, half
    c = min(corner, hx, hy)
    outline = [(-hx + c, -hy), (hx - c, -hy), (hx, -hy + c), (hx, hy - c), (hx - c, hy), (-hx + c, hy), (-hx, hy - c)]
    polygon(canvas, np.array([*outline, (-hx, -hy + c)]) + np.array([cx, cy]), value)


def offset_path(points: np.ndarray, distance: float) -> np.ndarray:
    """The parallel of a polyline [n, 2] at this distance to its left, corners mitred."""
    step = np.diff(points, axis=0)
    step /= np.hypot(step[:, 0], step[:, 1])[:, None]
    normal = np.stack([-step[:, 1], step[:, 0]], 1)
    corner = np.concatenate([normal[:1], normal[:-1] + normal[1:], normal[-1:]])
    corner /= np.maximum((corner**2).sum(1, keepdims=True) / 2, 1e-6)
    corner[[0, -1]] = normal[[0, -1]]
    return points + corner * distance


def _headed(eighth: int) -> np.ndarray:
    angle = eighth * np.pi / 4
    return np.array([np.cos(angle), np.sin(angle)])


def _path(rng: np.random.Generator, start: np.ndarray, heading: int, segments: int, scale: float) -> np.ndarray:
    """A polyline of 45 degree turns; it wanders about the heading it began with."""
    points, turn = [start], 0
    for _ in range(segments):
        points.append(points[-1] + _headed(heading + turn) * rng.uniform(0.5, 1.6) * scale)
        turn = int(np.clip(turn + rng.choice([-1, 1]), -2, 2))
    return np.array(points)


def add_bars(layout: Layout) -> None:
    """Wide parallel conductors across the picture, thin ones between some; a few end in notches or pads."""
    rng = layout.rng
    x = rng.uniform(-40, 30)
    while x < layout.width:
        wide = rng.uniform(2.5, 8) * layout.trace if rng.random() < 0.6 else layout.trace * rng.uniform(1, 2)
        top, bottom = -20.0, layout.height + 20.0
        if rng.random() < 0.25:
            top = rng.uniform(0.1, 0.7) * layout.height
        elif rng.random() < 0.2:
            bottom = rng.uniform(0.3, 0.9) * layout.height
        centre, half = np.array([x + wide / 2, (top + bottom) / 2]), np.array([wide / 2, (bottom - top) / 2])
        corner = float(rng.choice([0.0, 0.25 * wide, 0.5 * wide], p=[0.6, 0.2, 0.2]))

        def bar(
            canvas: np.ndarray,
            grow: float,
            centre: np.ndarray = centre,
            half: np.ndarray = half,
            corner: float = corner,
        ) -> None:
            rectangle(canvas, centre, half + grow, corner)

        layout.add(bar)
        x += wide + layout.gap * rng.uniform(1.0, 3.2)


def add_bundle(layout: Layout) -> None:
    """Parallel traces that turn by 45 degrees together, some ending in vias."""
    rng = layout.rng
    count = int(rng.integers(1, 10))
    width = layout.trace * rng.uniform(0.8, 1.2)
    pitch = width + layout.gap * rng.uniform(0.9, 1.6)
    heading = int(rng.choice([0, 2, 4, 6, 1, 3, 5, 7], p=[0.19] * 4 + [0.06] * 4))
    start = layout.point() - _headed(heading) * rng.uniform(0, 0.8) * layout.width
    path = _path(rng, start, heading, int(rng.integers(2, 6)), 0.3 * layout.width)
    via = max(width * rng.uniform(0.9, 1.6), 7.0)
    for i in range(count):
        own = offset_path(path, (i - (count - 1) / 2) * pitch)
        ends = rng.random(2) < 0.4
        if ends[0]:
            own[0] += (own[1] - own[0]) * rng.uniform(0, 0.6)
        if ends[1]:
            own[-1] += (own[-2] - own[-1]) * rng.uniform(0, 0.6)

        def draw(canvas: np.ndarray, grow: float, own: np.ndarray = own, ends: np.ndarray = ends) -> None:
            line(canvas, own, width + 2 * grow)
            for end, point in zip(ends, (own[0], own[-1]), strict=True):
                if end and count < 6:
                    disc(canvas, point, via + grow)

        layout.add(draw)


def add_connector(layout: Layout) -> None:
    """A row of equal pads (fingers, squares or discs with a hole), traces leaving from some."""
    rng = layout.rng
    style = str(rng.choice(["finger", "square", "ring"], p=[0.4, 0.25, 0.35]))
    size = layout.trace * {"finger": rng.uniform(0.7, 1.2), "square": rng.uniform(1.2, 2.2), "ring": 0}[style]
    if style == "ring":
        size = float(np.clip(layout.trace * rng.uniform(1.5, 3), 16, 38))
    half = np.array([size, size * (rng.uniform(2.5, 5) if style == "finger" else 1.0)])
    hole = size * rng.uniform(0.35, 0.6) if rng.random() < 0.75 else 0.0
    pitch = 2 * size + layout.gap * rng.uniform(1.0, 2.2)
    corner = float(rng.choice([0.0, 0.3, 1.0], p=[0.45, 0.25, 0.3])) * size
    upright = rng.random() < 0.5
    origin = layout.point(20)
    rows = int(rng.integers(1, 4)) if style != "finger" else int(rng.integers(1, 3))
    lead = int(rng.choice([0, 1, 2]))
    turn = int(rng.choice([-1, 0, 1]))
    length, bend = rng.uniform(20, 90), rng.uniform(30, 160)
    out = 2 if rng.random() < 0.5 else 6
    holes: list[np.ndarray] = []
    for row in range(rows):
        across = row * (2 * half[1] + layout.gap * rng.uniform(1.2, 4))
        for i in range(int(rng.integers(2, 14))):
            place = np.array([i * pitch, across])
            drop = rng.random() < 0.12
            runs = lead and rng.random() < 0.7
            path = np.array([place, place + _headed(out) * (half[1] + length)])
            if turn:
                path = np.vstack([path, path[-1] + _headed(out + turn) * (bend + 0.4 * i * pitch)])
            axis = np.array([[1, 0], [0, 1]]) if upright else np.array([[0, 1], [1, 0]])
            centre, half_xy = origin + place @ axis, half @ axis
            wire = origin + path @ axis

            def pad(canvas: np.ndarray, grow: float, centre: np.ndarray = centre, own: np.ndarray = half_xy) -> None:
                if style == "ring":
                    disc(canvas, centre, size + grow)
                else:
                    rectangle(canvas, centre, own + grow, corner + (grow if corner else 0))

            def pad_and_wire(canvas: np.ndarray, grow: float, pad=pad, wire: np.ndarray = wire) -> None:
                pad(canvas, grow)
                line(canvas, wire, min(layout.trace, 1.6 * size) + 2 * grow)

            if not drop and ((runs and layout.add(pad_and_wire)) or layout.add(pad)) and style == "ring" and hole > 4:
                holes.append(centre)
    for centre in holes:
        disc(layout.copper, centre, hole, 0)


def add_vias(layout: Layout, count: int) -> None:
    """Single round pads, some with a short trace to a second one."""
    rng = layout.rng
    radius = float(np.clip(layout.trace * rng.uniform(0.7, 1.3), 6, 22))
    hole = radius * 0.5 if radius > 11 and rng.random() < 0.6 else 0.0
    for _ in range(count):
        at = layout.point()
        path = _path(rng, at, int(rng.integers(8)), int(rng.integers(1, 4)), 70.0) if rng.random() < 0.5 else at[None]

        def draw(canvas: np.ndarray, grow: float, path: np.ndarray = path) -> None:
            for end in path[[0, -1]]:
                disc(canvas, end, radius + grow)
            if len(path) > 1:
                line(canvas, path, layout.trace + 2 * grow)

        if layout.add(draw) and hole:
            for end in path[[0, -1]]:
                disc(layout.copper, end, hole, 0)


def add_components(layout: Layout, count: int) -> None:
    """Pairs of square pads, each with a trace that leaves by a 45 degree bend."""
    rng = layout.rng
    side = layout.trace * rng.uniform(1.1, 2.0)
    half = np.array([side, side * rng.uniform(0.8, 1.5)])
    corner = float(rng.choice([0.0, 0.35])) * side
    for _ in range(count):
        at, upright = layout.point(), rng.random() < 0.5
        apart = np.array([0, 2 * half[1] + layout.gap * rng.uniform(1.2, 3)])
        own = half[::-1] if upright else half
        apart = apart[::-1] if upright else apart
        for k in (0, 1):
            centre = at + apart * k
            wired = rng.random() < 0.75
            heading = (0 if upright else 2) + (4 if k == 0 else 0) + int(rng.choice([-2, 0, 2]))
            path = _path(rng, centre, heading, int(rng.integers(1, 4)), rng.uniform(40, 120))

            def pad(canvas: np.ndarray, grow: float, centre: np.ndarray = centre, own: np.ndarray = own) -> None:
                rectangle(canvas, centre, own + grow, corner)

            def wire(canvas: np.ndarray, grow: float, pad=pad, path: np.ndarray = path) -> None:
                pad(canvas, grow)
                line(canvas, path, layout.trace + 2 * grow)
                disc(canvas, path[-1], layout.trace * 0.9 + grow)

            if not (wired and layout.add(wire)):
                layout.add(pad)


def add_pour(layout: Layout, *, everywhere: bool = False) -> None:
    """A copper area with chamfered outline that keeps its distance to what is there; some holes and slots in it."""
    rng = layout.rng
    area = np.zeros_like(layout.copper)
    if everywhere:
        area[:] = 255
    else:
        for _ in range(int(rng.integers(1, 4))):
            centre, half = layout.point(), rng.uniform(0.12, 0.45, size=2) * layout.width
            rectangle(area, centre, half, float(rng.choice([0.0, rng.uniform(10, 90)])))
    distance = cv2.distanceTransform(cv2.bitwise_not(layout.copper), cv2.DIST_L2, 3)
    clearance = layout.gap * rng.uniform(0.85, 1.5)
    poured = (area > 0) & (distance > clearance)
    # Slivers narrower than what can be etched are opened away.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(layout.trace * 0.5) + 3,) * 2)
    poured_u8 = cv2.morphologyEx(poured.astype(np.uint8) * 255, cv2.MORPH_OPEN, kernel)
    for _ in range(int(rng.integers(0, 7))):
        disc(poured_u8, layout.point(), rng.uniform(7, 18), 0)
    for _ in range(int(rng.integers(0, 3))):
        line(poured_u8, _path(rng, layout.point(), int(rng.choice([0, 2, 4, 6])), 3, 150.0), layout.gap, 0)
    cv2.bitwise_or(layout.copper, poured_u8, dst=layout.copper)


def _dense(layout: Layout) -> None:
    for _ in range(int(layout.rng.integers(1, 3))):
        add_connector(layout)
    for _ in range(int(layout.rng.integers(2, 6))):
        add_bundle(layout)
    add_components(layout, int(layout.rng.integers(3, 14)))
    add_vias(layout, int(layout.rng.integers(5, 30)))
    if layout.rng.random() < 0.3:
        add_pour(layout)


def _sparse(layout: Layout) -> None:
    for _ in range(int(layout.rng.integers(1, 3))):
        (add_bundle if layout.rng.random() < 0.5 else add_connector)(layout)
    add_vias(layout, int(layout.rng.integers(2, 12)))


def _power(layout: Layout) -> None:
    add_bars(layout)
    add_vias(layout, int(layout.rng.integers(0, 8)))
    if layout.rng.random() < 0.4:
        add_pour(layout)


def _poured(layout: Layout) -> None:
    for _ in range(int(layout.rng.integers(1, 4))):
        (add_bundle if layout.rng.random() < 0.5 else add_connector)(layout)
    add_components(layout, int(layout.rng.integers(0, 5)))
    add_pour(layout, everywhere=bool(layout.rng.random() < 0.5))


def _holes(layout: Layout) -> None:
    for _ in range(int(layout.rng.integers(2, 5))):
        add_connector(layout)
    add_vias(layout, int(layout.rng.integers(6, 24)))
    add_bundle(layout)
    if layout.rng.random() < 0.25:
        add_pour(layout)


_STYLES: Sequence[tuple[Callable[[Layout], None], float]] = (
    (_dense, 0.34), (_sparse, 0.14), (_power, 0.16), (_poured, 0.2), (_holes, 0.16),
)  # fmt: skip


def random_layout(rng: np.random.Generator, size: int) -> np.ndarray:
    """Copper coverage of a board crop, uint8 [size, size], 255 is copper, slightly turned as on a real stage."""
    margin = 16
    layout = Layout(rng, size + 2 * margin, size + 2 * margin)
    styles, weights = zip(*_STYLES, strict=True)
    for _ in range(4):
        styles[int(rng.choice(len(styles), p=weights))](layout)
        cover = cv2.countNonZero(layout.copper) / layout.copper.size
        if cover > 0.06:
            break
    copper = layout.copper
    if rng.random() < 0.5:
        copper = np.ascontiguousarray(copper.T)
    copper = np.ascontiguousarray(copper[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))])
    angle = float(rng.normal(0.0, 0.35)) if rng.random() < 0.7 else 0.0
    matrix = cv2.getRotationMatrix2D((size / 2 + margin, size / 2 + margin), angle, 1.0)
    matrix[:, 2] -= margin
    return cv2.warpAffine(copper, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
