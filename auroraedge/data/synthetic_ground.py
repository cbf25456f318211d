"""Generated ground surfaces: grey magnetic tiles with their grinding streaks, and five kinds of defects.

A picture is made in grey levels as float32 [H, W]; each defect is drawn through a mask, and boxes are the bounds of the
mask's 8-connected components, without margin, as in the source.
"""

from __future__ import annotations

import cv2
import numpy as np

from auroraedge.data.synthetic_part import Box, SyntheticPart, smooth_noise, white_noise
from auroraedge.errors import InvalidRequestError, UnknownLabelError

GROUND_LABELS = ("blowhole", "break", "crack", "fray", "uneven")
_LEAST_COMPONENT = 12  # pixels; smaller pieces get no box, as in the source


def generate_ground_surface(
    rng: np.random.Generator, label: str | None = None, size: tuple[int, int] | None = None
) -> SyntheticPart:
    """One tile, uint8 [H, W]. label: "ok" or one of GROUND_LABELS; None draws ok half of the time.

    size: (width, height) in pixels, else drawn as in the source (110..620 x 230..390). Raises UnknownLabelError.
    """
    _, image, objects, label = draw_ground(rng, label, size)
    return SyntheticPart(image, None, tuple(objects), label, "ground_surface")


def draw_ground(
    rng: np.random.Generator, label: str | None = None, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, Box]], str]:
    """The tile without its defect, the tile (both uint8 [H, W]), objects and image label."""
    if label is None:
        label = "ok" if rng.random() < 0.5 else str(rng.choice(GROUND_LABELS, p=[0.27, 0.22, 0.22, 0.09, 0.2]))
    if label != "ok" and label not in GROUND_LABELS:
        raise UnknownLabelError(f"'{label}' is no label of ground surfaces.", field="label")
    width, height = size or _draw_size(rng)
    clean = _tile(rng, height, width)
    if label == "ok":
        image = _quantise(clean)
        return image, image, [], label
    surface, mask = clean, np.zeros((height, width), np.uint8)
    for _ in range(30):
        drawn, mask = _DRAW[label](rng, clean.copy())
        mask = _visible(clean, drawn, mask)
        if mask.any():
            surface = np.where(mask > 0, drawn, clean)
            break
    else:
        raise InvalidRequestError(
            f"A surface of {width}x{height} px has no room for '{label}'.", field="size", remedy="Use 96 px or more."
        )
    image, clean_u8 = _quantise(surface), _quantise(clean)
    objects = [(label, box) for box in boxes_of(mask)]
    return clean_u8, image, objects, label


