"""What is compared with what. One variant may belong to several experiments; it is trained once a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from auroraedge.config import FusionKind

PATCHES = 256


@dataclass(frozen=True, kw_only=True)
class Variant:
    """tokens: visual tokens a view that the decoder reads (256: all, no compressor), depth: decoder layers of the
    combined fusion, reconstruction: the auxiliary loss on C, frames: views read together, parts: questions about whole
    boards instead of single views."""

    tokens: int = 64
    fusion: FusionKind = "combined"
    depth: int = 1
    reconstruction: Literal["none", "visual", "pixels"] = "none"
    frames: int = 1
    frame_embedding: bool = True
    parts: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """title, the question in a sentence, variants by name and the one that the others are compared with."""

    title: str
    question: str
    base: str
    variants: tuple[str, ...]


VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "all256": Variant(tokens=256),
    "all256-nofusion": Variant(tokens=256, fusion="none"),
    "nofusion": Variant(fusion="none"),
    "cross": Variant(fusion="cross"),
    "c128": Variant(tokens=128),
    "c32": Variant(tokens=32),
    "c16": Variant(tokens=16),
    "c16-nofusion": Variant(tokens=16, fusion="none"),
    "rebuild-visual": Variant(reconstruction="visual"),
    "rebuild-pixels": Variant(reconstruction="pixels"),
    "depth2": Variant(depth=2),
    "depth4": Variant(depth=4),
    "c32-depth4": Variant(tokens=32, depth=4),
    "c16-depth4": Variant(tokens=16, depth=4),
    "board-1x64": Variant(parts=True),
    "board-4x16": Variant(parts=True, frames=4, tokens=16),
    "board-4x64": Variant(parts=True, frames=4),
    "board-4x16-noembed": Variant(parts=True, frames=4, tokens=16, frame_embedding=False),
}

EXPERIMENTS: dict[str, Experiment] = {
    "compression": Experiment(
        title="Compression on and off",
        question="What does the decoder lose when it reads 64 compressed tokens instead of all 256?",
        base="all256",
        variants=("all256", "base", "all256-nofusion", "nofusion"),
    ),
    "fusion": Experiment(
        title="Fusion none, cross and combined",
        question="Does reading V with the prompt help a decoder that reads C?",
        base="nofusion",
        variants=("nofusion", "cross", "base"),
    ),
    "ratio": Experiment(
        title="256 visual tokens to 128, 64, 32 and 16",
        question="How far can V be compressed, and what goes first?",
        base="base",
        variants=("c128", "base", "c32", "c16", "nofusion", "c16-nofusion"),
    ),
    "reconstruction": Experiment(
        title="An auxiliary reconstruction loss on the compressed tokens",
        question="Does C answer better when it must also rebuild V or the pixels?",
        base="base",
        variants=("base", "rebuild-visual", "rebuild-pixels"),
    ),
    "frames": Experiment(
        title="Several frames of one part",
        question="Do four tiles with their own compressed tokens tell more of a board than one view of all of it?",
        base="board-1x64",
        variants=("board-1x64", "board-4x16", "board-4x16-noembed", "board-4x64"),
    ),
    "depth": Experiment(
        title="Fusion depth, and deeper fusion at higher compression",
        question="Do more decoder layers in the fusion help, and do they pay for stronger compression?",
        base="base",
        variants=("cross", "base", "depth2", "depth4", "c32", "c32-depth4", "c16", "c16-depth4"),
    ),
}
