"""Build kits: all of a build that needs no device, and a script that does the rest on the device.

A kit is a folder: the quantised graphs as ONNX (the decoder in two forms: cache in place, and handed on for older
parsers), recorded inputs with golden outputs, the tables of the package, and `finish.py`, which needs nothing but the
device's own Python and TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console

from auroraedge.errors import EngineError
from auroraedge.manifest import CompilerInfo, GraphSpec, ShapeProfile, TensorSpec
from engine_build import steps
from engine_build.decoder_source import decoder_from_model
from engine_build.decoders import checkpoints_of, write_decoder
from engine_build.gpu_build import (
    REPORT,
    GpuBuild,
    Prepared,
    check_in_onnxruntime,
    describe,
    prepare,
    profiles,
    write_calibration_report,
    write_graph,
)
from engine_build.gpu_graphs import MASKED, Cache, GraphOptions, cache_names
from engine_build.plan import BUILD_FACTOR
from engine_build.targets import GRAPHS
from engine_build.trtllm import BuildSizes

FINISH = Path(__file__).resolve().parent / "finish.py"
KIT_FILE = "kit.json"
# A float16 engine against golden outputs that were computed in float32 with the same rounding of weights and inputs.
LEAST_COSINE = 0.995
_GOLDEN_TOKENS = 12

Arrays = dict[str, np.ndarray]


def _forms(graph: str) -> tuple[Cache, ...]:
    """The newest first: finishing takes the first that the device's parser reads."""
    return ("in_place", "handed_on") if graph == "decoder" else ("handed_on",)


