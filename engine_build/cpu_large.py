"""The build of a CPU engine for models too large to be exported whole, such as 2b: written graph by graph, weight by
weight, without calibration. Peak memory is about that of the embedding table and one layer, not of the model.

Graphs and tables lie in a workspace until the package is published, so an interrupted build goes on with --resume.
"""

from __future__ import annotations

import gc
import hashlib
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors.numpy import save_file

from auroraedge.config import IMAGE_SIZE, LOCATION_BINS, PATCH_SIZE
from auroraedge.errors import EngineError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.manifest import (
    CompilerInfo,
    DecoderSpec,
    EngineDescription,
    EngineManifest,
    publish_package,
)
from auroraedge.runtime.ort_decoder import OrtGroupQueryGraph
from auroraedge.runtime.session import OrtSession
from calib.frames import CalibrationSet, calibration_set
from engine_build.cpu_network import LM_HEAD, CpuNetwork, CpuPrecisions, write_decoder
from engine_build.gpu_graphs import GraphOptions, ModelShape, write_fusion, write_vision
from engine_build.parity import stage_parity, torch_outputs
from engine_build.steps import graph_spec, parity_table
from engine_build.streamed import streamed_model
from engine_build.targets import GRAPHS, Target
from engine_build.weight_source import WeightSource, folder_source, parameter_count, random_source

# Models with more parameters are built here, whatever the precision; their float32 graphs would exceed 2 GB.
LARGE = 400_000_000
# Steps that this builder writes; the others need the whole model at once.
WRITTEN = ("int8-dynamic", "int4")
_STATE = "build.json"
# Changed when the graphs are written differently, so that --resume takes no graph of another version.
_FORM = 1
PARITY_VIEWS = 2
# A package whose logits or visual tokens depart further from the model is a broken build, not a trade-off. Layers with
# random weights carry no signal that would stand out of the noise: there only the wiring is checked.
_LEAST_COSINE = {"int8-dynamic": 0.98, "int4": 0.85}
_LEAST_COSINE_RANDOM = {"int8-dynamic": 0.9, "int4": 0.5}
# Layers so small that quantising them gains nothing. Of raw pixels every one of the 256 levels counts.
_KEPT = frozenset({"vision_model.embeddings.patch_embedding", "grounding.out", "grounding.pool"})


def precision_for(target: Target, name: str | None, model: str, *, random_weights: bool) -> str | None:
    """The precision that is built here, None where engine_build.steps builds it. Raises EngineError."""
    chosen = name or target.default_precision
    target.precision(chosen)
    if chosen in WRITTEN:
        return chosen
    if not random_weights and parameter_count(model) <= LARGE:
        return None
    if chosen == "int8":
        return "int8-dynamic"
    raise EngineError(
        f"A model of this size is not built in {chosen} for a CPU.",
        field="--precision",
        remedy=f"Choose one of: int8, {', '.join(WRITTEN)}.",
    )


