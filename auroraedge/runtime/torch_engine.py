"""A model folder run by torch: the same engine without a build, on a CPU or a CUDA device (extra `gpu`).

The one module of the runtime that needs torch; `auroraedge.runtime.open_engine` imports it when it is given the folder
that save_pretrained wrote. On CUDA the Triton kernels of `kernels` are registered where that package and Triton are
there (a checkout, not the wheel).

Suffixes: R rows, S new places, T places so far, D width.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from auroraedge.config import IMAGE_SIZE, LOCATION_BINS, PATCH_SIZE
from auroraedge.errors import EngineDamagedError, EngineError, EngineIncompatibleError, EngineNotFoundError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.manifest import CompilerInfo, DecoderSpec, EngineDescription, GraphSpec, engine_sha256
from auroraedge.model import AuroraEdgeForConditionalGeneration
from auroraedge.runtime.decoding import checked, positions_of
from auroraedge.runtime.engine import Engine, EngineInfo, ProcessorSettings, read_calibration
from auroraedge.runtime.in_place import MASKED
from auroraedge.runtime.session import Arrays

WEIGHTS = "model.safetensors"
_NEEDED = ("config.json", WEIGHTS, "tokenizer.json")
_GRAPHS = ("vision", "fusion", "decoder")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class TorchEngine(Engine):
    """A model folder: config.json, model.safetensors, tokenizer.json and, where there is one, calibration.json.

    device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is one. dtype: "float32", "float16" or "bfloat16";
    None is float32 on a CPU and float16 on CUDA, as in the engines compiled for either. threads: of torch, for the
    whole process; None leaves them. Raises EngineNotFoundError, EngineDamagedError or EngineIncompatibleError.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        missing = [name for name in _NEEDED if not (path / name).is_file()]
        if missing:
            raise EngineNotFoundError(f"The model folder {path} lacks {', '.join(missing)}.", field="engine")
        self.device = _device(device)
        chosen = dtype or ("float16" if self.device.type == "cuda" else "float32")
        if chosen not in _DTYPES:
            raise EngineIncompatibleError(
                f"There is no dtype '{chosen}'.", field="dtype", remedy=f"One of {', '.join(_DTYPES)}."
            )
        if threads is not None:
            torch.set_num_threads(threads)
        names = [*_NEEDED, *(name for name in ("calibration.json",) if (path / name).is_file())]
        files = {name: _sha256(path / name) for name in names}
        if weights_sha256 is not None and files[WEIGHTS] != weights_sha256:
            raise EngineIncompatibleError(
                f"The weights of {path} are {files[WEIGHTS][:12]}, not {weights_sha256[:12]}.",
                field="weights_sha256",
                remedy="Name the folder of the weights that are wanted.",
            )
        try:
            model: Any = AuroraEdgeForConditionalGeneration.from_pretrained(
                path, dtype=_DTYPES[chosen], use_safetensors=True, local_files_only=True
            )
        except Exception as error:  # transformers and safetensors raise families of their own
            raise EngineDamagedError(f"The model folder {path} cannot be loaded: {error}.", field="engine") from error
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.kernels = self.device.type == "cuda" and _register_kernels()
        text = self.model.config.text_config
        precision = dict.fromkeys(_GRAPHS, _SHORT[chosen])
        self.manifest = EngineDescription(
            model_id=f"auroraedge-{self.model.config.preset or path.name}",
            weights_sha256=files[WEIGHTS],
            target=f"torch-{self.device.type}",
            compute_capability=_capability(self.device),
            compiler=CompilerInfo(name="torch", version=torch.__version__),
            precision=precision,
            graphs={name: GraphSpec(file=WEIGHTS, inputs=(), outputs=()) for name in _GRAPHS},
            decoder=DecoderSpec(
                layers=text.num_hidden_layers,
                kv_heads=text.num_key_value_heads,
                head_dim=text.head_dim,
                hidden=text.hidden_size,
                vocab=text.vocab_size,
            ),
        )
        self.info = EngineInfo(
            model_id=self.manifest.model_id,
            engine_sha256=engine_sha256(files),
            weights_sha256=files[WEIGHTS],
            target=self.manifest.target,
            precision=precision,
            path=path,
        )
        self.tokenizer = InspectionTokenizer.load(path / "tokenizer.json")
        if self.tokenizer.vocab_size > text.vocab_size:
            raise EngineIncompatibleError(
                f"The tokenizer has {self.tokenizer.vocab_size} tokens, the model {text.vocab_size}.", field="tokenizer"
            )
        self.calibration = read_calibration(path)
        self.processor = ProcessorSettings(
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            location_bins=LOCATION_BINS,
            grounding_labels=tuple(self.model.config.grounding_labels),
        )
        self.token_embedding = _numpy(self.model.get_input_embeddings().weight)
        self.position_table = _numpy(self.model.vision_model.embeddings.position_embedding.weight)
        self.vision = TorchVision(self.model, self.device)
        self.fusion = TorchFusion(self.model, self.device)
        self.decoder = TorchDecoder(self.model, self.device)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineIncompatibleError(f"torch knows no device '{name}'.", field="device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineIncompatibleError(
            "torch sees no CUDA device.", field="device", remedy="Take device cpu, or install torch for CUDA."
        )
    return device


