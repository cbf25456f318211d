"""The decoder as what it is, a stock Qwen2.5, for the runtimes that take one: TensorRT-LLM and Edge-LLM.

It comes from a model of ours or from any Qwen2 / Qwen2.5 folder, always with sequences of embeddings to calibrate and
to check on. Those of our model are what it is really fed with: compressed tokens, fused prompt, reference answer.

Suffixes: S positions of a sequence, D width, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from auroraedge.errors import EngineError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model import AuroraEdgeForConditionalGeneration
from calib.frames import CalibrationSet, calibration_set
from calib.ranges import LayerRange, Ranges, watching
from engine_build import steps
from engine_build.targets import EIGHT_BIT_ACTIVATIONS

_BINS = 1024
# Prompts for a plain Qwen2.5, which has no calibration views.
_TEXTS = (
    "Inspect the part. Is it OK or defective? Name every defect and where it is.",
    "Compare the board with its golden sample and list what differs.",
    "Classify the surface of this steel strip: scratch, red iron, iron sheet ash, oxide scale or none.",
    "The magnetic tile shows a blowhole near the upper edge; the crack on the left is older.",
    "A report has the result, the part's serial number, the recipe, the thresholds and the operator's decision.",
    "Surface temperature 41.5 degrees, exposure 2.4 ms, line 3, camera 2, shift B.",
)


def wide_layers(precision: str, layers: int) -> frozenset[str]:
    """Modules of a decoder of `layers` layers that stay in 16 bits: the products of each MLP's gate, and the LM head.

    A gated product has a few values hundreds of times the others, and one scale for all leaves the others few bits:
    nano's decoder in INT8 has 36 dB with down_proj rounded and 49 dB without, and 42 dB with the LM head alone
    (docs/engines.md).
    """
    if precision not in EIGHT_BIT_ACTIVATIONS:
        return frozenset()
    return frozenset({"lm_head", *(f"model.layers.{index}.mlp.down_proj" for index in range(layers))})


@dataclass(frozen=True, kw_only=True)
class DecoderSequence:
    """embeds float32 [S, D]; positions from `first` on predict the answer, and are what is compared."""

    embeds: np.ndarray
    first: int


@dataclass(frozen=True, kw_only=True)
class DecoderSource:
    """A float32 decoder in eval mode. Sequences 0, 2, 4, ... calibrate, the others check."""

    name: str
    model: Qwen2ForCausalLM
    sequences: tuple[DecoderSequence, ...]
    tokenizer_file: Path | None

    @property
    def calibrating(self) -> tuple[DecoderSequence, ...]:
        return self.sequences[::2]

    @property
    def checking(self) -> tuple[DecoderSequence, ...]:
        return self.sequences[1::2]


def decoder_from_folder(folder: Path, *, pack: Path | None = None, views: int = 96) -> DecoderSource:
    """From a model of ours or from a Qwen2 / Qwen2.5 folder with config.json and safetensors. Raises EngineError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder}/config.json cannot be read: {error}.", field="--model") from error
    kind = config.get("model_type")
    if kind == "auroraedge":
        folder = steps.model_folder(str(folder))
        model = steps.load_model(folder)
        file = folder / "tokenizer.json"
        frames = calibration_set(InspectionTokenizer.load(file), pack=pack, views=views)
        return decoder_from_model(model, frames, file, name=model.config.preset or folder.name)
    if kind != "qwen2":
        raise EngineError(
            f"{folder} holds a model of type '{kind}'.",
            field="--model",
            remedy="Give a model of AuroraEdge, or a Qwen2 / Qwen2.5 folder.",
        )
    decoder = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    tokenizer_file = folder / "tokenizer.json"
    known = tokenizer_file if tokenizer_file.is_file() else None
    return DecoderSource(
        name=folder.name, model=decoder, sequences=_text_sequences(decoder, known), tokenizer_file=known
    )


@torch.no_grad()
def decoder_from_model(
    model: AuroraEdgeForConditionalGeneration, frames: CalibrationSet, tokenizer_file: Path, *, name: str
) -> DecoderSource:
    """The decoder of our model, with the sequences that the calibration views make."""
    table = model.get_input_embeddings()
    sequences = []
    for patches, ids, sample in zip(frames.patches, frames.prompt_ids, frames.samples, strict=True):
        visual, compressed, mask = model.encode(torch.from_numpy(patches[None]).float() / 127.5 - 1.0)
        prompt = torch.tensor([ids])
        fused = model.fuse(prompt, torch.ones_like(prompt), visual, mask)
        answer = table(torch.tensor([list(sample.answers[0])[:-1]], dtype=torch.int64))
        embeds = torch.cat([compressed, fused, answer], dim=1)[0]
        first = compressed.shape[1] + fused.shape[1] - 1
        sequences.append(DecoderSequence(embeds=embeds.float().numpy(), first=first))
    return DecoderSource(
        name=name, model=model.language_model, sequences=tuple(sequences), tokenizer_file=tokenizer_file
    )


