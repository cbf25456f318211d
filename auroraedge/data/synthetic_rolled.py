"""Generated hot-rolled strip surfaces: grey squares of one class each, the seven classes of the steel strip set and ok.

Every picture starts from the same plain strip. Classes with a place of their own (scratch, ash, slag, roll print, plate
scale) have boxes; red iron and temperature scale cover the picture and have none.
"""

from __future__ import annotations

import cv2
import numpy as np

from auroraedge.data.synthetic_part import Box, SyntheticPart, smooth_noise, white_noise
from auroraedge.errors import UnknownLabelError

ROLLED_LABELS = (
    "red_iron",
    "slag_inclusion",
    "iron_sheet_ash",
    "surface_scratch",
    "oxide_scale_of_plate_system",
    "oxide_scale_of_temperature_system",
    "finishing_roll_printing",
)
_VISIBLE = 5.0  # grey levels: a change of less does not count for a box


def generate_rolled_surface(
    rng: np.random.Generator, label: str | None = None, size: int | None = None
) -> SyntheticPart:
    """One square of strip, uint8 [size, size]. label: "ok" or one of ROLLED_LABELS; None draws ok once in eight.

    size: pixels, else 128 (mostly) to 256. Raises UnknownLabelError.
    """
    _, image, objects, label = draw_rolled(rng, label, size)
    return SyntheticPart(image, None, tuple(objects), label, "rolled_surface")


def draw_rolled(
    rng: np.random.Generator, label: str | None = None, size: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, Box]], str]:
    """The strip without its defect, the strip (both uint8 [size, size]), objects and image label."""
    if label is None:
        label = str(rng.choice(["ok", *ROLLED_LABELS]))
    if label != "ok" and label not in ROLLED_LABELS:
        raise UnknownLabelError(f"'{label}' is no label of rolled surfaces.", field="label")
    side = size or int(rng.choice([128, int(rng.integers(128, 257))], p=[0.6, 0.4]))
    clean = _strip(rng, side)
    if label == "oxide_scale_of_plate_system" or rng.random() < 0.1:
        clean = _blotched(rng, clean)
    if label == "ok":
        image = _quantise(clean)
        return image, image, [], label
    surface, boxes = _DRAW[label](rng, clean)
    return _quantise(clean), _quantise(surface), [(label, box) for box in boxes], label


def _quantise(grey: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _strip(rng: np.random.Generator, n: int) -> np.ndarray:
    """Plain strip, float32 [n, n]: grey about 130 with little contrast, faint streaks along the rolling direction y."""
    grey = np.full((n, n), 130.0 + rng.normal(0, 1.0), np.float32)
    grey += rng.uniform(0.4, 1.8) * smooth_noise(rng, n, n, n / 5)
    grey += rng.uniform(0.3, 1.4) * smooth_noise(rng, n, n, rng.uniform(1.0, 4.0), n / 2)
    grey += rng.uniform(1.5, 4.0) * cv2.GaussianBlur(white_noise(rng, n, n), (0, 0), 0.7) * 2.2
    if rng.random() < 0.4:
        grey += rng.uniform(1.0, 3.0) * np.clip(smooth_noise(rng, n, n, rng.uniform(1.5, 4)) - 0.8, 0, 2)
    if rng.random() < 0.12:
        x = np.linspace(-1, 1, n, dtype=np.float32)
        grey += rng.uniform(4, 14) * (x[None] * rng.uniform(-1, 1) + x[:, None] * rng.uniform(-1, 1))
    return grey


def _blotched(rng: np.random.Generator, clean: np.ndarray) -> np.ndarray:
    """The light blotches of a strip that was descaled unevenly; no defect of their own."""
    n = len(clean)
    patches = smooth_noise(rng, n, n, 4.0, 5.0) + 0.5 * smooth_noise(rng, n, n, 1.5)
    light = np.clip(patches - rng.uniform(0.3, 1.2), 0, 0.7) * rng.uniform(3, 14)
    return (clean + light).astype(np.float32)


def _box(changed: np.ndarray) -> list[Box]:
    """Bounds of everything that changed visibly."""
    ys, xs = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return [(int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)] if xs.size else []


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(points) * 16).astype(np.int32).reshape(-1, 1, 2)


def _stroke(n: int, points: np.ndarray, thickness: int) -> np.ndarray:
    canvas = np.zeros((n, n), np.float32)
    cv2.polylines(canvas, [_fixed(points)], False, 1.0, thickness, cv2.LINE_AA, 4)
    return canvas