def _capability(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _register_kernels() -> bool:
    """Puts the Triton kernels behind the model's ops, where there are any."""
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("kernels") is None:
        return False
    package = importlib.import_module("kernels")
    if not hasattr(package, "register"):  # another package of that name
        return False
    package.register()
    return True


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


@contextlib.contextmanager
def _failures(name: str) -> Any:
    """torch's errors, out of memory among them, as EngineError."""
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        raise EngineError(f"The {name} failed in torch: {error}.", field=name) from error


class _Module:
    """A part of the model with the interface of a graph."""

    def __init__(self, model: AuroraEdgeForConditionalGeneration, device: torch.device) -> None:
        self._model, self._device = model, device
        self._dtype = model.dtype

    def _in(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _real(self, array: np.ndarray) -> torch.Tensor:
        return self._in(array).to(self._dtype)


class TorchVision(_Module):
    """patches uint8 [B, 256, 768], patch_mask [B, 256] -> visual, compressed (, evidence, presence). The position table
    is the model's own: views are full square grids."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        with _failures("vision"):
            pixels = (self._in(inputs["patches"]).float() / 127.5 - 1.0).to(self._dtype)
            visual, compressed, mask = self._model.encode(pixels, self._real(inputs["patch_mask"]))
            found = {"visual": visual, "compressed": compressed}
            if self._model.grounding is not None:
                found["evidence"], found["presence"] = self._model.grounding(visual, mask)
            return {name: _numpy(tensor) for name, tensor in found.items()}


class TorchFusion(_Module):
    """text [B, t, D], visual [B, 256, D], patch_mask [B, 256], text_mask [B, t] -> fused [B, t, D]."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        with _failures("fusion"):
            names = ("text", "visual", "patch_mask", "text_mask")
            return {"fused": _numpy(self._model.fusion(*(self._real(inputs[name]) for name in names)))}


class TorchDecoder(_Module):
    """The Qwen2 decoder of transformers, fed with embeddings; see `decoding.Decoder`."""

    def __init__(self, model: AuroraEdgeForConditionalGeneration, device: torch.device) -> None:
        super().__init__(model, device)
        # Newer versions of transformers name the argument so, and warn about the old name.
        known = inspect.signature(model.language_model.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"

    def start(self, rows: int) -> TorchCache:
        return TorchCache(self, DynamicCache(config=self._model.config.text_config), np.zeros((rows, 0), np.float32))

    def step(self, cache: DynamicCache, embeds_RSD: np.ndarray, mask_RT: np.ndarray) -> np.ndarray:
        length = embeds_RSD.shape[1]
        place = np.arange(mask_RT.shape[1])
        seen = (mask_RT[:, None] > 0) & (place[None, :] <= place[-length:, None])[None]
        bias = np.where(seen, np.float32(0.0), np.float32(MASKED))[:, None]
        with _failures("decoder"):
            output = self._model.language_model(
                inputs_embeds=self._real(embeds_RSD),
                attention_mask=self._real(bias),
                position_ids=self._in(positions_of(mask_RT, length)),
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_name: cache},
            )
            return _numpy(output.logits[:, -1])

    def indices(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(rows), device=self._device)


class TorchCache:
    """transformers' cache and the mask over its places; see `decoding.Cache`."""

    def __init__(self, decoder: TorchDecoder, cache: DynamicCache, mask_RT: np.ndarray) -> None:
        self._decoder, self._cache, self._mask = decoder, cache, mask_RT

    def feed(self, embeds_RSD: np.ndarray, real_RS: np.ndarray) -> np.ndarray:
        self._mask = np.concatenate([self._mask, real_RS], axis=1)
        return checked(self._decoder.step(self._cache, embeds_RSD, self._mask))

    def keep(self, rows: Sequence[int]) -> None:
        self._mask = self._mask[list(rows)]
        with _failures("decoder"):
            self._cache.batch_select_indices(self._decoder.indices(rows))

    def fork(self, rows: Sequence[int]) -> TorchCache:
        with _failures("decoder"):
            twin = TorchCache(self._decoder, copy.deepcopy(self._cache), self._mask.copy())
        twin.keep(rows)
        return twin

    def close(self) -> None:
        self._cache = DynamicCache()
