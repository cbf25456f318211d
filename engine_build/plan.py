"""What a build will need, before it is started: weights, cache and build memory against the target's budget.

All byte counts are estimates from the real modules' shapes (on the meta device, without memory). Build memory is 3.4
times the weights of the largest graph, the upper end of what was measured with tensorrt_rtx 1.7 (docs/verification.md).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from auroraedge.config import PRESETS
from auroraedge.errors import EngineError
from engine_build.targets import EIGHT_BIT_ACTIVATIONS, GRAPHS, WEIGHT_BITS, Compiler, Target

BUILD_FACTOR = 3.4
# What tensorrt_rtx 1.7 compiles for without a GPU (its ComputeCapability).
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True, kw_only=True)
class GraphSize:
    """Parameters of one graph. linear: weights of its linear layers, without the LM head; other: biases, norms.

    wide: of `linear`, those of decoder_source.wide_layers.
    """

    linear: int
    other: int
    lm_head: int = 0
    wide: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a model that memory follows from. vision: (patches, width, MLP width); text likewise without patches."""

    name: str
    graphs: dict[str, GraphSize]
    embedding: int
    vision: tuple[int, int, int]
    text: tuple[int, int]
    compressed: int
    vocab: int
    cache_per_token: int  # values of keys and values of one place, all layers


def model_size(name: str) -> ModelSize:
    """Sizes of a preset, or of a folder with the config.json of a model. Raises EngineError."""
    import torch

    from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration

    path = Path(name)
    if name in PRESETS:
        folder = Path(__file__).resolve().parents[1] / "models" / name
        config = AuroraEdgeConfig.from_pretrained(folder) if folder.is_dir() else AuroraEdgeConfig.from_preset(name)
    elif (path / "config.json").is_file():
        config = AuroraEdgeConfig.from_pretrained(path)
    else:
        raise EngineError(
            f"There is no model '{name}'.",
            field="--model",
            remedy=f"Give one of {', '.join(PRESETS)}, or a folder with config.json and model.safetensors.",
        )
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(config)
    text = config.text_config
    parts = {
        "vision": [model.vision_model, model.projector, model.compressor, model.grounding],
        "fusion": [model.fusion],
        "decoder": [model.language_model.model.layers, model.language_model.model.norm],
    }
    graphs = {}
    for graph, modules in parts.items():
        linear = total = 0
        for module in modules:
            if module is None:
                continue
            total += sum(p.numel() for p in module.parameters())
            linear += sum(m.weight.numel() for m in module.modules() if isinstance(m, torch.nn.Linear))
        if graph == "vision":
            linear += model.compressor.w1.numel() + model.compressor.w2.numel()
        graphs[graph] = GraphSize(linear=linear, other=total - linear)
    graphs["decoder"] = replace(
        graphs["decoder"],
        lm_head=text.vocab_size * text.hidden_size,
        wide=text.num_hidden_layers * text.intermediate_size * text.hidden_size,
    )
    vision = config.vision_config
    return ModelSize(
        name=name,
        graphs=graphs,
        embedding=text.vocab_size * text.hidden_size,
        vision=(vision.num_patches, vision.hidden_size, vision.intermediate_size),
        text=(text.hidden_size, text.intermediate_size),
        compressed=config.num_compressed,
        vocab=text.vocab_size,
        cache_per_token=2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim,
    )


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """One graph on a target, in bytes."""

    graph: str
    precision: str
    compiler: str
    here: str  # "" when this machine can compile it, else why not
    weights: float
    activations: float
    build: float


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """A whole engine on a target, in bytes."""

    target: Target
    model: str
    precision: str
    decoder: str
    graphs: tuple[GraphPlan, ...]
    embedding: float
    cache: float

    @property
    def running(self) -> float:
        """Memory of the running engine: all weights, tables and caches, and the largest activations."""
        weights = sum(graph.weights for graph in self.graphs)
        return weights + self.embedding + self.cache + max(graph.activations for graph in self.graphs)

    @property
    def building(self) -> float:
        return max(graph.build for graph in self.graphs)

    @property
    def fits(self) -> bool:
        return self.running <= self.target.budget_bytes

    @property
    def builds_on_target(self) -> bool:
        return self.building <= self.target.budget_bytes


def can_compile_here(target: Target, compiler: Compiler) -> str:
    """Why this machine cannot compile for the target with `compiler`; "" when it can."""
    if importlib.util.find_spec(compiler) is None:
        return f"{compiler} is not installed"
    if compiler == "onnxruntime":
        return ""
    if compiler == "tensorrt_rtx":
        if target.compute_capability not in RTX_CAPABILITIES:
            return f"tensorrt_rtx does not compile for {target.compute_capability}"
        return ""
    found = gpu_capabilities()
    if target.compute_capability not in found:
        return f"no GPU of compute capability {target.compute_capability} (found: {', '.join(found) or 'none'})"
    return ""


