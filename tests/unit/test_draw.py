from __future__ import annotations

import itertools
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.draw import (
    Rect,
    _tag_place,
    draw_boxes,
    draw_result,
    fit_text,
    printable,
    save_picture,
    text_width,
)
from auroraedge.inspection.palette import VERDICT_STYLES, Rgb, ink_on, label_styles
from auroraedge.inspection.recipe import Severity
from auroraedge.inspection.results import Box, Defect, ErrorDetail, InspectionResult, Verdict


def defect(label: str, x1: float, y1: float, x2: float, y2: float, confidence: float = 0.9) -> Defect:
    return Defect(label=label, severity=Severity.MAJOR, box=Box(x1=x1, y1=y1, x2=x2, y2=y2), confidence=confidence)


def result(*defects: Defect, verdict: Verdict = Verdict.NG, name: str = "part.png") -> InspectionResult:
    return InspectionResult(
        verdict=verdict, ng_probability=0.9, recipe_id="r", recipe_version=1, defects=defects, image_name=name
    )


def contrast(a: Rgb, b: Rgb) -> float:
    """WCAG contrast ratio, 1..21."""

    def luminance(color: Rgb) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_verdicts_and_labels_have_readable_text() -> None:
    assert set(VERDICT_STYLES) == set(Verdict)
    for style in VERDICT_STYLES.values():
        assert contrast(style.color, style.ink) >= 4.5
    for label_style in label_styles(map(str, range(7))).values():
        assert contrast(label_style.color, ink_on(label_style.color)) >= 4.5


def test_labels_differ_by_more_than_hue() -> None:
    styles = label_styles(f"label{i}" for i in range(28))
    assert len({(s.color, s.dash) for s in styles.values()}) == 28
    neighbours = list(styles.values())
    assert all(a.dash != b.dash for a, b in itertools.pairwise(neighbours))


def test_a_label_keeps_its_style_whatever_else_is_found() -> None:
    image = np.full((640, 640, 3), 128, np.uint8)
    labels = ("a", "b", "c")
    alone = draw_result(image, result(defect("c", 300, 300, 340, 340)), labels=labels)
    both = draw_result(image, result(defect("c", 300, 300, 340, 340), defect("a", 50, 50, 90, 90)), labels=labels)
    top = alone.shape[0] - 640
    np.testing.assert_array_equal(alone[top + 250 :], both[top + 250 :])


@pytest.mark.parametrize("ground", [0, 255])
def test_a_box_reads_on_dark_and_bright_and_covers_none_of_the_defect(ground: int) -> None:
    canvas = np.full((700, 700, 3), ground, np.uint8)
    styles = label_styles(["scratch"])
    draw_boxes(canvas, [defect("scratch", 300, 320, 380, 400)], styles, tags=False)
    assert (canvas[320:400, 300:380] == ground).all()
    outside = canvas[310:410, 290:390].reshape(-1, 3)
    assert (outside == styles["scratch"].color).all(axis=1).sum() > 300
    if ground == 255:
        assert (outside == 0).all(axis=1).sum() > 300, "no dark casing on a bright part"


def test_a_dashed_line_has_gaps_and_a_solid_one_has_none() -> None:
    styles = label_styles(["solid", "dashed"])
    shares = []
    for label, style in styles.items():
        canvas = np.full((700, 700, 3), 255, np.uint8)
        draw_boxes(canvas, [defect(label, 200, 200, 500, 500)], styles, tags=False)
        row = canvas[198, 210:490]
        shares.append((row == style.color).all(axis=1).mean())
    assert shares[0] == 1.0
    assert 0.4 < shares[1] < 0.9


def test_boxes_at_the_edges_keep_all_four_sides() -> None:
    canvas = np.full((640, 640, 3), 255, np.uint8)
    styles = label_styles(["x"])
    draw_boxes(canvas, [defect("x", 0, 0, 640, 640)], styles, tags=False)
    color = np.array(styles["x"].color)
    for line in (canvas[:6, 320], canvas[-6:, 320], canvas[320, :6], canvas[320, -6:]):
        assert (line == color).all(axis=1).any()