@torch.no_grad()
def _text_sequences(model: Qwen2ForCausalLM, tokenizer_file: Path | None) -> tuple[DecoderSequence, ...]:
    """Sentences through the model's own tokenizer; without one, evenly drawn ids: a stand-in that fits no real use."""
    if tokenizer_file is not None:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        ids = [tokenizer.encode(text).ids for text in _TEXTS]
    else:
        rng = np.random.default_rng(2026)
        ids = [list(rng.integers(0, model.config.vocab_size, 24)) for _ in range(8)]
    table = model.get_input_embeddings()
    return tuple(
        DecoderSequence(embeds=table(torch.tensor([int(i) for i in row])).float().numpy(), first=0) for row in ids
    )


@torch.no_grad()
def logits_of(model: nn.Module, sequences: tuple[DecoderSequence, ...]) -> list[np.ndarray]:
    """Float32 logits [S - first, V] of every sequence."""
    found = []
    for sequence in sequences:
        embeds = torch.from_numpy(sequence.embeds)[None]
        found.append(model(inputs_embeds=embeds, use_cache=False).logits[0, sequence.first :].float().numpy())
    return found


@torch.no_grad()
def decoder_ranges(model: nn.Module, sequences: tuple[DecoderSequence, ...]) -> Ranges:
    """Ranges of the inputs of all linear layers, as calib.ranges has them for a whole model."""
    channels: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    rows: dict[str, int] = {}
    counts: dict[str, torch.Tensor] = {}

    def first_pass(name: str, x: torch.Tensor) -> None:
        flat = x.detach().flatten(0, -2)
        seen = flat.abs().amax(0)
        channels[name] = torch.maximum(channels[name], seen) if name in channels else seen
        squares[name] = squares.get(name, torch.zeros(flat.shape[1])) + flat.square().sum(0)
        rows[name] = rows.get(name, 0) + flat.shape[0]

    def second_pass(name: str, x: torch.Tensor) -> None:
        top = max(float(channels[name].max()), 1e-12)
        found = torch.histc(x.detach().abs().float(), bins=_BINS, min=0.0, max=top)
        counts[name] = counts.get(name, torch.zeros(_BINS)) + found

    for see in (first_pass, second_pass):
        with watching(model, see):
            logits_of(model, sequences)
    layers = {
        name: LayerRange(
            largest=float(seen.max()),
            channels=seen.numpy(),
            rms=(squares[name] / rows[name]).sqrt().numpy(),
            counts=counts[name].numpy().astype(np.int64),
            edges=np.linspace(0.0, max(float(seen.max()), 1e-12), _BINS + 1),
            values=int(counts[name].sum()),
        )
        for name, seen in channels.items()
    }
    return Ranges(layers=layers, views=len(sequences), set_sha256="")


def agreement(found: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, float]:
    """snr_db of all logits, top1_agreement of positions, answer_agreement of whole sequences."""
    noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(found, reference, strict=True))
    power = sum(float((b.astype(np.float64) ** 2).sum()) for b in reference)
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(found, reference, strict=True)]
    return {
        "snr_db": float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30))),
        "top1_agreement": float(np.concatenate(same).mean()),
        "answer_agreement": float(np.mean([row.all() for row in same])),
        "positions": float(sum(len(row) for row in same)),
    }


def write_qwen_folder(source: DecoderSource, folder: Path, *, architecture: str = "Qwen2ForCausalLM") -> None:
    """The decoder as a Hugging Face folder in float16: config.json, model.safetensors, tokenizer.json.

    architecture: the class that a runtime is to take for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = source.model
    tied = bool(model.config.tie_word_embeddings)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    theta = rope_theta(model.config)
    config = model.config.to_dict()
    # rope_theta and torch_dtype are the names that runtimes with an older transformers read.
    config |= {
        "architectures": [architecture],
        "model_type": "qwen2",
        "dtype": "float16",
        "torch_dtype": "float16",
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if source.tokenizer_file is not None:
        shutil.copyfile(source.tokenizer_file, folder / "tokenizer.json")


def rope_theta(config: Qwen2Config) -> float:
    """The base of the rotary angles. Newer transformers keep it in `rope_parameters`, older ones beside it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    found = parameters.get("rope_theta") or getattr(config, "rope_theta", None)
    if not found:
        raise EngineError("The model's config has no rope_theta.", field="rope_theta")
    if parameters.get("rope_type", "default") != "default":
        raise EngineError(
            f"Rotary scaling '{parameters['rope_type']}' is not written.",
            field="rope_parameters",
            remedy="Take a model without it: prompts here have a few hundred tokens.",
        )
    return float(found)
