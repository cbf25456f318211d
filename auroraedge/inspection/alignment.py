"""Registration of a golden sample to a frame: boards stretch and turn a little, and every edge off by a pixel looks
like a defect in the difference of the two."""

from __future__ import annotations

import cv2
import numpy as np

# Side of a block, and how far its window reaches into its neighbours, in source pixels. A window must be several times
# larger than a defect, or the shift would follow the defect and hide it.
_BLOCK_PX = 64
_CONTEXT_PX = 16
# Mean squared difference in grey levels that one more pixel of shift must gain: uniform blocks stay where they are.
_COST_PER_PX = 20.0


def align_reference(image: np.ndarray, reference: np.ndarray, most_px: int) -> np.ndarray:
    """`reference` warped onto `image`: by block the shift of least squared difference, smoothed between blocks.

    image, reference: uint8 RGB [H, W, 3] of the same size. most_px: largest shift in pixels, at least 1.
    Returns uint8 [H, W, 3]. The shifts are whole pixels and pass a 3x3 median, so one block cannot go astray alone.
    """
    h, w = image.shape[:2]
    shifts = _block_shifts(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY), most_px
    )
    if not shifts.any():
        return reference
    shift_x, shift_y = (cv2.resize(cv2.medianBlur(shifts[..., axis].copy(), 3), (w, h)) for axis in (0, 1))
    columns, rows = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    warped = cv2.remap(reference, columns + shift_x, rows + shift_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, dtype=np.uint8)


def _block_shifts(grey: np.ndarray, golden: np.ndarray, most_px: int) -> np.ndarray:
    """float32 [rows, columns, 2]: (x, y) in pixels from a place in the frame to the same place in the golden sample."""
    h, w = grey.shape
    padded = cv2.copyMakeBorder(golden, most_px, most_px, most_px, most_px, cv2.BORDER_REPLICATE)
    dy, dx = np.mgrid[-most_px : most_px + 1, -most_px : most_px + 1]
    cost_of_shift = (_COST_PER_PX * np.hypot(dx, dy)).astype(np.float32)
    shifts = np.zeros((-(-h // _BLOCK_PX), -(-w // _BLOCK_PX), 2), np.float32)
    for row, column in np.ndindex(shifts.shape[:2]):
        top, left = max(0, row * _BLOCK_PX - _CONTEXT_PX), max(0, column * _BLOCK_PX - _CONTEXT_PX)
        window = grey[top : (row + 1) * _BLOCK_PX + _CONTEXT_PX, left : (column + 1) * _BLOCK_PX + _CONTEXT_PX]
        around = padded[top : top + window.shape[0] + 2 * most_px, left : left + window.shape[1] + 2 * most_px]
        cost = cv2.matchTemplate(around, window, cv2.TM_SQDIFF) / window.size + cost_of_shift
        best = int(cost.argmin())
        shifts[row, column] = dx.flat[best], dy.flat[best]
    return shifts
