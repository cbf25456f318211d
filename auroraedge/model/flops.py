"""Floating-point operations of one answer, by part, for AuroraEdge and for models that it is compared with.

Counting rules, the same for all: a multiply and an add are two operations (as torch's FlopCounterMode counts); matrix
products alone are counted, which is more than 99 % of the work; attention is counted in full, without the half that a
causal kernel may skip; the LM head is applied to one position of the prompt and to each generated token. A generated
token costs one pass of the decoder over one position with the cache of all positions before it.

Shapes of the others are those of their public configurations: Qwen2-VL-2B (arXiv 2409.12191), Qwen2.5-VL-3B (arXiv
2502.13923), InternVL2.5-2B (arXiv 2412.05271). `auroraedge.model.flops.measured` counts the real modules for a check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from auroraedge.config import PRESETS, ModelPreset

_PAPER = {
    "half": "operations fall by more than half",
    "84 %": "compression cuts operations by about 84 %",
    "90 %": "operations fall by nearly 90 %",
}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A vision transformer. windows: (patches of a window, layers that attend within one); the rest attend to all."""

    patches: int
    values: int
    width: int
    layers: int
    middle: int
    gated: bool = False
    windows: tuple[int, int] = (0, 0)

    @property
    def flops(self) -> int:
        embed = 2 * self.patches * self.values * self.width
        mlp = (3 if self.gated else 2) * self.width * self.middle
        dense = 2 * self.patches * (4 * self.width**2 + mlp)
        seen, windowed = self.windows
        everything = 4 * self.patches**2 * self.width
        within = 4 * self.patches * seen * self.width
        return embed + self.layers * dense + (self.layers - windowed) * everything + windowed * within


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A language model with grouped queries and a gated MLP."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    middle: int
    vocab: int

    def _layer(self, new: int, seen: int) -> int:
        """One layer over `new` positions that attend to `seen` each."""
        inner = self.heads * self.head_dim
        projections = self.width * (2 * inner + 2 * self.kv_heads * self.head_dim)
        return 2 * new * (projections + 3 * self.width * self.middle) + 4 * new * seen * inner

    def prefill(self, positions: int) -> int:
        return self.layers * self._layer(positions, positions) + 2 * self.width * self.vocab

    def steps(self, prompt: int, new: int) -> int:
        """All generated tokens but the first, which the prefill gives."""
        return sum(
            self.layers * self._layer(1, prompt + i) + 2 * self.width * self.vocab for i in range(1, max(1, new))
        )


@dataclass(frozen=True, kw_only=True)
class Vlm:
    """A vision-language model. connector: operations between encoder and decoder for a prompt of t text tokens."""

    name: str
    encoder: Encoder
    decoder: Decoder
    visual_tokens: int
    connector: Callable[[int], dict[str, int]]

    def count(self, *, text: int, new: int) -> dict[str, int]:
        """Operations by part of one answer. text: prompt tokens, new: generated tokens, the first one included."""
        parts = {"encoder": self.encoder.flops, **self.connector(text)}
        prompt = self.visual_tokens + text
        parts["prefill"] = self.decoder.prefill(prompt)
        parts["generation"] = self.decoder.steps(prompt, new)
        return parts


def auroraedge_shape(preset: str | ModelPreset) -> Vlm:
    """AuroraEdge itself, with its compressor and fusion."""
    p = PRESETS[preset] if isinstance(preset, str) else preset
    encoder, decoder = _parts(p)
    n, d, c = p.num_patches, p.text_hidden, p.num_compressed

    def connector(text: int) -> dict[str, int]:
        found = {
            "projector": 2 * n * (p.vision_hidden * d + d * d),
            "compressor": 2 * d * (n * p.compressor_hidden + p.compressor_hidden * c),
        }
        if p.fusion != "none":
            # q and o on the prompt, k and v on all visual tokens, attention of t queries to n keys.
            cross = 2 * (2 * text * d * d + 2 * n * d * d) + 4 * text * n * d
            layers = p.fusion_layers if p.fusion == "combined" else 0
            found["fusion"] = cross + layers * decoder._layer(text, text)
        return found

    name = f"AuroraEdge {p.name}" if p.fusion != "none" else f"{p.name}, compressed, no fusion"
    return Vlm(name=name, encoder=encoder, decoder=decoder, visual_tokens=c, connector=connector)


def uncompressed_shape(preset: str) -> Vlm:
    """The LLaVA-style baseline: the same backbones, all visual tokens in the decoder, a projector and nothing else."""
    p = PRESETS[preset]
    encoder, decoder = _parts(p)
    cost = 2 * p.num_patches * (p.vision_hidden * p.text_hidden + p.text_hidden**2)
    return Vlm(
        name=f"{p.name}, uncompressed",
        encoder=encoder,
        decoder=decoder,
        visual_tokens=p.num_patches,
        connector=lambda text: {"projector": cost},
    )


