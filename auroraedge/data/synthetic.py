"""The generators of synthetic parts: boards with their template, ground surfaces and rolled surfaces.

Each is a pure function of an np.random.Generator, needs only numpy and cv2, and returns a SyntheticPart with exact
boxes.
"""

from __future__ import annotations

from auroraedge.data.synthetic_board import generate_board
from auroraedge.data.synthetic_defects import BOARD_LABELS, add_board_defects
from auroraedge.data.synthetic_ground import GROUND_LABELS, generate_ground_surface
from auroraedge.data.synthetic_part import SyntheticPart
from auroraedge.data.synthetic_rolled import ROLLED_LABELS, generate_rolled_surface

__all__ = [
    "BOARD_LABELS",
    "GROUND_LABELS",
    "ROLLED_LABELS",
    "SyntheticPart",
    "add_board_defects",
    "generate_board",
    "generate_ground_surface",
    "generate_rolled_surface",
]