def write_kit(
    build: GpuBuild, out: Path, console: Console, workspace: Path | None = None, *, resume: bool = False
) -> dict[str, Any]:
    """Writes the kit to `out`, a new folder (or one that holds a kit); returns kit.json. Raises EngineError.

    workspace: folder that keeps the calibration, for an interrupted build to go on with.
    """
    if out.exists() and not (out / KIT_FILE).is_file() and any(out.iterdir()):
        raise EngineError(f"{out} exists and is no build kit.", field="--out", remedy="Name a new folder.")
    prepared = prepare(build, console, workspace, resume=resume)
    if prepared.model is None or prepared.tokenizer_file is None or prepared.folder is None:
        raise EngineError("A kit needs real weights.", field="--random-weights")
    draft = out.with_name(f".{out.name}.draft")
    if draft.exists():
        shutil.rmtree(draft)
    for name in ("graphs", "golden", "tables", "check"):
        (draft / name).mkdir(parents=True)
    try:
        parity = check_in_onnxruntime(build, prepared, draft / "check")
        write_calibration_report(build, prepared, parity, draft / REPORT)
        steps.write_tables(prepared.model, draft / "tables", prepared.tokenizer_file, prepared.folder)
        shutil.copyfile(FINISH, draft / "finish.py")
        graphs: dict[str, list[dict[str, Any]]] = {}
        recorded: Arrays = {}
        for graph in GRAPHS:
            graphs[graph] = []
            for cache in _forms(graph):
                graphs[graph].append(_form(build, prepared, draft, graph, cache, recorded))
                console.print(f"{graph}, {cache}: {graphs[graph][-1]['bytes'] / 1e6:.1f} MB")
        shutil.rmtree(draft / "check")
        checkpoints = _write_checkpoints(build, prepared, draft, console)
        kit = _describe_kit(build, prepared, draft, graphs, parity, checkpoints)
        (draft / KIT_FILE).write_text(json.dumps(kit, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        draft.rename(out)
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return kit


def _write_checkpoints(build: GpuBuild, prepared: Prepared, draft: Path, console: Console) -> dict[str, str]:
    """Checkpoints of the decoder for the target's other backends, in `decoder-BACKEND`; what each is, in words."""
    backends = checkpoints_of(build.target, build.decoder)
    if not backends:
        return {}
    assert prepared.model is not None and prepared.frames is not None and prepared.tokenizer_file is not None
    name = Path(build.model).name
    source = decoder_from_model(prepared.model, prepared.frames, prepared.tokenizer_file, name=name)
    sizes = BuildSizes.of(build.target.profile, prepared.shape.compressed)
    return {
        backend: write_decoder(
            backend,
            source,
            build.precision["decoder"],
            draft / f"decoder-{backend}",
            sizes,
            console,
            keep=prepared.keep,
            make_environment=build.decoder is not None,
        )
        for backend in backends
    }


def _form(
    build: GpuBuild, prepared: Prepared, draft: Path, graph: str, cache: Cache, recorded: Arrays
) -> dict[str, Any]:
    """One form of a graph: its ONNX file for the device, and golden outputs from its float32 form."""
    name = f"{graph}.{cache}" if len(_forms(graph)) > 1 else graph
    path = draft / "graphs" / f"{name}.onnx"
    form = replace(build, cache=cache)
    write_graph(form, prepared, graph, path, form.options)
    check = draft / "check" / f"{name}.onnx"
    plain = GraphOptions(dtype="float32", cache=cache, places=form.options.places)
    write_graph(form, prepared, graph, check, plain)
    inputs = _golden_inputs(prepared, graph, form, recorded)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(check), options, providers=["CPUExecutionProvider"])
    outputs = dict(zip([item.name for item in session.get_outputs()], session.run(None, inputs), strict=True))
    recorded |= outputs
    golden = _write_golden(draft, name, inputs, outputs, in_place=cache == "in_place" and graph == "decoder")
    spec = steps.graph_spec(path)
    wanted = profiles(prepared.shape, build.target, cache)[graph]
    return {
        "name": cache if len(_forms(graph)) > 1 else "standard",
        "file": f"graphs/{path.name}",
        "bytes": path.stat().st_size,
        "profiles": {key: [list(p.minimum), list(p.optimum), list(p.maximum)] for key, p in wanted.items()},
        "spec": _spec(spec, wanted),
        "golden": golden,
    }


def _spec(spec: GraphSpec, wanted: dict[str, ShapeProfile]) -> dict[str, Any]:
    def tensors(items: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [item.model_dump(mode="json") for item in items]

    profile = {name: value.model_dump(mode="json") for name, value in wanted.items()}
    return {"inputs": tensors(spec.inputs), "outputs": tensors(spec.outputs), "profiles": profile}


def _golden_inputs(prepared: Prepared, graph: str, build: GpuBuild, recorded: Arrays) -> Arrays:
    """Inputs of one real calibration view, each graph fed with what the one before it made. float32 where float."""
    assert prepared.frames is not None
    shape, frames = prepared.shape, prepared.frames
    state = prepared.reference_state
    mask = np.ones((1, shape.patches), np.float32)
    if graph == "vision":
        position = state["vision_model.embeddings.position_embedding.weight"][None].astype(np.float32)
        return {"patches": frames.patches[:1], "position": position, "patch_mask": mask}
    ids = list(frames.prompt_ids[0])[:_GOLDEN_TOKENS]
    if graph == "fusion":
        text = state["language_model.model.embed_tokens.weight"][ids][None].astype(np.float32)
        ones = np.ones((1, len(ids)), np.float32)
        return {"text": text, "visual": recorded["visual"], "patch_mask": mask, "text_mask": ones}
    embeds = np.concatenate([recorded["compressed"], recorded["fused"]], axis=1)
    length = embeds.shape[1]
    inputs: Arrays = {"inputs_embeds": embeds, "position_ids": np.arange(length, dtype=np.int64)[None]}
    in_place = build.cache == "in_place"
    places = build.options.places if in_place else 0
    if in_place:
        bias = np.full((1, 1, length, places), MASKED, np.float32)
        bias[..., :length] = np.triu(np.full((length, length), MASKED, np.float32), 1)
        inputs |= {"attention_bias": bias, "write_index": np.zeros(1, np.int64)}
    else:
        inputs |= {"attention_mask": np.ones((1, length), np.float32)}
    empty = np.zeros((1, shape.kv_heads, places, shape.head_dim), np.float32)
    return inputs | {name: empty for name in cache_names(shape, "past")}


def _write_golden(draft: Path, name: str, inputs: Arrays, outputs: Arrays, *, in_place: bool) -> dict[str, Any]:
    """Raw little-endian files and their index. Keys and values are outputs too, but the logits speak for them."""

    def store(array: np.ndarray, file: str) -> dict[str, Any]:
        device = array.astype(np.float16) if array.dtype == np.float32 else array
        device = np.ascontiguousarray(device)
        (draft / "golden" / file).write_bytes(device.tobytes())
        about = {"file": f"golden/{file}", "dtype": str(device.dtype), "shape": list(device.shape)}
        return {**about, "bytes": device.nbytes}

    index: dict[str, Any] = {"inputs": {}, "outputs": {}}
    zeros: dict[int, str] = {}
    for key, array in inputs.items():
        shared = zeros.get(array.size) if key.startswith("past.") else None
        file = shared or f"{name}.{key}.in.bin"
        index["inputs"][key] = store(array, file)
        if key.startswith("past."):
            zeros.setdefault(array.size, file)
    for key, array in outputs.items():
        if key.startswith("present."):
            size = array.size * 2
            same = {"same_as": key.replace("present.", "past.")} if in_place else {}
            index["outputs"][key] = {"bytes": size, **same}
        else:
            index["outputs"][key] = store(array, f"{name}.{key}.out.bin")
    return index


def _describe_kit(
    build: GpuBuild,
    prepared: Prepared,
    draft: Path,
    graphs: dict[str, list[dict[str, Any]]],
    parity: dict[str, dict[str, dict[str, float]]],
    checkpoints: dict[str, str],
) -> dict[str, Any]:
    specs = {
        name: GraphSpec.model_validate(
            {"file": f"{name}.plan", **json.loads(json.dumps(forms[0]["spec"]))}, strict=False
        )
        for name, forms in graphs.items()
    }
    description = describe(
        build,
        prepared,
        target=build.target.name,
        compiler=CompilerInfo(name="tensorrt", version="10.3"),
        graphs=specs,
        parity=parity,
        capability=build.target.compute_capability,
    ).model_dump(mode="json")
    description["decoder_checkpoints"] = checkpoints
    files = {
        path.relative_to(draft).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(draft.rglob("*"))
        if path.is_file()
    }
    largest = max(form["bytes"] for forms in graphs.values() for form in forms)
    return {
        "schema_version": 1,
        "target": {
            "name": build.target.name,
            "title": build.target.title,
            "compute_capability": build.target.compute_capability,
        },
        "precision": ", ".join(f"{graph} {build.precision[graph]}" for graph in GRAPHS),
        # What the library itself takes while it builds was measured to be about a gigabyte.
        "build_bytes": int(BUILD_FACTOR * largest + 1e9),
        "least_cosine": LEAST_COSINE,
        "graphs": graphs,
        "tables": sorted(path.name for path in (draft / "tables").iterdir()),
        "description": description,
        "files": files,
    }