def peak_memory_gb() -> float:
    """The most memory that this process has held, in 10^9 bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9


class _Workspace:
    """Finished parts of a build, by name, as long as they are of the same weights and precision."""

    def __init__(self, folder: Path, identity: str, *, resume: bool) -> None:
        self.folder, self._identity = folder, identity
        self.done: dict[str, str] = {}
        state = folder / _STATE
        if resume and state.is_file():
            known = json.loads(state.read_text(encoding="utf-8"))
            self.done = known["done"] if known.get("identity") == identity else {}
        elif folder.exists() and any(folder.iterdir()) and not state.is_file():
            raise EngineError(f"{folder} holds something else.", field="--workspace", remedy="Name a new folder.")
        if not self.done:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def part(self, name: str, write: Callable[[], str]) -> str:
        """What `write` says of the part; it runs unless the part is there."""
        if name not in self.done:
            self.done[name] = write()
            content = {"identity": self._identity, "done": self.done}
            partial = self.folder / f"{_STATE}.partial"
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(self.folder / _STATE)
        return self.done[name]


def build_large_engine(
    target: Target,
    source: WeightSource,
    out: Path,
    *,
    precision: str,
    workspace: Path,
    places: int = 512,
    resume: bool = False,
    pack: Path | None = None,
    parity_views: int = PARITY_VIEWS,
    console: Console | None = None,
) -> EngineManifest:
    """Builds and publishes an engine package of any size; its decoder has a cache of `places` in place.

    parity_views: views on which the package is compared with the torch model, whose weights are streamed. Raises
    EngineError, also where the comparison fails.
    """
    console = console or Console()
    chosen = target.precision(precision)
    shape = ModelShape.of(source.config)
    content = (_FORM, source.sha256, sorted(chosen.items()), places, parity_views)
    space = _Workspace(workspace, hashlib.sha256(repr(content).encode()).hexdigest(), resume=resume)
    writers = _writers(space.folder, shape, source, chosen, places)
    with _steps(console) as step:
        for name, write in writers.items():
            step(name)
            console.print(f"{name}: {space.part(name, write)}")
            gc.collect()
        step("parity with the torch model")
        space.part("parity", lambda: json.dumps(_parity(space.folder, source, chosen, pack, parity_views)))
        checked = json.loads(space.done["parity"])
        least = (_LEAST_COSINE_RANDOM if source.folder is None else _LEAST_COSINE)[precision]
        _check(checked["figures"], least)
        step("publish")
        with publish_package(out) as draft:
            for path in space.folder.iterdir():
                if not path.name.startswith(_STATE):
                    shutil.move(path, draft.path / path.name)
            draft.description = EngineDescription(
                model_id=source.model_id,
                weights_sha256=source.sha256,
                target=target.name,
                compiler=CompilerInfo(name="onnxruntime", version=onnxruntime.__version__),
                precision=chosen,
                graphs={name: graph_spec(draft.path / f"{name}.onnx") for name in GRAPHS},
                decoder=_decoder_spec(shape),
                calibration_set_sha256=checked["views_sha256"],
                parity={f"engine/{tensor}": figures for tensor, figures in checked["figures"].items()},
            )
    shutil.rmtree(space.folder)
    assert draft.manifest is not None
    console.print(parity_table({"engine": checked["figures"]}))
    console.print(f"Peak memory of the build: {peak_memory_gb():.2f} GB")
    return draft.manifest


@contextmanager
def _steps(console: Console) -> Iterator[Callable[[str], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def step(text: str) -> None:
            for task in progress.task_ids:
                progress.update(task, total=1, completed=1)
            progress.add_task(text, total=None)

        yield step


def _decoder_spec(shape: ModelShape) -> DecoderSpec:
    return DecoderSpec(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden=shape.width,
        vocab=shape.vocab,
    )


def _writers(
    folder: Path, shape: ModelShape, source: WeightSource, chosen: dict[str, str], places: int
) -> dict[str, Callable[[], str]]:
    """By part of the package, what writes it and says what was done."""
    options = GraphOptions(dtype="float32", external=True, network=CpuNetwork)

    def precisions(graph: str) -> CpuPrecisions:
        return CpuPrecisions(name=chosen[graph], keep=_KEPT)

    def described(graph: str, layers: dict[str, str]) -> str:
        counts = {kind: list(layers.values()).count(kind) for kind in sorted(set(layers.values()))}
        size = sum(path.stat().st_size for path in folder.glob(f"{graph}.onnx*")) / 1e6
        return f"{', '.join(f'{count} layers in {kind}' for kind, count in counts.items())}, {size:.1f} MB"

    def vision() -> str:
        net = write_vision(folder / "vision.onnx", shape, source.weights, precisions("vision"), options)
        return described("vision", net.quantised)

    def fusion() -> str:
        net = write_fusion(folder / "fusion.onnx", shape, source.weights, precisions("fusion"), options)
        return described("fusion", net.quantised)

    def decoder() -> str:
        net = write_decoder(folder / "decoder.onnx", shape, source.weights, precisions("decoder"), places)
        assert LM_HEAD in net.quantised
        return described("decoder", net.quantised)

    def tables() -> str:
        return _write_tables(folder, source)

    return {"tables": tables, "vision": vision, "fusion": fusion, "decoder": decoder}


def _write_tables(folder: Path, source: WeightSource) -> str:
    """embeddings.safetensors (float16, which the runtime maps), processor.json, tokenizer.json, calibration.json."""
    config = source.config
    tokenizer = InspectionTokenizer.load(source.tokenizer_file)
    if tokenizer.vocab_size > config.text_config.vocab_size:
        raise EngineError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model {config.text_config.vocab_size}.",
            field="tokenizer.json",
            remedy="Take the tokenizer that the model was trained with.",
        )
    names = {
        "token_embedding": ("language_model.model.embed_tokens.weight", np.float16),
        "position_table": ("vision_model.embeddings.position_embedding.weight", np.float32),
    }
    stored = {name: source.weights(key).astype(dtype) for name, (key, dtype) in names.items()}
    save_file(stored, folder / "embeddings.safetensors")
    processor = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "location_bins": LOCATION_BINS,
        "grounding_labels": list(config.grounding_labels),
    }
    (folder / "processor.json").write_text(json.dumps(processor, indent=1), encoding="utf-8")
    shutil.copyfile(source.tokenizer_file, folder / "tokenizer.json")
    if source.folder is not None and (source.folder / "calibration.json").is_file():
        shutil.copyfile(source.folder / "calibration.json", folder / "calibration.json")
    size = sum(array.nbytes for array in stored.values()) / 1e6
    tested = " and a test tokenizer" if source.folder is None else ""
    return f"embedding table of {len(stored['token_embedding'])} tokens{tested}, {size:.1f} MB"


def _parity(
    folder: Path, source: WeightSource, chosen: dict[str, str], pack: Path | None, views: int
) -> dict[str, object]:
    """How far the written graphs are from the torch model, on a few views; and the hash of these."""
    tokenizer = InspectionTokenizer.load(source.tokenizer_file)
    frames = calibration_set(tokenizer, pack=pack, views=views)
    reference = torch_outputs(streamed_model(source), frames)
    gc.collect()
    built = _graph_outputs(folder, source, frames)
    return {
        "figures": stage_parity(built, reference, tokenizer),
        "views_sha256": frames.sha256,
    }


def _graph_outputs(folder: Path, source: WeightSource, frames: CalibrationSet) -> list[dict[str, np.ndarray]]:
    """Outputs of the three graphs by view, each fed with what the one before it made; one graph in memory at a time."""
    table = source.weights("vision_model.embeddings.position_embedding.weight")
    ones = np.ones((1, frames.patches.shape[1]), np.float32)
    outputs: list[dict[str, np.ndarray]] = []
    session = OrtSession(folder / "vision.onnx")
    for patches in frames.patches:
        outputs.append(session.run({"patches": patches[None], "position": table[None], "patch_mask": ones}))
    session = OrtSession(folder / "fusion.onnx")
    embedding = source.weights("language_model.model.embed_tokens.weight")
    for found, ids in zip(outputs, frames.prompt_ids, strict=True):
        mask = np.ones((1, len(ids)), np.float32)
        feeds = {"text": embedding[list(ids)][None], "visual": found["visual"], "patch_mask": ones, "text_mask": mask}
        found |= session.run(feeds)
    del embedding
    session = OrtSession(folder / "decoder.onnx")
    graph = OrtGroupQueryGraph(session, graph_spec(folder / "decoder.onnx"))
    for found in outputs:
        embeds = np.concatenate([found["compressed"], found["fused"]], axis=1)
        length = embeds.shape[1]
        bias = np.triu(np.full((length, length), -60000.0, np.float32), 1)[None, None]
        place = np.arange(length, dtype=np.int64)[None]
        found["logits"] = graph.step(graph.block(), embeds, place, bias, np.zeros(1, np.int64))
    return outputs


def _check(figures: dict[str, dict[str, float]], least: float) -> None:
    """Raises EngineError when the package departs from the model."""
    for tensor, found in figures.items():
        if tensor != "task" and found["cosine"] < least:
            raise EngineError(
                f"{tensor} has cosine {found['cosine']:.5f} to the model; {least} is the least.",
                field=tensor,
                remedy="Build with --precision int8, or report this with the log of the run.",
            )


def source_of(model: str, *, random_weights: bool) -> WeightSource:
    """Where the weights come from: a preset's random ones, or a folder's."""
    return random_source(model) if random_weights else folder_source(model)
