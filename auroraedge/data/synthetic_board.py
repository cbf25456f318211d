"""Generated board pairs: a made-up layout photographed twice, defects on the second photograph."""

from __future__ import annotations

import numpy as np

from auroraedge.data.synthetic_defects import draw_defects, expose_again
from auroraedge.data.synthetic_layout import random_layout
from auroraedge.data.synthetic_part import SyntheticPart, expose
from auroraedge.errors import InvalidRequestError


def generate_board(rng: np.random.Generator, size: int = 640, n_defects: int | None = None) -> SyntheticPart:
    """A binarised board crop and its template, uint8 [size, size], 0 is copper and 255 is bare.

    n_defects: as many defects as there is room for up to this number; None draws 0..12, and none in one board of five.
    Raises InvalidRequestError.
    """
    if size < 64:
        raise InvalidRequestError(f"A board of {size} px is too small.", field="size", remedy="Use 64 px or more.")
    if n_defects is not None and n_defects < 0:
        raise InvalidRequestError(f"{n_defects} defects cannot be drawn.", field="n_defects", remedy="Use 0 or more.")
    if n_defects is None:
        n_defects = 0 if rng.random() < 0.2 else int(rng.integers(1, 13))
    latent = random_layout(rng, size)
    template = expose(rng, latent)
    copper = expose_again(rng, latent, template)
    copper, objects = draw_defects(rng, copper, n_defects)
    image, reference = (np.where(mask, np.uint8(0), np.uint8(255)) for mask in (copper, template))
    return SyntheticPart(image, reference, tuple(objects), "defective" if objects else "ok", "board")