def gpu_capabilities() -> list[str]:
    """Compute capabilities of this machine's GPUs as nvidia-smi says; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [line.strip() for line in lines if line.strip()]


def choose_compiler(target: Target) -> tuple[Compiler, str]:
    """The first compiler of the target that works here with ""; else the preferred one and why it does not."""
    for compiler in target.compilers:
        if not can_compile_here(target, compiler):
            return compiler, ""
    return target.compilers[0], can_compile_here(target, target.compilers[0])


def plan_build(target: Target, size: ModelSize, precision: str | None = None, decoder: str | None = None) -> BuildPlan:
    """The plan of one engine. Raises EngineError for a precision or decoder that the target does not offer."""
    chosen = target.precision(precision)
    compiler, here = choose_compiler(target)
    plain = 4.0 if target.kind == "cpu" else 2.0
    most = target.profile.batch[2]
    graphs = []
    for name in GRAPHS:
        graph, bits = size.graphs[name], WEIGHT_BITS[chosen[name]]
        wide = head = bits
        if target.kind == "cpu":
            head = max(bits, 8)
        elif chosen[name] in EIGHT_BIT_ACTIVATIONS:
            wide = head = 8 * plain
        narrow = graph.linear - graph.wide
        weights = (narrow * bits + graph.wide * wide + graph.lm_head * head) / 8 + graph.other * plain
        graphs.append(
            GraphPlan(
                graph=name,
                precision=chosen[name],
                compiler=compiler,
                here=here,
                weights=weights,
                activations=plain * most * _values_alive(name, size, target),
                build=BUILD_FACTOR * weights,
            )
        )
    return BuildPlan(
        target=target,
        model=size.name,
        precision=precision or target.default_precision,
        decoder=target.decoder_backend(decoder),
        graphs=tuple(graphs),
        embedding=size.embedding * 2.0,
        cache=plain * most * target.profile.most_tokens * size.cache_per_token,
    )


def _values_alive(graph: str, size: ModelSize, target: Target) -> int:
    """Values of one sequence that are alive together: hidden states twice, and q, k, v or the MLP's middle."""
    if graph == "vision":
        patches, width, middle = size.vision
        return patches * (2 * width + max(3 * width, middle))
    width, middle = size.text
    prompt = target.profile.prompt[2]
    if graph == "fusion":
        return prompt * (2 * width + 2 * middle) + size.vision[0] * 3 * width
    return (prompt + size.compressed) * (2 * width + 2 * middle) + 2 * size.vocab


def plan_table(plan: BuildPlan) -> Table:
    """A table for people: one row a graph, then the sums against the budget."""
    target, most = plan.target, plan.target.profile
    where = target.compute_capability or "no GPU"
    table = Table(title=f"{plan.model} for {target.title} ({where}), precision {plan.precision}")
    for column in ("", "precision", "weights", "activations", "to build"):
        table.add_column(column, justify="right" if column in ("weights", "activations", "to build") else "left")
    for graph in plan.graphs:
        amounts = (_size(graph.weights), _size(graph.activations), _size(graph.build))
        table.add_row(graph.graph, graph.precision, *amounts)
    table.add_row("token embedding", "fp16", _size(plan.embedding), "", "")
    cache = f"key/value cache, {most.batch[2]} x {most.most_tokens}"
    table.add_row(cache, "fp32" if target.kind == "cpu" else "fp16", "", _size(plan.cache), "")
    table.add_section()
    table.add_row("running, all graphs", "", _size(plan.running), _verdict(plan.fits), "")
    table.add_row("building, largest graph", "", "", _verdict(plan.builds_on_target), _size(plan.building))
    table.caption = _advice(plan)
    table.caption_justify = "left"
    return table


def _verdict(fits: bool) -> str:
    return "[green]fits[/green]" if fits else "[red]does not fit[/red]"


def _advice(plan: BuildPlan) -> str:
    target, first = plan.target, plan.graphs[0]
    lines = [f"Estimates. Budget: {_size(target.budget_bytes)} of {target.memory_gb:g} GB. Decoder: {plan.decoder}."]
    if target.lm_head_parts > 1:
        lines.append(f"The LM head is split into {target.lm_head_parts} parts along the vocabulary.")
    if first.here:
        lines.append(f"Cannot compile here with {first.compiler}: {first.here}.")
    else:
        lines.append(f"Compiles here with {first.compiler}.")
    if not plan.fits:
        smaller = [name for name in target.precisions if name != plan.precision]
        lines.append(f"Take another precision ({', '.join(smaller) or 'none is left'}) or a smaller profile.")
    if not plan.builds_on_target:
        lines.append("The build itself needs more than the target has: add swap, or build where there is memory.")
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def plan_json(plan: BuildPlan) -> str:
    """The plan for programs; sizes in bytes."""
    graphs = [vars(graph) for graph in plan.graphs]
    content = {
        "target": plan.target.name,
        "model": plan.model,
        "precision": plan.precision,
        "decoder": plan.decoder,
        "graphs": graphs,
        "embedding": plan.embedding,
        "cache": plan.cache,
        "running": plan.running,
        "building": plan.building,
        "budget": plan.target.budget_bytes,
        "fits": plan.fits,
        "builds_on_target": plan.builds_on_target,
    }
    return json.dumps(content, indent=1)