def _parts(p: ModelPreset) -> tuple[Encoder, Decoder]:
    encoder = Encoder(
        patches=p.num_patches,
        values=p.patch_pixels,
        width=p.vision_hidden,
        layers=p.vision_layers,
        middle=p.vision_intermediate,
    )
    decoder = Decoder(
        width=p.text_hidden,
        layers=p.text_layers,
        heads=p.text_heads,
        kv_heads=p.text_kv_heads,
        head_dim=p.text_head_dim,
        middle=p.text_intermediate,
        vocab=p.vocab_size,
    )
    return encoder, decoder


def peers(side: int = 256) -> list[Vlm]:
    """The compared models on a square frame of `side` pixels, each as it resizes the frame itself.

    Qwen models round the side to a multiple of 28 and merge 2 x 2 patches of 14 pixels; InternVL2.5 always makes 448
    pixels of a tile, 1,024 patches, and shuffles them into 256 tokens.
    """
    grid = 2 * round(side / 28)
    patches = grid * grid
    merged = patches // 4
    qwen2 = Decoder(width=1536, layers=28, heads=12, kv_heads=2, head_dim=128, middle=8960, vocab=151_936)
    return [
        Vlm(
            name="Qwen2-VL-2B",
            # Two frames of a patch are one in time, as its processor repeats a still image.
            encoder=Encoder(patches=patches, values=2 * 3 * 14 * 14, width=1280, layers=32, middle=5120),
            decoder=qwen2,
            visual_tokens=merged,
            connector=lambda text: {"projector": 2 * merged * (5120 * 5120 + 5120 * 1536)},
        ),
        Vlm(
            name="Qwen2.5-VL-3B",
            encoder=Encoder(
                patches=patches,
                values=2 * 3 * 14 * 14,
                width=1280,
                layers=32,
                middle=3420,
                gated=True,
                windows=(min(patches, 64), 28),
            ),
            decoder=Decoder(width=2048, layers=36, heads=16, kv_heads=2, head_dim=128, middle=11_008, vocab=151_936),
            visual_tokens=merged,
            connector=lambda text: {"projector": 2 * merged * (5120 * 5120 + 5120 * 2048)},
        ),
        Vlm(
            name="InternVL2.5-2B",
            # 1,024 patches and a class token.
            encoder=Encoder(patches=1025, values=3 * 14 * 14, width=1024, layers=24, middle=4096),
            decoder=Decoder(width=2048, layers=24, heads=16, kv_heads=8, head_dim=128, middle=8192, vocab=92_553),
            visual_tokens=256,
            connector=lambda text: {"projector": 2 * 256 * (4096 * 2048 + 2048 * 2048)},
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published figure, a way of counting, and the reduction that it gives. share: 0..1 of the operations removed."""

    claim: str
    counting: str
    share: float

    @property
    def holds(self) -> bool:
        """Within five points of the published figure; 'more than half' is met from 0.5 on."""
        wanted = {"half": 0.5, "84 %": 0.84, "90 %": 0.90}[self.claim]
        return self.share >= wanted if self.claim == "half" else abs(self.share - wanted) <= 0.05


def reconcile(preset: str = "2b", *, text: int = 64, new: int = 32) -> list[Claim]:
    """The published reductions under every counting that could be meant: ours against the uncompressed baseline."""
    ours, base = auroraedge_shape(preset), uncompressed_shape(preset)
    a, b = ours.count(text=text, new=new), base.count(text=text, new=new)
    c, n, decoder = ours.visual_tokens, base.visual_tokens, ours.decoder
    inner = decoder.heads * decoder.head_dim
    countings = {
        "everything: encoder, connectors, prefill and generation": (sum(a.values()), sum(b.values())),
        "everything up to the first token": (
            sum(a.values()) - a["generation"],
            sum(b.values()) - b["generation"],
        ),
        "the decoder's prefill": (a["prefill"], b["prefill"]),
        "the decoder's prefill with connectors": (
            sum(v for k, v in a.items() if k not in ("encoder", "generation")),
            sum(v for k, v in b.items() if k not in ("encoder", "generation")),
        ),
        "the decoder's prefill with a prompt of 16 tokens": (decoder.prefill(c + 16), decoder.prefill(n + 16)),
        "the visual tokens' share of the prefill": (
            decoder.prefill(c + text) - decoder.prefill(text),
            decoder.prefill(n + text) - decoder.prefill(text),
        ),
        "attention scores of the whole prompt": (4 * (c + text) ** 2 * inner, 4 * (n + text) ** 2 * inner),
        "attention scores with a prompt of 32 tokens": (4 * (c + 32) ** 2 * inner, 4 * (n + 32) ** 2 * inner),
        "attention scores among visual tokens alone": (4 * c**2 * inner, 4 * n**2 * inner),
    }
    return [
        Claim(claim=claim, counting=counting, share=1 - small / large)
        for counting, (small, large) in countings.items()
        for claim in _PAPER
    ]


def without_fusion(preset: str) -> Vlm:
    return auroraedge_shape(replace(PRESETS[preset], fusion="none"))


def measured(module: Any, *arguments: Any, **named: Any) -> int:
    """What torch counts while `module` runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(*arguments, **named)
    return int(counter.get_total_flops())
