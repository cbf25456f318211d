"""Targets: the machines that an engine may be built for, as validated YAML in engine_build/targets."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from auroraedge.errors import EngineError

FOLDER = Path(__file__).resolve().parent / "targets"
GRAPHS = ("vision", "fusion", "decoder")
Compiler = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
DecoderBackend = Literal["onnxruntime", "tensorrt", "tensorrt-llm", "edge-llm"]
# Of the weights of linear layers: fp32, fp16; int8 and fp8 with quantised activations (W8A8), whose scale is
# calibrated; int8-dynamic with a scale for each row of activations, taken as it comes; int8-weights and int4 with 16-
# or 32-bit arithmetic (int4 on a CPU: 8-bit activations, LM head int8-dynamic). All else of a graph stays in 16 bit on
# a GPU and in 32 bit on a CPU.
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4", "fp8"]
_ALIASES = {"trtllm": "tensorrt-llm", "edgellm": "edge-llm"}
# Precisions of GPU graphs that round the inputs of linear layers too, with one scale a layer.
EIGHT_BIT_ACTIVATIONS = ("int8", "fp8")
WEIGHT_BITS: dict[str, float] = {
    "fp32": 32,
    "fp16": 16,
    "int8": 8,
    "fp8": 8,
    "int8-dynamic": 8,
    "int8-weights": 8,
    "int4": 4 + 16 / 128,  # one 16-bit scale for 128 weights
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Profile(_Model):
    """Sizes that the graphs of a GPU engine accept; the middle one is what they are tuned for."""

    batch: tuple[int, int, int] = Field(description="Views or sequences at once: least, best, most.")
    prompt: tuple[int, int, int] = Field(default=(1, 64, 256), description="Text tokens of a prompt.")
    most_tokens: int = Field(
        default=512, ge=128, le=32_768, description="Places of the key/value cache: 64 visual, prompt and answer."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("batch", "prompt"):
            low, best, high = getattr(self, name)
            if not 1 <= low <= best <= high:
                raise ValueError(f"{name} must be least <= best <= most, all at least 1")
        if self.most_tokens < 64 + self.prompt[2]:
            raise ValueError("most_tokens must hold 64 visual tokens and the longest prompt")
        return self


class Target(_Model):
    """One class of machines. precisions: by name, the precision of every graph."""

    name: str
    title: str
    kind: Literal["cpu", "jetson", "data-center", "rtx"]
    compute_capability: str | None = Field(default=None, pattern=r"^\d+\.\d$")
    sm_count: int | None = Field(default=None, ge=1, description="Streaming multiprocessors of the GPU.")
    memory_gb: float = Field(gt=0, description="GPU memory; all memory where CPU and GPU share it. 10^9 bytes.")
    unified_memory: bool = Field(default=False, description="CPU and GPU share the memory.")
    reserved_gb: float = Field(ge=0, description="Taken by the system, CUDA and the line's own software.")
    compilers: tuple[Compiler, ...] = Field(min_length=1, description="In order of preference.")
    decoder_backends: tuple[DecoderBackend, ...] = Field(min_length=1, description="In order of preference.")
    precisions: dict[str, dict[str, Precision]]
    default_precision: str
    refused: dict[str, str] = Field(
        default_factory=dict, description="Why a precision is not offered, and what instead."
    )
    lm_head_parts: int = Field(
        default=1, ge=1, le=64, description="The LM head is split along the vocabulary where one matmul is too large."
    )
    profile: Profile
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, graphs in self.precisions.items():
            if set(graphs) != set(GRAPHS):
                raise ValueError(f"precision '{name}' must name exactly {', '.join(GRAPHS)}")
        if self.default_precision not in self.precisions:
            raise ValueError(f"default_precision '{self.default_precision}' is not one of precisions")
        if both := set(self.precisions) & set(self.refused):
            raise ValueError(f"{', '.join(sorted(both))} cannot be offered and refused")
        if self.reserved_gb >= self.memory_gb:
            raise ValueError("reserved_gb must be less than memory_gb")
        if (self.kind == "cpu") != (self.compute_capability is None):
            raise ValueError("a GPU target names its compute_capability, the CPU has none")
        capability = tuple(int(part) for part in (self.compute_capability or "0.0").split("."))
        uses_fp8 = any("fp8" in graphs.values() for graphs in self.precisions.values())
        if uses_fp8 and capability < (8, 9):
            raise ValueError(f"compute capability {self.compute_capability} has no FP8 arithmetic")
        return self

    def precision(self, name: str | None) -> dict[str, Precision]:
        """Precision by graph. Raises EngineError for one that the target does not offer, with the reason."""
        chosen = name or self.default_precision
        if chosen in self.refused:
            raise EngineError(
                f"Target '{self.name}' has no precision '{chosen}': {self.refused[chosen]}",
                field="--precision",
                remedy=f"Choose one of: {', '.join(self.precisions)}.",
            )
        if chosen not in self.precisions:
            raise EngineError(
                f"Target '{self.name}' has no precision '{chosen}'.",
                field="--precision",
                remedy=f"Choose one of: {', '.join(self.precisions)}.",
            )
        return dict(self.precisions[chosen])

    def decoder_backend(self, name: str | None) -> DecoderBackend:
        """The decoder backend to use. Raises EngineError for one that the target does not offer."""
        chosen = _ALIASES.get(name or "", name) or self.decoder_backends[0]
        for backend in self.decoder_backends:
            if backend == chosen:
                return backend
        raise EngineError(
            f"Target '{self.name}' has no decoder backend '{chosen}'.",
            field="--decoder",
            remedy=f"Choose one of: {', '.join(self.decoder_backends)}.",
        )

    @property
    def budget_bytes(self) -> float:
        """Memory that an engine may take."""
        return (self.memory_gb - self.reserved_gb) * 1e9


def list_targets() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_target(name: str) -> Target:
    """The target `name`. Raises EngineError."""
    path = FOLDER / f"{name}.yaml"
    known = list_targets()
    if name not in known:
        alike = [other for other in known if other.startswith(name)] or difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(alike)}? " if alike else ""
        raise EngineError(f"There is no target '{name}'.", field="--target", remedy=f"{hint}Known: {', '.join(known)}.")
    try:
        target = Target.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise EngineError(f"{path.name} is not a valid target: {error}.", field="--target") from error
    if target.name != name:
        raise EngineError(f"{path.name} describes target '{target.name}'.", field="--target")
    return target
