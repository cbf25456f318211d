"""Augmentation must move boxes with the pixels: every check paints the defect and looks where the paint went."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auroraedge.data.augment import Scene, SceneObject, adjust_tone, crop_scene, dihedral, shift_reference


def _painted(x1: int, y1: int, x2: int, y2: int, height: int = 60, width: int = 90) -> Scene:
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return Scene(image=image, objects=(SceneObject("a", x1, y1, x2, y2),), reference=np.zeros_like(image))


def _extent(image: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(image[..., 0])
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("k", range(8))
def test_symmetries_move_boxes_with_pixels(k: int) -> None:
    out = dihedral(_painted(10, 5, 30, 12), k)
    item = out.objects[0]
    assert _extent(out.image) == (item.x1, item.y1, item.x2, item.y2)
    assert out.reference is not None
    assert out.reference.shape == out.image.shape


def test_the_eight_symmetries_differ() -> None:
    scene = _painted(10, 5, 30, 12, 64, 64)
    assert len({dihedral(scene, k).image.tobytes() for k in range(8)}) == 8


@given(x=st.integers(0, 60), y=st.integers(0, 30), side=st.integers(10, 30))
def test_crops_clip_boxes_to_the_visible_paint(x: int, y: int, side: int) -> None:
    out, clear = crop_scene(_painted(20, 10, 40, 24), x, y, side, side)
    if out.objects:
        item = out.objects[0]
        assert _extent(out.image) == (item.x1, item.y1, item.x2, item.y2)
    elif clear:
        assert out.image.astype(bool).mean() <= 0.15


def test_a_sliver_is_ambiguous_and_half_is_kept() -> None:
    scene = _painted(20, 20, 40, 40)
    dropped, clear = crop_scene(scene, 34, 0, 40, 60)
    assert not clear
    assert not dropped.objects
    kept, clear = crop_scene(scene, 29, 0, 60, 60)
    assert clear
    assert len(kept.objects) == 1


def test_tone_changes_frame_and_golden_sample_alike() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = adjust_tone(Scene(image=image, reference=image.copy()), np.random.default_rng(2), gain=0.3, offset=30)
    assert out.reference is not None
    assert np.array_equal(out.image, out.reference)
    assert not np.array_equal(out.image, image)


def test_shift_moves_only_the_golden_sample() -> None:
    scene = _painted(20, 20, 40, 40)
    golden = np.zeros_like(scene.image)
    golden[20:40, 20:40] = 255
    scene = Scene(image=scene.image, objects=scene.objects, reference=golden)
    places = set()
    for seed in range(20):
        out = shift_reference(scene, np.random.default_rng(seed))
        assert out.reference is not None
        assert np.array_equal(out.image, scene.image)
        places.add(_extent(out.reference)[:2])
    assert len(places) > 3
    assert all(abs(px - 20) <= 1 and abs(py - 20) <= 1 for px, py in places)