def test_lines_and_text_grow_with_the_image() -> None:
    counts = []
    for side in (700, 2800):
        canvas = np.full((side, side, 3), 255, np.uint8)
        scale = side / 700
        draw_boxes(canvas, [defect("x", 300, 300, 400, 400)], label_styles(["x"]), scale=scale, tags=False)
        row = canvas[side // 2, : side // 2]
        counts.append(int((row == label_styles(["x"])["x"].color).all(axis=1).sum()))
    assert counts[1] >= 3 * counts[0]


def test_tags_stay_inside_the_picture() -> None:
    chance = random.Random(4)
    area, taken = Rect(0, 0, 400, 300), []
    for _ in range(60):
        x, y = chance.randrange(400), chance.randrange(300)
        place = _tag_place(Rect(x, y, x + 20, y + 20), 90, 18, area, taken, [], 4)
        assert 0 <= place.x1 < place.x2 <= 400
        assert 0 <= place.y1 < place.y2 <= 300
        taken.append(place)


def test_two_tags_of_neighbours_do_not_hide_each_other() -> None:
    first = _tag_place(Rect(100, 100, 120, 120), 90, 18, Rect(0, 0, 400, 300), [], [], 4)
    second = _tag_place(Rect(110, 104, 130, 124), 90, 18, Rect(0, 0, 400, 300), [first], [], 4)
    assert first.overlap(second) == 0


@pytest.mark.parametrize("text", ["short", "surface_scratch_with_a_long_name_that_never_ends", "断路断路断路断路断路"])
@pytest.mark.parametrize("room", [12, 60, 200])
def test_fitted_text_fits(text: str, room: int) -> None:
    shown, size = fit_text(text, room, 30, 9)
    assert size >= 9
    # Where not even the ellipsis fits, it is what is left.
    assert text_width(shown, size) <= room or shown == "…"
    assert shown == text or shown.endswith("…")


def test_text_of_files_is_made_printable() -> None:
    assert printable("a\nb\x00\u202ec\t d") == "a bc d"


def test_chinese_and_german_are_drawn_not_replaced() -> None:
    def ink(text: str) -> np.ndarray:
        canvas = np.full((640, 640, 3), 255, np.uint8)
        draw_boxes(canvas, [defect("x", 300, 300, 340, 340)], label_styles(["x"]), titles={"x": text})
        return canvas

    assert not np.array_equal(ink("断路"), ink("短路"))
    assert not np.array_equal(ink("Öl"), ink("Ol"))


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (128, 128), (40, 3000), (3000, 40), (480, 640)])
def test_any_size_gives_a_picture_with_the_frame_in_it(shape: tuple[int, int]) -> None:
    h, w = shape
    image = np.random.default_rng(1).integers(0, 255, (h, w, 3), dtype=np.uint8)
    drawn = draw_result(image, result(verdict=Verdict.OK))
    factor = min(8, max(1, -(-640 // max(h, w))))
    frame = np.repeat(np.repeat(image, factor, 0), factor, 1)
    np.testing.assert_array_equal(drawn[-h * factor :, : w * factor], frame)
    assert drawn.shape[1] >= 420
    assert tuple(drawn[2, 2]) == VERDICT_STYLES[Verdict.OK].color


def test_banner_shows_each_verdict_differently_even_in_grey() -> None:
    image = np.zeros((640, 640, 3), np.uint8)
    grey = [cv2.cvtColor(draw_result(image, result(verdict=v)), cv2.COLOR_RGB2GRAY)[:50, :300] for v in Verdict]
    for i in range(len(grey)):
        for j in range(i):
            assert (np.abs(grey[i].astype(int) - grey[j]) > 40).mean() > 0.02


def test_reference_stands_beside_a_square_and_below_a_wide_frame() -> None:
    square, wide = np.zeros((640, 640, 3), np.uint8), np.zeros((200, 900, 3), np.uint8)
    golden = np.full_like(square, 200)
    beside = draw_result(square, result(defect("x", 100, 100, 150, 150)), reference=golden)
    assert beside.shape[1] > 2 * 640
    assert (beside[-100:, 700:1200] == 200).all()
    below = draw_result(wide, result(), reference=np.full_like(wide, 200))
    assert below.shape[1] == 900
    assert (below[-100:, :900] == 200).all()


def test_error_result_and_defects_without_a_place_are_drawn() -> None:
    image = np.zeros((300, 300, 3), np.uint8)
    failed = InspectionResult(verdict=Verdict.ERROR, error=ErrorDetail(reason="X", message="No light.\n" * 20))
    assert draw_result(image, failed).shape[2] == 3
    unplaced = Defect(label="x", severity=Severity.MINOR, confidence=0.5)
    assert draw_result(image, result(unplaced)).shape[2] == 3


def test_the_frame_is_not_changed() -> None:
    image = np.full((700, 700, 3), 99, np.uint8)
    draw_result(image, result(defect("x", 10, 10, 90, 90)))
    assert (image == 99).all()


@pytest.mark.parametrize(
    "bad", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_wrong_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InvalidRequestError, match="image: Expected uint8 RGB"):
        draw_result(bad, result())


def test_pictures_are_saved_by_suffix_and_leave_no_part_file(tmp_path: Path) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 250
    save_picture(tmp_path / "new" / "ö.png", image)
    data = np.frombuffer((tmp_path / "new" / "ö.png").read_bytes(), np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert stored is not None
    assert tuple(stored[0, 0]) == (0, 0, 250)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["ö.png"]
    with pytest.raises(InvalidRequestError, match=r"out: Cannot write a picture as 'x\.gif'"):
        save_picture(tmp_path / "x.gif", image)
