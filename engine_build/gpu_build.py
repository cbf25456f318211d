"""The build for a GPU target, step by step: calibrate, smooth, write ONNX, check in ONNX Runtime, compile, package.

Every step leaves its result in a workspace and is skipped when it is there already, so a build that was interrupted
goes on where it stopped. The accuracy of the quantised graphs is known before the compiler starts: their float32 form,
Q/DQ included, runs in ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from auroraedge.errors import EngineError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.manifest import (
    CompilerInfo,
    DecoderSpec,
    EngineDescription,
    EngineManifest,
    GraphSpec,
    KernelChoice,
    ShapeProfile,
    publish_package,
)
from auroraedge.model import AuroraEdgeForConditionalGeneration
from auroraedge.runtime.session import OrtSession
from calib.frames import CalibrationSet, calibration_set
from calib.ranges import Method, Ranges, measure_ranges
from calib.sensitivity import Sensitivity, sweep
from calib.smoothing import awq, smooth_quant
from engine_build import steps
from engine_build.decoder_source import wide_layers
from engine_build.gpu_graphs import (
    KERNEL_NODES,
    Cache,
    GraphOptions,
    ModelShape,
    Weights,
    cache_names,
    write_decoder,
    write_fusion,
    write_vision,
)
from engine_build.network import Precisions
from engine_build.parity import engine_outputs, stage_parity, torch_outputs
from engine_build.plan import choose_compiler
from engine_build.quantisers import Quantisers, check_quantisers
from engine_build.targets import EIGHT_BIT_ACTIVATIONS, GRAPHS, Target
from engine_build.tensorrt_compiler import CompiledGraph, CompileSettings, compile_graph
from engine_build.weight_source import random_source
from kernels.plugins import Packs, choose_together
from kernels.plugins import register as register_plugins

_WRITERS = {"vision": write_vision, "fusion": write_fusion, "decoder": write_decoder}
# Least cosine to the torch model, by tensor, that a quantised graph must reach on the calibration views.
_LEAST_COSINE = 0.99
_STATE = "build.json"
# Changed when ranges, parity or graphs are computed differently, so that --resume takes nothing of another version.
_FORM = 1
# The grounding head stays in 16 bits. A defect is a peak on a few of thousands of visual tokens, which a percentile
# takes for an outlier: what is clipped there is confidence in a defect (docs/engines.md). It is 1 % of the products.
GROUNDING = frozenset({"grounding.mlp.1", "grounding.out", "grounding.pool"})
# Input ranges of layers in a build with random weights, which nothing can be calibrated on.
_RANDOM_RANGE = 8.0
_SWEEP_VIEWS = 8
REPORT = "calibration.html"


@dataclass(frozen=True, kw_only=True)
class GpuBuild:
    """What is built. method: of the activation ranges. cache: of the decoder, see engine_build.gpu_graphs.

    keep: layers left in 16 bits, beside those of decoder_source.wide_layers. keep_worst: so many more, those that a
    sensitivity sweep finds the most harmful.
    decoder: the backend asked for; None leaves the choice to engine_build.decoders.
    """

    target: Target
    model: str
    precision: dict[str, str]
    method: Method = "percentile"
    cache: Cache = "in_place"
    keep: frozenset[str] = GROUNDING
    random_weights: bool = False
    pack: Path | None = None
    views: int = 96
    keep_worst: int = 0
    kernel_packs: Path | None = None
    decoder: str | None = None

    def packs(self) -> Packs | None:
        """The kernels compiled for the target; None without --kernel-packs."""
        capability = self.target.compute_capability
        if self.kernel_packs is None or capability is None:
            return None
        return Packs.load(self.kernel_packs, int(capability.replace(".", "")))

    def kernels(self, compiler: str) -> tuple[KernelChoice, ...]:
        """How each op of the graphs that there is a kernel for is computed: all by plug-ins, or all in plain layers."""
        return choose_together(compiler, self.packs(), KERNEL_NODES)

    @property
    def options(self) -> GraphOptions:
        return GraphOptions(
            cache=self.cache,
            places=self.target.profile.most_tokens,
            lm_head_parts=self.target.lm_head_parts if self.model == "2b" or self.random_weights else 1,
            external=self.random_weights,
        )

    @property
    def quantises_activations(self) -> bool:
        return bool(set(EIGHT_BIT_ACTIVATIONS) & set(self.precision.values()))

    def kept(self, shape: ModelShape) -> frozenset[str]:
        """Layers left in 16 bits whatever a sweep finds."""
        wide = wide_layers(self.precision["decoder"], shape.layers)
        return self.keep | layer_names(f"language_model.{module}" for module in wide)


@dataclass
class Prepared:
    """Weights and what is known about their inputs; `activation` by layer of the graphs."""

    shape: ModelShape
    weights: Weights
    activation: dict[str, float] = field(default_factory=dict)
    model: AuroraEdgeForConditionalGeneration | None = None
    frames: CalibrationSet | None = None
    tokenizer_file: Path | None = None
    folder: Path | None = None
    weights_sha256: str = ""
    ranges: Ranges | None = None
    used: dict[str, float] = field(default_factory=dict)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    keep: frozenset[str] = frozenset()
    reference_state: dict[str, np.ndarray] = field(default_factory=dict)


def layer_ranges(measured: Mapping[str, float]) -> dict[str, float]:
    """Ranges by layer of the graphs, where q, k, v and others are stacked, from ranges by module of the model."""
    found = dict(measured)
    for name, value in measured.items():
        for part, stacked in (("self_attn.q_proj", "self_attn.qkv"), ("mlp.gate_proj", "mlp.gate_up")):
            if name.endswith(part):
                found[name.removesuffix(part) + stacked] = value
        if name.endswith("fusion.cross.k_proj"):
            found["fusion.cross.kv"] = value
        if name.endswith("lm_head"):
            found |= {f"{name}.{i}": value for i in range(64)}
    return found


def prepare(build: GpuBuild, console: Console, workspace: Path | None = None, *, resume: bool = False) -> Prepared:
    """Loads the weights, calibrates where the precision asks for it, and smooths. Raises EngineError.

    workspace: folder that keeps ranges and sensitivity, from which an interrupted build goes on with resume=True.
    """
    if build.random_weights:
        if workspace is not None:
            _open_workspace(workspace, _key(build, f"random {build.model}", ""), resume=resume)
        return _random(build)
    folder = steps.model_folder(build.model)
    model = steps.load_model(folder)
    weights_sha256 = steps.weights_sha256(folder)
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = InspectionTokenizer.load(tokenizer_file)
    frames = calibration_set(tokenizer, pack=build.pack, views=build.views)
    if workspace is not None:
        _open_workspace(workspace, _key(build, weights_sha256, frames.sha256), resume=resume)
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    smoothed, ranges = dict(state), None
    if build.quantises_activations or "int4" in build.precision.values():
        console.print(f"calibrating on {len(frames.patches)} views")
        ranges = _ranges(model, frames, workspace and workspace / "ranges.npz", console)
        for graph, root in (("vision", "vision_model"), ("fusion", "fusion"), ("decoder", "language_model")):
            if build.precision[graph] in EIGHT_BIT_ACTIVATIONS:
                smoothed = smooth_quant(smoothed, ranges.layers, under=root)
            elif build.precision[graph] == "int4":
                smoothed = awq(smoothed, ranges.layers, under=root)
        _load(model, smoothed)
        ranges = _ranges(model, frames, workspace and workspace / "ranges-smoothed.npz", console)
        _load(model, state)
    used = ranges.largest(build.method) if ranges is not None else {}
    shape = ModelShape.of(model.config)
    kept = build.kept(shape)
    found: list[Sensitivity] = []
    if build.keep_worst and used:
        journal = workspace and workspace / "sensitivity.jsonl"
        found = _sweep(build, model, smoothed, state, frames, used, kept, console, journal)
    return Prepared(
        shape=shape,
        weights=lambda name: smoothed[name],
        activation=layer_ranges(used),
        ranges=ranges,
        used=used,
        sensitivity=found,
        keep=kept | layer_names(item.layer for item in found[: build.keep_worst]),
        model=model,
        frames=frames,
        tokenizer_file=tokenizer_file,
        folder=folder,
        weights_sha256=weights_sha256,
        reference_state=state,
    )


def _ranges(
    model: AuroraEdgeForConditionalGeneration, frames: CalibrationSet, kept: Path | None, console: Console
) -> Ranges:
    """Measured, or read from the file that an interrupted build left."""
    if kept is not None and kept.is_file():
        console.print(f"{kept.name}: kept from the workspace")
        return Ranges.load(kept)
    ranges = measure_ranges(model, frames, console)
    if kept is not None:
        ranges.save(kept)
    return ranges


def layer_names(modules: Iterable[str]) -> frozenset[str]:
    """Layers of the graphs that hold the given modules of the model."""
    names = set()
    for module in modules:
        for parts, stacked in (
            (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv"),
            (("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up"),
            (("cross.k_proj", "cross.v_proj"), "cross.kv"),
        ):
            for part in parts:
                if module.endswith(part):
                    names.add(module.removesuffix(part) + stacked)
        names.add(module)
        if module.endswith("lm_head"):
            names |= {f"{module}.{i}" for i in range(64)}
    return frozenset(names)


def _sweep(
    build: GpuBuild,
    model: AuroraEdgeForConditionalGeneration,
    smoothed: dict[str, np.ndarray],
    state: dict[str, np.ndarray],
    frames: CalibrationSet,
    used: Mapping[str, float],
    kept: frozenset[str],
    console: Console,
    journal: Path | None,
) -> list[Sensitivity]:
    """Sensitivity of the smoothed model's layers, on a few of the views; leaves the model as it was."""
    roots = {
        "vision": ("vision_model", "projector", "grounding"),
        "fusion": ("fusion",),
        "decoder": ("language_model",),
    }
    precisions = {
        name: build.precision[graph]
        for name in used
        for graph, prefixes in roots.items()
        if name.startswith(prefixes) and build.precision[graph] not in ("fp16", "fp32") and name not in kept
    }
    some = replace(frames, patches=frames.patches[:_SWEEP_VIEWS], prompt_ids=frames.prompt_ids[:_SWEEP_VIEWS])
    _load(model, smoothed)
    found = sweep(model, some, used, precisions, console, journal)
    _load(model, state)
    return found


