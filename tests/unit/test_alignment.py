"""Golden samples are registered to the frame; defects stay where they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from auroraedge.inspection.alignment import align_reference
from auroraedge.inspection.grounding import mirrored_mean
from auroraedge.inspection.views import mirror_images


def _board(seed: int, side: int = 320) -> np.ndarray:
    rng = np.random.default_rng(seed)
    board = np.full((side, side, 3), 235, np.uint8)
    for _ in range(60):
        x, y = (int(v) for v in rng.integers(0, side, 2))
        w, h = (int(v) for v in rng.integers(6, 60, 2))
        cv2.rectangle(board, (x, y), (x + w, y + h), (20, 20, 20), -1)
    return board


def _moved(pixels: np.ndarray, dx: float, dy: float, scale: float = 1.0) -> np.ndarray:
    matrix = np.array([[scale, 0, dx], [0, scale, dy]], dtype=np.float32)
    return np.asarray(cv2.warpAffine(pixels, matrix, pixels.shape[1::-1], borderMode=cv2.BORDER_REPLICATE))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    inside = np.s_[8:-8, 8:-8]
    return float(np.abs(a[inside].astype(int) - b[inside].astype(int)).mean())


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -4), (-5, 2)])
def test_a_shift_is_undone(dx: int, dy: int) -> None:
    board = _board(1)
    golden = _moved(board, dx, dy)
    assert _difference(align_reference(board, golden, 6), board) < 0.02 * _difference(golden, board)


def test_a_stretched_board_is_followed() -> None:
    board = _board(2, 640)
    golden = _moved(board, 0, 0, scale=1.008)
    assert _difference(align_reference(board, golden, 6), board) < 0.5 * _difference(golden, board)


def test_a_defect_is_not_hidden() -> None:
    golden = _board(3)
    frame = golden.copy()
    frame[150:166, 150:166] = 255 - frame[150:166, 150:166]
    aligned = align_reference(frame, golden, 6)
    assert (aligned == golden).all()


def test_uniform_frames_stay() -> None:
    grey = np.full((100, 70, 3), 90, np.uint8)
    assert (align_reference(grey, grey, 3) == grey).all()


def test_mirrored_mean_turns_copies_back() -> None:
    """Evidence of a view of 16x16 tokens whose only peak is at row 2, column 5, seen in all four mirror images."""
    peak = np.zeros((16, 16, 8), np.float32)
    peak[2, 5] = [9.0, 1, 2, 3, 0.25, -0.5, 0.7, 0.8]
    copies = []
    for index, tokens in enumerate(mirror_images(peak)):
        copy = tokens.copy()
        copy[..., -4] *= -1 if index % 2 else 1
        copy[..., -3] *= -1 if index >= 2 else 1
        copies.append(copy.reshape(256, 8))
    np.testing.assert_allclose(mirrored_mean(np.stack(copies)[None])[0], peak.reshape(256, 8), atol=1e-6)
