"""An engine in memory: its graphs, embedding table, tokenizer and calibration; from a package, checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from auroraedge.config import GRID, IMAGE_SIZE, LOCATION_BINS, PATCH_SIZE
from auroraedge.errors import EngineDamagedError, EngineError, EngineIncompatibleError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.manifest import (
    DecoderSpec,
    EngineDescription,
    EngineManifest,
    check_target,
    load_manifest,
    verify_package,
)
from auroraedge.runtime.decoding import Decoder
from auroraedge.runtime.in_place import InPlaceDecoder, OrtInPlaceGraph, is_in_place
from auroraedge.runtime.ort_decoder import OrtGroupQueryGraph, reads_written_places
from auroraedge.runtime.session import GraphSession, OrtSession, computes_in_float
from auroraedge.runtime.side_by_side import SideBySideSession
from auroraedge.runtime.tables import read_tables
from auroraedge.runtime.tensorrt_decoder import TensorRtInPlaceGraph
from auroraedge.runtime.tensorrt_session import LIBRARIES, TensorRt, TensorRtSession

# What the host feeds and reads; the decoder has its cache besides.
_GRAPHS = {
    "vision": (("patches", "position", "patch_mask"), ("visual", "compressed")),
    "fusion": (("text", "visual", "patch_mask", "text_mask"), ("fused",)),
    "decoder": (("inputs_embeds", "attention_mask", "position_ids"), ("logits",)),
}
_IN_PLACE = ("inputs_embeds", "position_ids", "attention_bias", "write_index")
_SUPPORTED = (IMAGE_SIZE, PATCH_SIZE, LOCATION_BINS)
# Views that go through the encoder together; more gain nothing on one device and cost memory.
_VIEW_BATCH = 8

_Settings = TypeVar("_Settings", bound=BaseModel)


def _read_json(path: Path, model: type[_Settings]) -> _Settings | None:
    """A JSON file of a package, None where it is absent. Raises EngineDamagedError."""
    if not path.is_file():
        return None
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, json.JSONDecodeError) as error:
        raise EngineDamagedError(f"{path.name} is not valid: {error}.", field=path.name) from error


class RecipeCalibration(BaseModel):
    """What validation data taught about one recipe. The defaults use the verdict token alone.

    P(NG) = sigmoid(verdict * v + evidence * e + presence * p + bias), where v is the log-odds of the verdict token, e
    the strongest evidence of a defect and p the grounding head's log-odds that anything is there, each the largest over
    the frame's views. A defect's confidence c becomes sigmoid(logit(c) / confidence_temperature + confidence_bias).
    label_presence: weight of the head's presence logits beside the decoder's label logits when a frame is classified.
    details: where the list of defects comes from; 'decoder' also where the head lacks one of the recipe's labels.
    eos_bias: added to the logit of ending the decoder's list; negative values find more.
    exposure: mean grey level (0..255) that frames are brought to by scaling before they are seen, so that the lamp's
    brightness does not matter; None leaves them, and so does a golden sample, which tells how bright a part is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: float = 1.0
    evidence: float = 0.0
    presence: float = 0.0
    bias: float = 0.0
    label_presence: float = 0.0
    details: Literal["evidence", "decoder"] = "evidence"
    eos_bias: float = 0.0
    confidence_temperature: float = Field(default=1.0, gt=0)
    confidence_bias: float = 0.0
    exposure: float | None = Field(default=None, ge=16, le=240)


class Calibration(BaseModel):
    """calibration.json of a package: by recipe id, with a default for recipes of the user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: RecipeCalibration = RecipeCalibration()
    recipes: dict[str, RecipeCalibration] = Field(default_factory=dict)

    def of(self, recipe_id: str) -> RecipeCalibration:
        return self.recipes.get(recipe_id, self.default)


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Who answers."""

    model_id: str
    engine_sha256: str
    weights_sha256: str
    target: str
    precision: dict[str, str]
    path: Path


class ProcessorSettings(BaseModel):
    """processor.json: what the host must know to make the graphs' inputs and read their outputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int
    patch_size: int
    location_bins: int
    grounding_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What the encoder says of B views: V [B, 256, D], C [B, 64, D] and, where there is a grounding head, its evidence
    [B, 256, 1 + labels + 4] and presence [B, labels + 1]. All float32."""

    visual: np.ndarray
    compressed: np.ndarray
    evidence: np.ndarray | None
    presence: np.ndarray | None

    def part(self, start: int, stop: int) -> Encoded:
        """Of the views from `start` to before `stop`."""
        return Encoded(
            visual=self.visual[start:stop],
            compressed=self.compressed[start:stop],
            evidence=None if self.evidence is None else self.evidence[start:stop],
            presence=None if self.presence is None else self.presence[start:stop],
        )

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        if len(parts) == 1:
            return parts[0]
        return cls(**{name: _concatenate([getattr(part, name) for part in parts]) for name in _ENCODED})  # type: ignore[arg-type]


