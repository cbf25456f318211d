from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auroraedge.errors import ImageTooLargeError, ReferenceRequiredError
from auroraedge.inspection.recipe import Severity, Tiling
from auroraedge.inspection.results import Box, Defect
from auroraedge.inspection.views import (
    View,
    check_reference,
    composite,
    merge_defects,
    patchify,
    plan_views,
    render_view,
)


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    size=st.integers(64, 800),
    overlap=st.integers(0, 32),
)
def test_squares_cover_the_frame_with_the_overlap(width: int, height: int, size: int, overlap: int) -> None:
    tiling = Tiling(mode="square", size_px=size, overlap_px=overlap, max_views=1024)
    try:
        plan = plan_views(width, height, tiling)
    except ImageTooLargeError:
        assert (width / size) * (height / size) > 200
        return
    for length, starts, side in (
        (width, sorted({v.x for v in plan}), plan[0].w),
        (height, sorted({v.y for v in plan}), plan[0].h),
    ):
        assert starts[0] == 0
        assert starts[-1] + side == length
        assert all(a + side - b >= overlap for a, b in itertools.pairwise(starts))


def test_whole_is_one_view_and_short_side_is_the_default_square() -> None:
    assert plan_views(1130, 460, Tiling()) == [View(0, 0, 1130, 460)]
    squares = plan_views(1130, 460, Tiling(mode="square"))
    assert {(v.w, v.h) for v in squares} == {(460, 460)}
    assert len(squares) == 3


def test_patchify_matches_transformers() -> None:
    siglip2 = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    view = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    theirs = siglip2.convert_image_to_patches(view.transpose(2, 0, 1), 16)
    assert np.array_equal(patchify(view[None])[0], theirs)


def test_composite_shows_frame_reference_and_signed_difference() -> None:
    frame = np.full((8, 8, 3), 200, np.uint8)
    golden = np.full((8, 8, 3), 100, np.uint8)
    out = composite(frame, golden)
    assert out[0, 0, 0] == 200
    assert out[0, 0, 1] == 100
    assert out[0, 0, 2] in (177, 178)
    assert composite(golden, frame)[0, 0, 2] in (77, 78)
    with pytest.raises(ReferenceRequiredError, match="reference"):
        check_reference(frame, golden[:4])


def test_a_view_is_cut_from_its_place() -> None:
    image = np.zeros((400, 600, 3), np.uint8)
    image[100:356, 200:456] = 255
    assert (render_view(image, View(200, 100, 256, 256)) == 255).all()
    assert render_view(image, View(0, 0, 100, 100)).max() == 0


def test_boxes_return_to_the_source_and_are_clipped() -> None:
    box = View(100, 50, 200, 100).to_source((0.5, 0.5, 1.0, 1.0), 250, 1000)
    assert (box.x1, box.y1, box.x2, box.y2) == (200, 100, 250, 150)


def _defect(label: str, box: tuple[float, float, float, float], confidence: float) -> Defect:
    x1, y1, x2, y2 = box
    return Defect(label=label, severity=Severity.MAJOR, box=Box(x1=x1, y1=y1, x2=x2, y2=y2), confidence=confidence)


def test_copies_of_overlapping_views_are_merged() -> None:
    whole, cut = (100.0, 100.0, 140.0, 140.0), (100.0, 100.0, 112.0, 140.0)
    far = (300.0, 100.0, 340.0, 140.0)
    merged = merge_defects(
        [
            _defect("open", cut, 0.9),
            _defect("open", whole, 0.8),
            _defect("short", whole, 0.7),
            _defect("open", far, 0.6),
        ],
        0.4,
    )
    assert sorted((d.label, d.box.x1, d.box.x2, d.confidence) for d in merged if d.box) == [
        ("open", 100.0, 140.0, 0.9),
        ("open", 300.0, 340.0, 0.6),
        ("short", 100.0, 140.0, 0.7),
    ]