def write_calibration_report(
    build: GpuBuild, prepared: Prepared, quality: dict[str, dict[str, dict[str, float]]], path: Path
) -> None:
    """The report of a calibrated build; nothing for one without calibration."""
    if prepared.ranges is None:
        return
    from calib.report import write_report

    precision = ", ".join(f"{graph} {build.precision[graph]}" for graph in GRAPHS)
    write_report(
        path,
        title=f"{Path(build.model).name} for {build.target.name} ({precision})",
        ranges=prepared.ranges,
        method=build.method,
        used=prepared.used,
        quality=quality,
        sensitivity=prepared.sensitivity,
        kept=[item.layer for item in prepared.sensitivity[: build.keep_worst]],
    )


def _load(model: AuroraEdgeForConditionalGeneration, state: Mapping[str, np.ndarray]) -> None:
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})


def _random(build: GpuBuild) -> Prepared:
    """Distinct random weights of a preset, made one by one when they are written: no memory for the whole model."""
    source = random_source(build.model)

    class _Same(dict):
        def get(self, _: str, default: float | None = None) -> float:
            return _RANDOM_RANGE

    shape = ModelShape.of(source.config)
    return Prepared(shape=shape, weights=source.weights, activation=_Same(), keep=build.kept(shape))


def profiles(shape: ModelShape, target: Target, cache: Cache) -> dict[str, dict[str, ShapeProfile]]:
    """Least, best and most sizes of every input, by graph."""
    batch, prompt, places = target.profile.batch, target.profile.prompt, target.profile.most_tokens
    # The decoder sees one token a step, and the whole prompt behind the compressed tokens at the start. The sizes of
    # one row must fit each other: TensorRT checks past + sequence = total for each of the three.
    sequence = (1, 1, shape.compressed + prompt[2])
    past = (0, shape.compressed + prompt[1], places - 1)
    total = tuple(new + old for new, old in zip(sequence, past, strict=True))
    d, n = shape.width, shape.patches

    def sizes(*axes: int | tuple[int, ...]) -> ShapeProfile:
        low, best, high = (tuple(a if isinstance(a, int) else a[i] for a in axes) for i in range(3))
        return ShapeProfile(minimum=low, optimum=best, maximum=high)

    decoder = {"inputs_embeds": sizes(batch, sequence, d), "position_ids": sizes(batch, sequence)}
    if cache == "in_place":
        decoder |= {"attention_bias": sizes(batch, 1, sequence, places), "write_index": sizes(batch)}
        kept = sizes(batch, shape.kv_heads, places, shape.head_dim)
    else:
        decoder |= {"attention_mask": sizes(batch, total)}
        kept = sizes(batch, shape.kv_heads, past, shape.head_dim)
    decoder |= {name: kept for name in cache_names(shape, "past")}
    return {
        "vision": {
            "patches": sizes(batch, n, shape.pixels),
            "position": sizes(batch, n, shape.vision_width),
            "patch_mask": sizes(batch, n),
        },
        "fusion": {
            "text": sizes(batch, prompt, d),
            "visual": sizes(batch, n, d),
            "patch_mask": sizes(batch, n),
            "text_mask": sizes(batch, prompt),
        },
        "decoder": decoder,
    }