def _visible(clean: np.ndarray, drawn: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The components of the mask that an inspector could see; what falls on a dark rim is no defect."""
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    area = np.bincount(labels.ravel(), minlength=count)
    change = np.bincount(labels.ravel(), np.abs(drawn - clean).ravel(), minlength=count) / np.maximum(area, 1)
    seen = (area >= _LEAST_COMPONENT) & (change >= max(5.0, 0.09 * float(np.median(clean))))
    seen[0] = False
    return np.where(seen[labels], np.uint8(255), np.uint8(0))


def boxes_of(mask: np.ndarray, least: int = _LEAST_COMPONENT) -> list[Box]:
    """Bounds of the 8-connected components of at least `least` pixels."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return [(int(x), int(y), int(x + w), int(y + h)) for x, y, w, h, area in stats[1:] if area >= least]


def _quantise(grey: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    kind = rng.random()
    if kind < 0.3:
        return int(rng.integers(110, 140)), int(rng.integers(260, 300))
    if kind < 0.65:
        return int(rng.integers(185, 300)), int(rng.integers(255, 380))
    if kind < 0.85:
        return int(rng.integers(330, 520)), int(rng.integers(300, 390))
    return int(rng.integers(560, 620)), int(rng.integers(230, 270))


def _tile(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A defect-free tile: shading of a curved face, streaks along y, grain, dark rims, faint stains."""
    level = float(np.exp(rng.normal(np.log(102), 0.3)))
    contrast = level / 105
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    centre = rng.uniform(-0.6, 0.6)
    light = 1.1 - rng.uniform(0.1, 0.5) * np.abs(x - centre) ** rng.uniform(1.4, 2.6)
    light = light - rng.uniform(0.0, 0.2) * (y - rng.uniform(-0.6, 0.6)) ** 2
    light = light * np.exp(rng.uniform(0.06, 0.2) * smooth_noise(rng, h, w, w / 5, h / 5))
    if rng.random() < 0.6:
        light = light * (1 - rng.uniform(0.1, 0.45) * np.clip(smooth_noise(rng, h, w, w / 7, h / 8) - 0.9, 0, 1.2))
    # Grinding streaks: fine, broken along their length, with highlights, and stronger in some places than in others.
    envelope = np.exp(0.28 * smooth_noise(rng, h, w, w / 9, h / 6)) * light
    columns = smooth_noise(rng, h, w, 0.7, rng.uniform(60, 160))
    streaks = rng.uniform(2.5, 5.0) * smooth_noise(rng, h, w, 0.6, rng.uniform(1, 3)) * np.exp(0.28 * columns)
    streaks += rng.uniform(2.5, 6.5) * columns + rng.uniform(0.3, 2.2) * smooth_noise(
        rng, h, w, rng.uniform(1.5, 4), rng.uniform(60, 160)
    )
    streaks += rng.uniform(0.012, 0.03) * np.clip(streaks, 0, 40) ** 2
    lines = np.clip(columns - rng.uniform(1.3, 2.0), 0, 1.5) * np.exp(0.4 * smooth_noise(rng, 1, w, w / 8, 1.0))
    streaks += lines * np.clip(0.7 + smooth_noise(rng, h, w, 0.6, rng.uniform(1.2, 5)), 0, 2) * rng.uniform(6, 22)
    grain = rng.uniform(3.0, 5.5) * cv2.GaussianBlur(white_noise(rng, h, w), (0, 0), 0.55) * 2.0
    grey = level * light + contrast * (streaks * envelope + grain * light)
    grey = _stains(rng, grey, contrast)
    return np.clip(_rims(rng, _chamfers(rng, grey), contrast), 8, 255).astype(np.float32)


def _chamfers(rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """The slanting flanks at the left and right: a bright or dim band behind a dark line."""
    w = grey.shape[1]
    grey = grey.copy()
    for mirrored in (False, True):
        if rng.random() > 0.3:
            continue
        band = int(rng.uniform(0.015, 0.06) * w) + 3
        factor = np.ones(w, np.float32)
        factor[:band] = rng.choice([rng.uniform(0.35, 0.7), rng.uniform(1.2, 1.7)])
        factor[band : band + 2] = rng.uniform(0.55, 0.8)
        factor = cv2.GaussianBlur(factor[None], (0, 0), 1.0)[0]
        grey = grey * (factor[::-1] if mirrored else factor)
    return grey


def _stains(rng: np.random.Generator, grey: np.ndarray, contrast: float) -> np.ndarray:
    """Faint dirt and rub marks that are no defect."""
    h, w = grey.shape
    for _ in range(int(rng.integers(0, 9))):
        mark = np.zeros((h, w), np.float32)
        bend = rng.uniform(0.1, 0.7)
        steps = int(rng.integers(2, 12))
        points = _walk(rng, rng.uniform((0, 0), (w, h)), rng.uniform(0, 2 * np.pi), steps, rng.uniform(3, 9), bend)
        cv2.polylines(mark, [_fixed(points)], False, 1.0, int(rng.choice([1, 1, 2, 4])), cv2.LINE_AA, 4)
        grey = grey - contrast * rng.uniform(4, 22) * cv2.GaussianBlur(mark, (0, 0), rng.uniform(0.7, 1.6))
    if rng.random() < 0.35:
        cloud = np.clip(smooth_noise(rng, h, w, rng.uniform(8, 30)) - rng.uniform(0.8, 1.8), 0, 1)
        grey = grey * (1 - rng.uniform(0.05, 0.2) * cloud)
    return grey


def _rims(rng: np.random.Generator, grey: np.ndarray, contrast: float) -> np.ndarray:
    """The dark background or chamfer at some sides of the crop."""
    h, w = grey.shape
    for side in range(4):
        if rng.random() > (0.35 if side < 2 else 0.28):
            continue
        along, across = (w, h) if side < 2 else (h, w)
        curve = rng.uniform(1, 0.03 * across + 2) + rng.uniform(-1, 1) * np.linspace(-1, 1, along)
        curve = curve + rng.uniform(0, 0.02) * across * np.linspace(-1, 1, along) ** 2
        depth = np.arange(across)[:, None] - curve[None]
        shade = 1 / (1 + np.exp(-depth / rng.uniform(0.6, 2.0)))
        dark = rng.uniform(0.18, 0.5)
        factor = (dark + (1 - dark) * shade).astype(np.float32)
        bright = np.exp(-0.5 * ((depth - 4) / 2.0) ** 2) * contrast * rng.uniform(0, 9)
        if side % 2:
            factor, bright = factor[::-1], bright[::-1]
        if side >= 2:
            factor, bright = factor.T, bright.T
        grey = grey * factor + bright
    return grey


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(points) * 16).astype(np.int32).reshape(-1, 1, 2)


def _walk(
    rng: np.random.Generator, start: np.ndarray, angle: float, steps: int, step_px: float, turn: float
) -> np.ndarray:
    """A meandering path [steps + 1, 2]."""
    angles = angle + np.cumsum(rng.normal(0, turn, size=steps)) * 0.6
    moves = np.stack([np.cos(angles), np.sin(angles)], 1) * step_px * rng.uniform(0.6, 1.4, size=(steps, 1))
    return np.vstack([start, start + np.cumsum(moves, 0)])


def _irregular(
    rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, rough: float, points: int = 40
) -> np.ndarray:
    """A closed outline [points, 2] round an ellipse, its radius varying by about `rough` of itself."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    wave = sum(rng.normal(0, 1 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 9))
    outline = np.stack([np.cos(angle) * radii[0], np.sin(angle) * radii[1]], 1)
    outline = outline * (1 + rough * np.asarray(wave))[:, None]
    turn = rng.uniform(-0.6, 0.6)
    c, s = np.cos(turn), np.sin(turn)
    return centre + outline @ np.array([[c, s], [-s, c]])


def _filled(shape: tuple[int, ...], outline: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [_fixed(outline)], 255, cv2.LINE_8, 4)
    return mask


def _soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    """The mask with a soft edge that stays inside it, float32 0..1."""
    soft = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), sigma)
    return np.clip(2 * soft - 0.75, 0, 1) * (mask > 0)


def _blowhole(rng: np.random.Generator, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h, w = grey.shape
    mask = np.zeros((h, w), np.uint8)
    for _ in range(1 if rng.random() < 0.85 else 2):
        radii = np.array([rng.uniform(3.2, 8.0), rng.uniform(3.8, 9.5)])
        centre = rng.uniform((radii[0] + 4, radii[1] + 4), (w - radii[0] - 4, h - radii[1] - 4))
        one = _filled((h, w), _irregular(rng, centre, radii, 0.13))
        inside = _soft(one, 1.2)
        floor = np.median(grey) * rng.uniform(0.2, 0.42)
        hole = floor + 5 * smooth_noise(rng, h, w, 1.5)
        # One flank of the pore catches the light.
        gx = cv2.Sobel(cv2.GaussianBlur(one.astype(np.float32) / 255, (0, 0), 2.0), cv2.CV_32F, 1, 0)
        hole = hole + np.clip(-gx, 0, None) * rng.uniform(0, 30)
        grey = grey * (1 - inside) + hole * inside
        mask |= one
    return grey, mask


def _break(rng: np.random.Generator, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h, w = grey.shape
    reach = np.array([rng.uniform(8, 45), rng.uniform(7, 30)])
    side = int(rng.integers(4))
    at = {
        0: (rng.uniform(0, w), rng.uniform(-2, 3)),
        1: (rng.uniform(0, w), h - rng.uniform(-2, 3)),
        2: (rng.choice([2.0, w - 2.0]), rng.choice([2.0, h - 2.0])),
        3: (rng.choice([0.0, float(w)]), rng.uniform(0, h)),
    }[side]
    if side == 3:
        reach = reach[::-1]
    mask = _filled((h, w), _irregular(rng, np.array(at), reach, 0.16, points=60))
    inside = _soft(mask, 0.9)
    facets = smooth_noise(rng, h, w, 5.0) * 0.12 + smooth_noise(rng, h, w, 1.2) * 0.07
    broken = np.median(grey) * (rng.uniform(0.3, 0.62) + facets)
    rim = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    broken = broken + cv2.GaussianBlur(rim.astype(np.float32), (0, 0), 0.8) * rng.uniform(-30, 30)
    return grey * (1 - inside) + broken * inside, mask


def _crack(rng: np.random.Generator, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h, w = grey.shape
    mask = np.zeros((h, w), np.uint8)
    depth = np.zeros((h, w), np.float32)
    for _ in range(1 if rng.random() < 0.75 else 2):
        from_top = rng.random() < 0.5
        edge = rng.random() < 0.75
        y = (0.0 if from_top else float(h)) if edge else rng.uniform(0.15, 0.85) * h
        length = float(np.clip(rng.gamma(3.0, 24.0), 26, 0.6 * h))
        angle = (np.pi / 2 if from_top else -np.pi / 2) + rng.normal(0, 0.12)
        path = _walk(rng, np.array([rng.uniform(12, w - 12), y]), angle, max(4, int(length / 5)), 5.0, 0.2)
        own = np.zeros((h, w), np.float32)
        fade = np.linspace(1.0, rng.uniform(0.3, 0.8), len(path))
        thick = 2 if rng.random() < 0.3 else 1
        for i in range(1, len(path)):
            cv2.polylines(own, [_fixed(path[i - 1 : i + 1])], False, float(fade[i]), thick, cv2.LINE_AA, 4)
        if rng.random() < 0.3:
            start = path[int(rng.integers(1, len(path)))]
            branch = _walk(rng, start, angle + rng.choice([-0.7, 0.7]), int(rng.integers(2, 5)), 4.0, 0.3)
            cv2.polylines(own, [_fixed(branch)], False, 0.6, 1, cv2.LINE_AA, 4)
        soft = cv2.GaussianBlur(own, (0, 0), 0.6)
        depth = np.maximum(depth, soft)
        mask |= np.where(soft > 0.06, np.uint8(255), np.uint8(0))
    depth = np.clip(depth * 1.4, 0, 1) * (mask > 0)
    dark = np.median(grey) * rng.uniform(0.25, 0.5)
    return grey * (1 - depth) + np.minimum(grey, dark) * depth, mask


def _fray(rng: np.random.Generator, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The face is worn or never ground: the streaks are gone, it is darker and shows its handling marks."""
    h, w = grey.shape
    radii = np.array([rng.uniform(0.12, 0.38) * w, rng.uniform(0.1, 0.42) * h])
    centre = rng.uniform((0.2 * w, 0.2 * h), (0.8 * w, 0.8 * h)) if rng.random() < 0.6 else rng.uniform((0, 0), (w, h))
    if rng.random() < 0.35:
        # A frayed edge rather than a worn face.
        radii = radii * rng.uniform(0.3, 0.6)
        centre = np.array([rng.uniform(0, w), rng.choice([0.0, float(h)])])
    radii = np.clip(radii, radii.max() / 2.5, None)
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    reach = np.hypot((xx - centre[0]) / radii[0], (yy - centre[1]) / radii[1])
    reach = reach + rng.uniform(0.08, 0.25) * smooth_noise(rng, h, w, radii.min() / 2.2)
    reach = reach + rng.uniform(0.01, 0.06) * smooth_noise(rng, h, w, 2.5)
    mask = np.where(reach < 1, np.uint8(255), np.uint8(0))
    inside = _soft(mask, rng.uniform(1.0, 5.0))
    smooth = cv2.GaussianBlur(grey, (0, 0), 9.0)
    rough = smooth_noise(rng, h, w, 6.0) * 3 + smooth_noise(rng, h, w, 0.8) * 3.5
    contrast = float(np.median(grey)) / 95
    wear = 1 + rng.uniform(0.03, 0.12) * smooth_noise(rng, h, w, 22.0) + rng.uniform(-0.1, 0.25) * np.clip(reach, 0, 1)
    worn = smooth * rng.uniform(0.45, 0.85) * wear + contrast * rough
    # Traces of the streaks go on where the wheel still touched.
    worn = worn + (grey - smooth) * rng.uniform(0.05, 0.45)
    for _ in range(int(rng.integers(0, 3))):
        worn = _stains(rng, worn, contrast)
    if rng.random() < 0.4:
        mark = np.zeros((h, w), np.float32)
        for turn in (0.7, -0.7):
            arm = np.array([np.sin(turn), np.cos(turn)]) * radii.min() * rng.uniform(0.4, 0.8)
            cv2.polylines(mark, [_fixed(np.array([centre - arm, centre + arm]))], False, 1.0, 7, cv2.LINE_AA, 4)
        worn = worn + contrast * rng.uniform(8, 22) * cv2.GaussianBlur(mark, (0, 0), 1.3)
    return grey * (1 - inside) + worn * inside, mask


def _uneven(rng: np.random.Generator, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A part of the face was ground differently: a step across the tile, or patches that the wheel missed."""
    h, w = grey.shape
    mask = np.zeros((h, w), np.uint8)
    ridge = np.zeros((h, w), np.float32)
    if rng.random() < 0.65:
        cut = rng.uniform(0.15, 0.5) * h
        slope = rng.normal(0, 0.035) * w
        line = cut + np.linspace(-slope, slope, w) + rng.uniform(0, 2) * smooth_noise(rng, 1, w, 9.0, 1.0)[0]
        rows = np.arange(h)[:, None] - line[None]
        mask[rows < 0] = 255
        ridge = (rng.uniform(-30, 30) * np.exp(-0.5 * ((rows + 2) / 1.2) ** 2)).astype(np.float32)
        if rng.random() < 0.5:
            mask, ridge = np.ascontiguousarray(mask[::-1]), ridge[::-1]
        inside = _soft(mask, rng.uniform(0.8, 2.0))
    else:
        field = smooth_noise(rng, h, w, 0.13 * w, 0.09 * h) + 0.12 * smooth_noise(rng, h, w, 4.0, 9.0)
        field = field + rng.uniform(0, 1.2) * np.abs(np.linspace(-1, 1, w, dtype=np.float32))[None] ** 2
        mask[field > np.quantile(field, rng.uniform(0.75, 0.93))] = 255
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8)).astype(np.uint8)
        inside = _soft(mask, rng.uniform(1.5, 5.0))
    factor = rng.choice([rng.uniform(0.62, 0.85), rng.uniform(1.15, 1.4)])
    other = cv2.GaussianBlur(grey, (0, 0), sigmaX=0.8, sigmaY=2.5) if rng.random() < 0.5 else grey
    streaks = smooth_noise(rng, h, w, 0.8, 50.0) * np.median(grey) * rng.uniform(0.02, 0.1)
    streaks += np.clip(smooth_noise(rng, h, w, 1.2, 60.0) - 0.5, 0, 3) * np.median(grey) * rng.uniform(0, 0.35)
    return grey * (1 - inside) + (other * factor + streaks + ridge) * inside, mask


_DRAW = {"blowhole": _blowhole, "break": _break, "crack": _crack, "fray": _fray, "uneven": _uneven}