def _apply(clean: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface changed by `delta` where that is visible, and the mask of it."""
    changed = np.abs(delta) >= _VISIBLE
    # Around what is visible the change fades out within two pixels.
    near = cv2.dilate(changed.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return clean + delta * near, near


def _one_box(clean: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    surface, changed = _apply(clean, delta)
    return surface, _box(changed)


def _red_iron(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """Flat dark islands, drawn out along the strip."""
    n = len(clean)
    field = smooth_noise(rng, n, n, rng.uniform(2.5, 5.5), rng.uniform(8, 18)) + 0.3 * smooth_noise(rng, n, n, 1.3, 3.5)
    lean = rng.uniform(0.3, 1.2) * smooth_noise(rng, n, n, n / 6, n / 2)
    field = field + lean
    level = np.quantile(field, 1 - rng.choice([rng.uniform(0.03, 0.12), rng.uniform(0.1, 0.45)]))
    islands = cv2.GaussianBlur((field > level).astype(np.float32), (0, 0), 0.8)
    dark = rng.choice([rng.uniform(15, 30), rng.uniform(35, 68)], p=[0.35, 0.65])
    grain = 1 - rng.uniform(0.0, 0.5) * islands
    middle = float(clean.mean())
    x = np.linspace(-1, 1, n, dtype=np.float32)
    shade = rng.choice([0.0, 1.0]) * (rng.normal(0, 7) * x[None] + rng.normal(0, 7) * x[:, None])
    return middle + (clean - middle) * grain - dark * islands + shade, []


def _slag_inclusion(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    return _one_box(clean, _slag_ring(rng, len(clean)) if rng.random() < 0.35 else _slag_band(rng, len(clean)))


def _slag_ring(rng: np.random.Generator, n: int) -> np.ndarray:
    """A blister: flat rings round a bright and dark core."""
    yy, xx = np.mgrid[0:n, 0:n].astype(np.float32)
    cx, cy = rng.uniform(0.2 * n, 0.8 * n, size=2)
    radius, squash = rng.uniform(0.08, 0.24) * n, rng.uniform(0.45, 0.9)
    d = np.hypot(xx - cx, (yy - cy) / squash) / radius + 0.06 * smooth_noise(rng, n, n, 6.0)
    delta = np.zeros((n, n), np.float32)
    for ring in rng.uniform(0.35, 1.0, size=int(rng.integers(2, 5))):
        delta -= rng.uniform(14, 34) * np.exp(-0.5 * ((d - ring) / rng.uniform(0.03, 0.08)) ** 2)
        delta += rng.uniform(4, 16) * np.exp(-0.5 * ((d - ring + 0.11) / 0.06) ** 2)
    core = np.exp(-0.5 * (d / 0.3) ** 2)
    return delta + core * (smooth_noise(rng, n, n, 1.2) * 42 - 12)


def _slag_band(rng: np.random.Generator, n: int) -> np.ndarray:
    """A torn streak along the strip: layers of light and dark, a ragged edge, bright splinters."""
    y = np.arange(n, dtype=np.float32)
    middle = rng.uniform(0.15, 0.85) * n + 2.0 * smooth_noise(rng, n, 1, 1.0, 12.0)[:, 0]
    middle += np.linspace(-1, 1, n) * rng.uniform(-3, 3)
    start, stop = (0.0, float(n)) if rng.random() < 0.45 else np.sort(rng.uniform(-0.3, 1.3, size=2)) * n
    if stop - start < 0.4 * n:
        start, stop = stop - 0.6 * n, stop
    wide = rng.uniform(2.5, 0.09 * n)
    taper = np.clip(np.minimum(y - start, stop - y) / (0.35 * n), 0, 1) ** 0.6
    if rng.random() < 0.4:
        taper = (y > start) & (y < stop)
    half = wide * taper * (1 + 0.25 * smooth_noise(rng, n, 1, 1.0, 5.0)[:, 0])
    x = np.arange(n, dtype=np.float32)[None]
    across = (x - middle[:, None]) / np.maximum(half, 0.3)[:, None]
    inside = (np.abs(across) < 1) & (half[:, None] > 0.4)
    inside = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 0.7)
    layers = smooth_noise(rng, n, n, 1.1, rng.uniform(4, 30)) * rng.uniform(8, 22) - rng.uniform(4, 28)
    torn = np.clip(smooth_noise(rng, n, n, 1.5, 2.5) - 1.3, 0, 2) * rng.uniform(20, 90)
    pits = np.clip(smooth_noise(rng, n, n, 1.3, 2.0) - 1.2, 0, 2) * rng.uniform(20, 80)
    edge = np.exp(-0.5 * ((np.abs(across) - 1) * half[:, None] / 1.2) ** 2) * (half[:, None] > 0.5) * rng.uniform(4, 20)
    return inside * (layers + torn - pits) - edge


def _iron_sheet_ash(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """A clump of dark crumbs with crumbs round it and sometimes a smear."""
    n = len(clean)
    cx, cy = rng.uniform(0.2, 0.8, size=2) * n
    spread = rng.uniform(0.02, 0.09) * n
    crumbs = np.zeros((n, n), np.float32)
    for _ in range(int(rng.integers(3, 16))):
        at = np.array([cx, cy]) + rng.normal(0, 0.6, size=2) * (spread * 1.1, spread * 0.7)
        axes = (int(rng.uniform(0.25, 0.8) * spread * 16) + 16, int(rng.uniform(0.2, 0.5) * spread * 16) + 14)
        x, y = (int(v) for v in at * 16)
        tilt, depth = float(rng.uniform(-25, 25)), float(rng.uniform(0.5, 1))
        cv2.ellipse(crumbs, (x, y), axes, tilt, 0, 360, depth, -1, cv2.LINE_AA, 4)
    for _ in range(int(rng.integers(0, 26))):
        x, y = (np.array([cx, cy]) + rng.normal(0, 1, size=2) * (2.2 * spread, 2.0 * spread) + (0, spread)) * 16
        radius = int(rng.uniform(0.5, 2.0) * n / 128 * 16)
        cv2.circle(crumbs, (int(x), int(y)), radius, float(rng.uniform(0.4, 1.0)), -1, cv2.LINE_AA, 4)
    ragged = cv2.GaussianBlur(crumbs, (0, 0), 1.1 * n / 128) * (1 + 0.4 * smooth_noise(rng, n, n, 1.2))
    crumbs = np.clip((ragged - 0.22) * 2.2, 0, 1)
    delta = -crumbs * (1 + 0.2 * smooth_noise(rng, n, n, 1.2)) * rng.uniform(38, 76)
    delta += np.clip(cv2.Sobel(ragged, cv2.CV_32F, 0, 1), 0, None) * rng.uniform(0, 14)
    if rng.random() < 0.6:
        halo = cv2.GaussianBlur(ragged, (0, 0), spread * rng.uniform(0.6, 1.2), borderType=cv2.BORDER_CONSTANT)
        delta -= halo * rng.uniform(10, 36)
    return _one_box(clean, delta)


def _surface_scratch(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """Thin dark lines along the strip; each has its own box."""
    n = len(clean)
    surface, boxes = clean.copy(), []
    for place in rng.permutation(np.linspace(0.06, 0.94, 8))[: int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1]))]:
        x = place * n + rng.uniform(-0.02, 0.02) * n
        y1, y2 = (-2.0, n + 2.0) if rng.random() < 0.75 else np.sort(rng.uniform(-0.2, 1.2, size=2)) * n
        if y2 - y1 < 0.35 * n:
            y1, y2 = -2.0, n + 2.0
        t = np.linspace(0, 1, 12)
        lean = rng.normal(0, 0.012) * n
        path = np.stack([x + lean * (t - 0.5) + rng.normal(0, 0.1, size=12), y1 + (y2 - y1) * t], 1)
        line = cv2.GaussianBlur(_stroke(n, path, 1 if rng.random() < 0.75 else 2), (0, 0), rng.uniform(0.45, 0.8))
        strength = rng.uniform(18, 52) * np.clip(1 + 0.25 * smooth_noise(rng, n, 1, 1.0, 8.0), 0.4, 1.4)
        delta = -line * strength
        if rng.random() < 0.4:
            delta = delta + np.roll(line, 1, axis=1) * rng.uniform(3, 12)
        changed_surface, changed = _apply(surface, delta)
        found = _box(changed)
        if found:
            surface = changed_surface
            boxes += found
    return surface, boxes


def _plate_scale(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """A dark spindle of broken scale along the strip, flaked inside, sometimes with a neighbour."""
    n = len(clean)
    cx, cy = rng.uniform(0.15, 0.85) * n, rng.uniform(-0.05, 1.05) * n
    delta = _spindle(rng, n, cx, cy, rng.uniform(0.2, 0.5) * n, rng.uniform(0.035, 0.1) * n)
    if rng.random() < 0.25:
        delta += _spindle(rng, n, cx + rng.choice([-1, 1]) * 0.13 * n, cy, rng.uniform(0.1, 0.3) * n, 0.03 * n)
    return _one_box(clean, delta)


def _spindle(rng: np.random.Generator, n: int, cx: float, cy: float, long: float, wide: float) -> np.ndarray:
    """Change of grey of one spindle centred at cx, cy with these half axes, float32 [n, n]."""
    yy, xx = np.mgrid[0:n, 0:n].astype(np.float32)
    t = np.clip(1 - np.abs((yy - cy) / long) ** 1.7, 0, 1)
    half = wide * t**0.7 * (1 + 0.1 * smooth_noise(rng, n, 1, 1.0, 2.5))
    across = np.abs(xx - cx - smooth_noise(rng, n, 1, 1.0, 14.0)) / np.maximum(half, 0.2)
    inside = cv2.GaussianBlur(((across < 1) & (half > 0.5)).astype(np.float32), (0, 0), 0.7)
    flakes = smooth_noise(rng, n, n, 1.4, 0.9) * rng.uniform(6, 16)
    flakes += smooth_noise(rng, n, n, 0.9, 5.0) * rng.uniform(5, 14)
    bare = np.clip(2.5 * (smooth_noise(rng, n, n, 0.04 * n, 0.07 * n) - rng.uniform(0.2, 1.5)), 0, 1)
    depth = rng.uniform(16, 42) * (1 - bare * np.clip(1.3 - across, 0, 1))
    rim = np.exp(-0.5 * ((across - 0.9) / 0.2) ** 2) * rng.uniform(0, 18) * (half > 0.6)
    streaks = np.clip(smooth_noise(rng, n, n, 0.9, 9.0), 0, 2) * np.exp(-2 * np.clip(across - 1, 0, 9)) * (t > 0.03)
    return inside * (flakes - depth) - rim - streaks * rng.uniform(4, 16) * (across < 2.2)


def _temperature_scale(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """Many small pits of ragged outline, each dark with a light flank, crowded in some places."""
    n = len(clean)
    scale = max(1.0, n / 160)
    grain = smooth_noise(rng, n, n, rng.uniform(0.9, 1.5) * scale, rng.uniform(1.1, 2.6) * scale)
    grain += 0.45 * smooth_noise(rng, n, n, 2.2 * scale, 3.2 * scale)
    crowd = rng.uniform(0.2, 0.9) * smooth_noise(rng, n, n, n / 9, n / 5)
    level = np.quantile(grain + crowd, 1 - rng.choice([rng.uniform(0.014, 0.025), rng.uniform(0.025, 0.08)]))
    pits = np.clip((grain + crowd - level) * 1.6, 0, 1)
    pits = cv2.GaussianBlur(pits, (0, 0), 0.55)
    light = np.clip(np.roll(pits, (1, 1), axis=(0, 1)) - pits, 0, None)
    return clean - pits * rng.uniform(24, 52) + light * rng.uniform(5, 26), []


def _roll_printing(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """The print of a mark on the roll: a long thin slanting groove, light on one flank and dark on the other."""
    n = len(clean)
    angle = rng.choice([rng.normal(0.1, 0.15), rng.normal(np.pi / 2 - 0.3, 0.15)]) * rng.choice([-1, 1])
    centre, length = rng.uniform(0.25, 0.75, size=2) * n, rng.uniform(0.3, 1.1) * n
    t = np.linspace(-1, 1, 16)[:, None]
    along = np.array([np.cos(angle), np.sin(angle)])
    path = centre + along * t * length / 2 + np.array([-along[1], along[0]]) * (t**2 - 0.5) * rng.normal(0, 0.025) * n
    canvas = np.zeros((n, n), np.float32)
    widest, peak = rng.uniform(1.0, 4.0) * n / 128, rng.uniform(-0.6, 0.6)
    for i in range(1, 16):
        near = max(0.0, 1 - abs(float(t[i, 0]) - peak))
        p, q = (tuple(int(v) for v in point) for point in _fixed(path[i - 1 : i + 1])[:, 0])
        cv2.line(canvas, p, q, 0.45 + 0.55 * near, max(1, round(widest * near)), cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.7, 1.3))
    gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    bevel = gx * -along[1] + gy * along[0]
    delta = bevel * rng.uniform(3, 9) * rng.choice([-1, 1]) - soft * rng.uniform(-9, 20)
    delta += soft * smooth_noise(rng, n, n, 1.2) * rng.uniform(2, 10)
    if rng.random() < 0.5:
        # The metal bulges beside the groove: a wide faint band.
        delta += cv2.GaussianBlur(canvas, (0, 0), 0.04 * n) * rng.choice([-1, 1]) * rng.uniform(6, 30)
    scale = max(1.0, 16.0 / max(1.0, float(np.abs(delta).max())))
    return _one_box(clean, delta * scale)


_DRAW = {
    "red_iron": _red_iron,
    "slag_inclusion": _slag_inclusion,
    "iron_sheet_ash": _iron_sheet_ash,
    "surface_scratch": _surface_scratch,
    "oxide_scale_of_plate_system": _plate_scale,
    "oxide_scale_of_temperature_system": _temperature_scale,
    "finishing_roll_printing": _roll_printing,
}
