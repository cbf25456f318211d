"""What the linear layers of a model are fed with on calibration views: ranges for INT8 and FP8, channels for smoothing.

Methods for the range of an input (half-width of a symmetric range, in the input's own unit):
  max         the largest magnitude that was seen
  percentile  the magnitude that 99.99 % of all values stay below
  entropy     the clipping with the least Kullback-Leibler divergence, as in S. Migacz, "8-bit inference with TensorRT"
              (GTC 2017), computed by onnxruntime.quantization
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from onnxruntime.quantization.calibrate import HistogramCollector
from rich.console import Console
from rich.progress import track
from torch import nn

from auroraedge.errors import CalibrationError
from auroraedge.model import AuroraEdgeForConditionalGeneration
from calib.frames import CalibrationSet

Method = Literal["max", "percentile", "entropy"]
PERCENTILE = 99.99
_BINS = 1024
_LEVELS = 128


@dataclass(frozen=True, kw_only=True)
class LayerRange:
    """The input of one linear layer.

    channels, rms [in]: largest magnitude and root mean square by channel. counts [n], edges [n + 1]: histogram of
    magnitudes.
    """

    largest: float
    channels: np.ndarray
    rms: np.ndarray
    counts: np.ndarray
    edges: np.ndarray
    values: int


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Inputs of all linear layers by module name, and what they were measured on."""

    layers: dict[str, LayerRange]
    views: int
    set_sha256: str
    set_name: str = ""

    def largest(self, method: Method = "entropy") -> dict[str, float]:
        """Half-width of the range by module name."""
        if method == "max":
            return {name: layer.largest for name, layer in self.layers.items()}
        return {name: _threshold(layer, method) for name, layer in self.layers.items()}

    def save(self, path: Path) -> None:
        """One npz file, written at once."""
        arrays = {f"{name}/{key}": value for name, layer in self.layers.items() for key, value in asdict(layer).items()}
        about = {"views": self.views, "set_sha256": self.set_sha256, "set_name": self.set_name}
        draft = path.with_name(f".{path.name}.draft.npz")
        np.savez_compressed(draft, **arrays, about=json.dumps(about))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """What `save` wrote. Raises CalibrationError for another file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                layers: dict[str, dict[str, Any]] = {}
                for key in stored.files:
                    name, _, value = key.rpartition("/")
                    if name:
                        array = stored[key]
                        layers.setdefault(name, {})[value] = array if array.ndim else array.item()
                about = json.loads(str(stored["about"]))
            return cls(layers={name: LayerRange(**values) for name, values in layers.items()}, **about)
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise CalibrationError(
                f"{path} holds no ranges: {error}.", field="--workspace", remedy="Build without --resume."
            ) from error


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@contextlib.contextmanager
def watching(model: nn.Module, see: Any) -> Iterator[None]:
    """Calls see(name, input tensor) whenever a linear layer runs."""

    def hook(name: str) -> Any:
        return lambda module, inputs: see(name, inputs[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linear_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_views(
    model: AuroraEdgeForConditionalGeneration,
    frames: CalibrationSet,
    *,
    answers: bool = True,
    console: Console | None = None,
    description: str = "views",
) -> None:
    """The model on every view with its prompt and, after it, the reference answer: what decoding will see."""
    views = list(zip(frames.patches, frames.prompt_ids, frames.samples, strict=True))
    for patches, prompt, sample in track(
        views, description=description, console=console, transient=True, disable=console is None
    ):
        pixels = torch.from_numpy(patches[None]).float() / 127.5 - 1.0
        answer = torch.tensor([sample.answers[0][:-1]]) if answers and len(sample.answers[0]) > 1 else None
        model(input_ids=torch.tensor([prompt]), pixel_values=pixels, answer_ids=answer)
        if model.grounding is not None:
            visual, _, mask = model.encode(pixels)
            model.grounding(visual, mask)


def measure_ranges(
    model: AuroraEdgeForConditionalGeneration, frames: CalibrationSet, console: Console | None = None
) -> Ranges:
    """Runs the model (float32, eval) on the views. Raises CalibrationError for a layer without usable input."""
    largest: dict[str, float] = {}
    channels: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    rows: dict[str, int] = {}

    def first_pass(name: str, x: torch.Tensor) -> None:
        flat = x.detach().flatten(0, -2)
        magnitude = flat.abs().amax(0)
        squares[name] = squares.get(name, torch.zeros(flat.shape[1])) + flat.square().sum(0)
        rows[name] = rows.get(name, 0) + flat.shape[0]
        channels[name] = torch.maximum(channels[name], magnitude) if name in channels else magnitude
        largest[name] = float(channels[name].max())

    with watching(model, first_pass):
        run_views(model, frames, console=console, description="largest inputs")
    unseen = sorted(set(linear_layers(model)) - set(largest))
    if unseen:
        raise CalibrationError(f"{len(unseen)} layers saw no calibration view, first {unseen[0]}.", field=unseen[0])
    broken = sorted(name for name, value in largest.items() if not np.isfinite(value))
    if broken:
        raise CalibrationError(f"{broken[0]} was fed with values that are no numbers.", field=broken[0])
    counts = {name: torch.zeros(_BINS) for name in largest}

    def second_pass(name: str, x: torch.Tensor) -> None:
        top = max(largest[name], 1e-12)
        counts[name] += torch.histc(x.detach().abs().float(), bins=_BINS, min=0.0, max=top)

    with watching(model, second_pass):
        run_views(model, frames, console=console, description="histograms")
    layers = {
        name: LayerRange(
            largest=value,
            channels=channels[name].numpy(),
            rms=(squares[name] / rows[name]).sqrt().numpy(),
            counts=counts[name].numpy().astype(np.int64),
            edges=np.linspace(0.0, max(value, 1e-12), _BINS + 1),
            values=int(counts[name].sum()),
        )
        for name, value in largest.items()
    }
    return Ranges(layers=layers, views=len(frames.patches), set_sha256=frames.sha256, set_name=frames.name)


def _threshold(layer: LayerRange, method: Method) -> float:
    total = layer.counts.sum()
    if method == "percentile":
        share = np.cumsum(layer.counts) / max(1, total)
        return float(layer.edges[1 + int(np.searchsorted(share, PERCENTILE / 100.0))])
    # The collector wants a histogram over negative and positive values.
    both = np.concatenate([layer.counts[::-1], layer.counts])
    edges = np.concatenate([-layer.edges[::-1], layer.edges[1:]])
    collector = HistogramCollector("entropy", True, len(both), _LEVELS, PERCENTILE, "same")
    low, high = np.float32(-layer.largest), np.float32(layer.largest)
    with contextlib.redirect_stdout(io.StringIO()):
        found = collector.get_entropy_threshold((both, edges, low, high, high), _LEVELS)
    return float(min(layer.largest, max(abs(float(found[0])), abs(float(found[1])))))
