"""Decoder backends: which one a build takes, and the checkpoints of the others that travel in a build kit.

The plain TensorRT decoder with our own loop is in every package. A target may offer TensorRT-LLM (data center) or
Edge-LLM (Jetson) beside it; their checkpoints are made here, on any machine, and built on the device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file

from auroraedge.errors import EngineError
from engine_build import edgellm, trtllm
from engine_build.decoder_source import DecoderSource, write_qwen_folder
from engine_build.environments import find_environment
from engine_build.targets import DecoderBackend, Target
from engine_build.trtllm import BuildSizes
from engine_build.trtllm_check import check_checkpoint

_HERE = Path(__file__).resolve().parent
MODULES: dict[str, str] = {
    "tensorrt": "tensorrt",
    "tensorrt-llm": "tensorrt_llm",
    "edge-llm": "tensorrt_edgellm",
    "onnxruntime": "onnxruntime",
}
_RECORDED = 4
_ANSWER_TOKENS = 32


def installed(backend: str) -> bool:
    """Whether this machine has the backend's package; tensorrt_rtx counts as TensorRT."""
    names = ("tensorrt", "tensorrt_rtx") if backend == "tensorrt" else (MODULES[backend],)
    return any(importlib.util.find_spec(name) is not None for name in names)


def choose_decoder(target: Target, requested: str | None) -> tuple[DecoderBackend, str]:
    """The backend, and why in words. Without a request: the first of the target's that is installed here, else the
    first. Raises EngineError for one that the target does not offer."""
    if requested is not None:
        return target.decoder_backend(requested), "as asked for"
    for backend in target.decoder_backends:
        if installed(backend):
            others = [name for name in target.decoder_backends if name != backend]
            absent = [name for name in others if not installed(name)]
            return backend, f"not installed here: {', '.join(absent)}" if absent else "the target's first choice"
    return target.decoder_backends[0], "the target's first choice; nothing of it is installed here"


def checkpoints_of(target: Target, requested: str | None) -> tuple[DecoderBackend, ...]:
    """Backends whose checkpoints a kit carries: all that the target offers, or the one that was asked for."""
    found = target.decoder_backends if requested is None else (target.decoder_backend(requested),)
    return tuple(name for name in found if name in ("tensorrt-llm", "edge-llm"))


def write_decoder(
    backend: DecoderBackend,
    source: DecoderSource,
    precision: str,
    folder: Path,
    sizes: BuildSizes,
    console: Console,
    *,
    keep: Iterable[str] = (),
    make_environment: bool = False,
) -> str:
    """Writes one backend's checkpoint and scripts to a new `folder`; returns what it is, in words, with its hash.

    make_environment: install Edge-LLM's exporter where it is missing; else only what needs no exporter is written.
    Raises EngineError when the checkpoint misses its gate.
    """
    folder.mkdir(parents=True)
    if backend == "tensorrt-llm":
        return _write_trtllm(source, precision, folder, sizes, console, keep)
    if backend != "edge-llm":
        raise EngineError(f"The backend '{backend}' has no checkpoint.", field="--decoder")
    (folder / "build.sh").write_text(edgellm.build_script(sizes), encoding="utf-8")
    environment = find_environment(edgellm.ENVIRONMENT)
    if environment is None and not make_environment:
        write_qwen_folder(source, folder / "hf")
        console.print("edge-llm: float16 checkpoint; not exported (--decoder edge-llm installs the exporter)")
        return f"float16 checkpoint, not exported, sha256 {_digest(folder / 'hf' / 'model.safetensors')}"
    facts = edgellm.export_edgellm(source, folder, console=console, environment=environment)
    console.print(f"edge-llm: exported by {facts['exporter']}, {facts['weights']} weights found in its graph")
    return f"float16, exported by {facts['exporter']}, sha256 {_digest(folder / 'llm' / 'model.onnx')}"


def _write_trtllm(
    source: DecoderSource,
    precision: str,
    folder: Path,
    sizes: BuildSizes,
    console: Console,
    keep: Iterable[str],
) -> str:
    checkpoint = folder / "checkpoint"
    config = trtllm.write_checkpoint(source, precision, checkpoint, keep=keep)
    figures = check_checkpoint(source, checkpoint)
    algorithm = config["quantization"]["quant_algo"] or "float16"
    console.print(
        f"tensorrt-llm: {algorithm}, {figures['snr_db']:.1f} dB to the model, the same token at "
        f"{figures['top1_agreement']:.1%} of {figures['positions']:.0f} places"
    )
    (folder / "build.sh").write_text(trtllm.build_script(sizes), encoding="utf-8")
    for name in ("trtllm_run.py", "trtllm_model.py"):
        shutil.copyfile(_HERE / name, folder / name)
    write_qwen_folder(source, folder / "decoder", architecture=trtllm.ARCHITECTURE)
    save_file(_recorded(source), folder / "prompts.safetensors")
    return f"{algorithm}, {figures['snr_db']:.1f} dB, sha256 {_digest(checkpoint / 'rank0.safetensors')}"


@torch.no_grad()
def _recorded(source: DecoderSource) -> dict[str, torch.Tensor]:
    """Prompts float16 [S, D] and their greedy answers int32, for the device to try."""
    tensors: dict[str, torch.Tensor] = {}
    for index, sequence in enumerate(source.checking[:_RECORDED]):
        prompt = torch.from_numpy(sequence.embeds[: sequence.first + 1])
        answer = source.model.generate(
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=_ANSWER_TOKENS,
            do_sample=False,
        )
        tensors[f"prompt.{index}"] = prompt.half().contiguous()
        tensors[f"answer.{index}"] = answer[0].to(torch.int32).contiguous()
    return tensors


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