def write_graph(
    build: GpuBuild, prepared: Prepared, graph: str, path: Path, options: GraphOptions
) -> dict[str, Quantisers]:
    """One graph as ONNX, in the precision of the build; returns the quantisers that are active, by submodule.

    Raises EngineError where these are not all that the precision asks for.
    """
    precisions = Precisions(name=build.precision[graph], activation=prepared.activation, keep=prepared.keep)
    network = _WRITERS[graph](path, prepared.shape, prepared.weights, precisions, options)
    return check_quantisers(path, network.linear_layers, precisions)


def check_in_onnxruntime(build: GpuBuild, prepared: Prepared, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Parity of the float32 form of the graphs, Q/DQ included, with the torch model. Raises EngineError.

    Leaves the graphs in `folder`, with the signature of the CPU engine.
    """
    assert prepared.model is not None and prepared.frames is not None and prepared.tokenizer_file is not None
    sessions = {}
    for graph in GRAPHS:
        write_graph(build, prepared, graph, folder / f"{graph}.onnx", GraphOptions(dtype="float32"))
        sessions[graph] = OrtSession(folder / f"{graph}.onnx", fold_weights=True)
    tokenizer = InspectionTokenizer.load(prepared.tokenizer_file)
    state, shape = prepared.reference_state, prepared.shape
    sizes = {"layers": shape.layers, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    position = state["vision_model.embeddings.position_embedding.weight"].astype(np.float32)
    embedding = state["language_model.model.embed_tokens.weight"].astype(np.float32)
    reference = torch_outputs(prepared.model, prepared.frames)
    found = engine_outputs(sessions, prepared.frames, position, embedding, sizes, reference)
    figures = stage_parity(found, reference, tokenizer)
    for tensor, values in figures.items():
        if tensor != "task" and values["cosine"] < _LEAST_COSINE:
            raise EngineError(
                f"{tensor} of the quantised graphs has cosine {values['cosine']:.4f} to the model; {_LEAST_COSINE} is "
                "the least.",
                field=tensor,
                remedy="Give real calibration frames with --calibration, or take --precision fp16.",
            )
    return {"onnx_qdq": figures}


def simulate(
    build: GpuBuild, out: Path, console: Console, workspace: Path | None = None, *, resume: bool = False
) -> EngineManifest:
    """A package for ONNX Runtime on a CPU that rounds as the GPU engine will; `auroraedge eval --engine` scores it."""
    with publish_package(out) as draft:
        prepared = prepare(build, console, workspace, resume=resume)
        assert prepared.model is not None and prepared.tokenizer_file is not None and prepared.folder is not None
        figures = check_in_onnxruntime(build, prepared, draft.path)
        steps.write_tables(prepared.model, draft.path, prepared.tokenizer_file, prepared.folder)
        draft.description = describe(
            build,
            prepared,
            target="cpu",
            compiler=CompilerInfo(name="onnxruntime", version=onnxruntime.__version__),
            graphs={name: steps.graph_spec(draft.path / f"{name}.onnx") for name in GRAPHS},
            parity=figures,
            capability=None,
        )
    assert draft.manifest is not None
    console.print(steps.parity_table(figures))
    return draft.manifest


def describe(
    build: GpuBuild,
    prepared: Prepared,
    *,
    target: str,
    compiler: CompilerInfo,
    graphs: dict[str, GraphSpec],
    parity: dict[str, dict[str, dict[str, float]]],
    capability: str | None,
) -> EngineDescription:
    shape = prepared.shape
    return EngineDescription(
        model_id=f"auroraedge-{Path(build.model).name}" + ("-random" if build.random_weights else ""),
        weights_sha256=prepared.weights_sha256 or hashlib.sha256(b"random").hexdigest(),
        target=target,
        compute_capability=capability,
        compiler=compiler,
        precision={graph: f"{build.precision[graph]}-qdq" for graph in GRAPHS}
        if target == "cpu"
        else dict(build.precision),
        graphs=graphs,
        decoder=DecoderSpec(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            hidden=shape.width,
            vocab=shape.vocab,
        ),
        calibration_set_sha256=prepared.frames.sha256 if prepared.frames is not None else None,
        parity={f"{s}/{t}": v for s, tensors in parity.items() for t, v in tensors.items()},
        kernels=() if target == "cpu" else build.kernels(compiler.name),
    )


# -- compiling --------------------------------------------------------------------------------------------------------


def _key(build: GpuBuild, weights: str, frames: str) -> str:
    """Changes with everything that changes a result of the build. weights, frames: their hashes."""
    packs = build.packs()
    content = {
        "form": _FORM,
        "target": build.target.model_dump(mode="json"),
        "precision": build.precision,
        "cache": build.cache,
        "method": build.method,
        "keep": [sorted(build.keep), build.keep_worst],
        "weights": weights,
        "calibration": frames,
        "kernels": {pack.name: pack.content["ptx_sha256"] for pack in packs.packs} if packs is not None else {},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_workspace(folder: Path, key: str, *, resume: bool) -> None:
    """Empties the folder unless it holds an interrupted build of the same thing and `resume` is asked for."""
    state = folder / _STATE
    if folder.is_dir() and any(folder.iterdir()) and not state.is_file():
        raise EngineError(
            f"{folder} is not a build workspace.", field="--workspace", remedy="Name a new or an empty folder."
        )
    known = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    if not (resume and known.get("key") == key) and folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps({"key": key}), encoding="utf-8")


def compile_all(
    build: GpuBuild,
    prepared: Prepared,
    workspace: Path,
    console: Console,
    *,
    compiler: str,
    workspace_bytes: int | None = None,
) -> dict[str, CompiledGraph]:
    """Plans of all graphs in `workspace`; a plan that is there already is kept. Raises EngineError."""
    wanted = profiles(prepared.shape, build.target, build.cache)
    options = build.options
    packs = build.packs()
    if packs is not None and all(choice.how == "plugin" for choice in build.kernels(compiler)):
        register_plugins(packs, compiler)
        options = replace(options, kernels="plugins")
    settings = CompileSettings(
        compute_capability=build.target.compute_capability,
        workspace_bytes=workspace_bytes,
        timing_cache=workspace / "timing.cache",
    )
    done: dict[str, CompiledGraph] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for graph in GRAPHS:
            record, plan = workspace / f"{graph}.json", workspace / f"{graph}.plan"
            if record.is_file() and plan.is_file():
                done[graph] = _read_record(record)
                console.print(f"{graph}: kept from the workspace, {plan.stat().st_size / 1e6:.1f} MB")
                continue
            task = progress.add_task(f"{graph}: ONNX, {build.precision[graph]}", total=1.0)
            source = workspace / f"{graph}.onnx"
            active = write_graph(build, prepared, graph, source, options)
            counted = "; ".join(f"{name} {counts}" for name, counts in active.items() if counts.weights)
            console.print(f"{graph}: quantised {counted or 'nothing'}")

            def show(share: float, phase: str, task: Any = task, graph: str = graph) -> None:
                progress.update(task, completed=share, description=f"{graph}: {phase[:40]}")

            draft = plan.with_suffix(".draft")
            made = compile_graph(compiler, source, draft, wanted[graph], settings, on_progress=show)
            draft.replace(plan)
            record.write_text(json.dumps(_record(made)), encoding="utf-8")
            progress.update(task, completed=1.0, description=f"{graph}: {made.plan_bytes / 1e6:.1f} MB")
            done[graph] = made
            peak = "" if made.peak_rss_bytes is None else f", peak memory {made.peak_rss_bytes / 1e9:.2f} GB"
            console.print(
                f"{graph}: {build.precision[graph]}, {made.layers} layers, {made.plan_bytes / 1e6:.1f} MB, "
                f"{made.seconds:.1f} s{peak}"
            )
    return done


def _record(made: CompiledGraph) -> dict[str, Any]:
    content = asdict(made)
    for name in ("inputs", "outputs"):
        content[name] = [tensor.model_dump(mode="json") for tensor in getattr(made, name)]
    return content


def _read_record(path: Path) -> CompiledGraph:
    from auroraedge.manifest import TensorSpec

    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("inputs", "outputs"):
        content[name] = tuple(TensorSpec.model_validate(tensor) for tensor in content[name])
    content["warnings"] = tuple(content["warnings"])
    return CompiledGraph(**content)


def measure_compiler(
    build: GpuBuild, workspace: Path, console: Console, *, resume: bool = False
) -> dict[str, CompiledGraph]:
    """Compiles a preset with distinct random weights: seconds, memory and plan sizes, and no package.

    Raises EngineError when this machine has no compiler for the target.
    """
    compiler = _compiler(build.target)
    prepared = prepare(build, console, workspace, resume=resume)
    return compile_all(build, prepared, workspace, console, compiler=compiler)


def _compiler(target: Target) -> str:
    compiler, reason = choose_compiler(target)
    if reason:
        raise EngineError(
            f"This machine cannot compile for {target.name}: {reason}.",
            field="--target",
            remedy="Build on the target itself, or for a target that `build.py --plan` says compiles here.",
        )
    return compiler


def build_gpu_engine(
    build: GpuBuild,
    out: Path,
    workspace: Path,
    console: Console,
    *,
    resume: bool = False,
    workspace_bytes: int | None = None,
) -> EngineManifest:
    """Compiles for the target and publishes the package; an interrupted build is continued with resume=True.

    Raises EngineError when this machine has no compiler for the target.
    """
    compiler = _compiler(build.target)
    prepared = prepare(build, console, workspace, resume=resume)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    if prepared.model is not None:
        parity_file = workspace / "parity.json"
        if not parity_file.is_file():
            check = workspace / "check"
            check.mkdir(exist_ok=True)
            parity_file.write_text(json.dumps(check_in_onnxruntime(build, prepared, check)), encoding="utf-8")
            shutil.rmtree(check)
        figures = json.loads(parity_file.read_text(encoding="utf-8"))
        write_calibration_report(build, prepared, figures, workspace / REPORT)
        console.print(steps.parity_table(figures))
    made = compile_all(build, prepared, workspace, console, compiler=compiler, workspace_bytes=workspace_bytes)
    wanted = profiles(prepared.shape, build.target, build.cache)
    with publish_package(out) as draft:
        graphs = {}
        for graph, compiled in made.items():
            shutil.copyfile(workspace / f"{graph}.plan", draft.path / f"{graph}.plan")
            graphs[graph] = GraphSpec(
                file=f"{graph}.plan", inputs=compiled.inputs, outputs=compiled.outputs, profiles=wanted[graph]
            )
        _write_tables(prepared, draft.path)
        version = next(iter(made.values())).version
        draft.description = describe(
            build,
            prepared,
            target=build.target.name,
            compiler=CompilerInfo(name=compiler, version=version),
            graphs=graphs,
            parity=figures,
            capability=build.target.compute_capability,
        )
    assert draft.manifest is not None
    return draft.manifest


def _write_tables(prepared: Prepared, folder: Path) -> None:
    assert prepared.model is not None
    assert prepared.tokenizer_file is not None and prepared.folder is not None
    steps.write_tables(prepared.model, folder, prepared.tokenizer_file, prepared.folder)