_ENCODED = ("visual", "compressed", "evidence", "presence")


def _concatenate(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    arrays = [part for part in parts if part is not None]
    return None if not arrays else arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _cache_names(prefix: str, decoder: DecoderSpec) -> tuple[str, ...]:
    return tuple(f"{prefix}.{layer}.{kind}" for layer in range(decoder.layers) for kind in ("key", "value"))


def _check_graphs(manifest: EngineDescription) -> None:
    """Raises EngineIncompatibleError unless the graphs take what this runtime feeds and give what it reads."""
    for name, (inputs, outputs) in _GRAPHS.items():
        spec = manifest.graphs.get(name)
        if spec is None:
            raise EngineIncompatibleError(f"The engine package has no {name} graph.", field=f"graphs.{name}")
        if name == "decoder":
            inputs = _IN_PLACE if is_in_place(spec) else inputs
            inputs += _cache_names("past", manifest.decoder)
            outputs += _cache_names("present", manifest.decoder)
        differing = {tensor.name for tensor in spec.inputs} ^ set(inputs)
        differing |= set(outputs) - {tensor.name for tensor in spec.outputs}
        if differing:
            raise EngineIncompatibleError(
                f"The {name} graph has other inputs or outputs than this version uses: {', '.join(sorted(differing))}.",
                field=f"graphs.{name}",
            )


def read_calibration(folder: Path) -> Calibration:
    """calibration.json of a package or model folder; the defaults where there is none. Raises EngineDamagedError."""
    return _read_json(folder / "calibration.json", Calibration) or Calibration()


def _device_of(manifest: EngineManifest) -> TensorRt | None:
    """What runs the plans of a GPU package; None for ONNX graphs. Raises EngineIncompatibleError."""
    if manifest.compiler.name in LIBRARIES:
        return TensorRt.open(manifest)
    check_target(manifest, "cpu")
    if manifest.compiler.name == "onnxruntime":
        return None
    raise EngineIncompatibleError(
        f"The engine package is compiled by {manifest.compiler.name}, which this version does not run.",
        field="compiler.name",
    )


class Engine:
    """What an inspector needs of a model, whatever computes it.

    manifest: what is known of it. token_embedding float32 [vocab, D], position_table float32 [256, E]: the host's
    tables. vision, fusion: graphs; decoder: a graph that hands its cache on, or a decoder that keeps it. view_batch:
    how many views the encoder is given at a time.
    """

    manifest: EngineDescription
    info: EngineInfo
    tokenizer: InspectionTokenizer
    token_embedding: np.ndarray
    position_table: np.ndarray
    calibration: Calibration
    processor: ProcessorSettings
    vision: GraphSession
    fusion: GraphSession
    decoder: GraphSession | Decoder
    view_batch: int = _VIEW_BATCH

    def close(self) -> None:
        """Gives back what the graphs hold."""
        for graph in (self.vision, self.fusion, self.decoder):
            if callable(release := getattr(graph, "close", None)):
                release()

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """float32 [..., D] of token ids [...]."""
        return np.asarray(self.token_embedding[ids], dtype=np.float32)

    def encode(self, patches: np.ndarray) -> Encoded:
        """Of full square views, patches uint8 [B, 256, 768]; in steps that bound the memory."""
        size = self.view_batch
        steps = [self._encode(patches[i : i + size]) for i in range(0, len(patches), size)]
        return Encoded.joined(steps)

    def _encode(self, patches: np.ndarray) -> Encoded:
        batch, count = patches.shape[:2]
        output = self.vision.run(
            {
                "patches": patches,
                "position": np.repeat(self.position_table[None], batch, axis=0),
                "patch_mask": np.ones((batch, count), dtype=np.float32),
            }
        )
        for name in ("compressed", "evidence", "presence"):
            if name in output and not np.isfinite(output[name]).all():
                raise EngineError(f"The encoder's output {name} has NaN or infinite values.", field="vision")
        return Encoded(
            visual=output["visual"],
            compressed=output["compressed"],
            evidence=output.get("evidence"),
            presence=output.get("presence"),
        )

    def fuse(self, ids: np.ndarray, visual: np.ndarray) -> np.ndarray:
        """F [B, t, D] of one prompt, ids [t], on the visual tokens [B, 256, D] of B views."""
        batch, count = visual.shape[:2]
        text = self.embed(ids)
        output = self.fusion.run(
            {
                "text": np.repeat(text[None], batch, axis=0),
                "visual": visual,
                "patch_mask": np.ones((batch, count), dtype=np.float32),
                "text_mask": np.ones((batch, len(ids)), dtype=np.float32),
            }
        )
        return output["fused"]


class EnginePackage(Engine):
    """A package, loaded and verified.

    weights_sha256: of the weights that it must be made from; None takes any. Raises EngineNotFoundError,
    EngineDamagedError or EngineIncompatibleError, and MissingDependencyError where the library it was compiled for is
    not installed.
    """

    def __init__(self, path: Path, *, threads: int | None = None, weights_sha256: str | None = None) -> None:
        manifest = verify_package(path)
        check_target(manifest, manifest.target, weights_sha256=weights_sha256)
        _check_graphs(manifest)
        self.manifest = manifest
        self._device = _device_of(manifest)
        self.info = EngineInfo(
            model_id=manifest.model_id,
            engine_sha256=manifest.engine_sha256,
            weights_sha256=manifest.weights_sha256,
            target=manifest.target,
            precision=dict(manifest.precision),
            path=path,
        )
        self.tokenizer = InspectionTokenizer.load(path / "tokenizer.json")
        try:
            self.token_embedding, self.position_table = read_tables(path / "embeddings.safetensors")
        except (SafetensorError, KeyError, OSError) as error:
            raise EngineDamagedError(f"embeddings.safetensors cannot be read: {error}.", field="embeddings") from error
        self.calibration = read_calibration(path)
        processor = _read_json(path / "processor.json", ProcessorSettings)
        if processor is None or (processor.image_size, processor.patch_size, processor.location_bins) != _SUPPORTED:
            raise EngineIncompatibleError(
                "processor.json asks for other views than this version makes.", field="engine"
            )
        self.processor = processor
        self._check_sizes()
        self.vision = self._session_of_views("vision", threads)
        self.fusion = self._session_of_views("fusion", threads)
        if isinstance(self.vision, SideBySideSession):
            self.view_batch = max(_VIEW_BATCH, self.vision.threads)
        self.decoder = self._decoder(threads)
        if load_manifest(path).engine_sha256 != manifest.engine_sha256:
            raise EngineError(
                f"The engine package {path} was replaced while it was loaded.", field="engine", remedy="Open it again."
            )

    def _check_sizes(self) -> None:
        """Tables, tokenizer, head and graphs must be of one model. Raises EngineIncompatibleError."""
        decoder = self.manifest.decoder
        vision = self.manifest.graphs["vision"]
        shapes = {tensor.name: tensor.shape for tensor in (*vision.inputs, *vision.outputs)}
        labels = len(self.processor.grounding_labels)
        expected = (
            ("token_embedding", self.token_embedding.shape, (decoder.vocab, decoder.hidden)),
            ("position_table", self.position_table.shape, (GRID * GRID, *shapes["position"][2:])),
            ("grounding_labels", shapes.get("evidence", (0,))[-1], 1 + labels + 4 if labels else 0),
            ("tokenizer.vocab_size", max(self.tokenizer.vocab_size, decoder.vocab), decoder.vocab),
        )
        for field, found, wanted in expected:
            if found != wanted:
                raise EngineIncompatibleError(
                    f"The parts of the engine package do not fit together: {field} is {found}, not {wanted}.",
                    field=field,
                )

    def _session(self, name: str, threads: int | None) -> GraphSession:
        if self._device is None:
            return self._ort_session(name, threads)
        spec = self.manifest.graphs[name]
        return TensorRtSession(self._device.plan(self.info.path / spec.file, spec))

    def _ort_session(self, name: str, threads: int | None) -> OrtSession:
        spec = self.manifest.graphs[name]
        fold = computes_in_float(self.manifest.precision[name])
        return OrtSession(self.info.path / spec.file, spec=spec, threads=threads, fold_weights=fold)

    def _session_of_views(self, name: str, threads: int | None) -> GraphSession:
        """A graph whose rows are views, which run side by side on a CPU."""
        if self._device is not None:
            return self._session(name, threads)
        shared = self._ort_session(name, threads)
        if shared.large:
            return shared  # a second copy of its weights would cost more than it saves
        return SideBySideSession(shared, lambda: self._ort_session(name, 1), shared.threads)

    def _decoder(self, threads: int | None) -> GraphSession | Decoder:
        spec = self.manifest.graphs["decoder"]
        if not is_in_place(spec):
            return self._session("decoder", threads)
        if self._device is not None:
            plan = self._device.plan(self.info.path / spec.file, spec)
            return InPlaceDecoder(TensorRtInPlaceGraph(plan, spec))
        session = OrtSession(self.info.path / spec.file, spec=spec, threads=threads)
        return InPlaceDecoder((OrtGroupQueryGraph if reads_written_places(spec) else OrtInPlaceGraph)(session, spec))
