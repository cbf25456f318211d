"""`auroraedge train --recipe 2b --estimate`: memory and time of every stage, from parameter counts and operations.

Estimates, not measurements: nothing here was run on a GPU. What goes in:

    weights      4 bytes a parameter; gradient and two moments (12 bytes) for what a stage trains; with FSDP over n
                 processes a share of 1/n each, and once the largest group unsharded in 2 bytes (the root: embedding
                 table and connectors)
    activations  with gradient checkpointing one input of each layer that has a backward pass in 2 bytes, one layer in
                 full, and the logits of the answer tokens (float32, four times: logits, softmax, gradient, cast)
    operations   model.flops over the positions of a sample; a backward pass costs two forward passes where weights are
                 trained and one where only activations need it; checkpointing adds one forward pass of what has a
                 backward pass
    time         operations / (processes x peak x utilisation)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rich.table import Table

from auroraedge.config import PRESETS, ModelPreset
from auroraedge.errors import InvalidRequestError
from auroraedge.model.flops import auroraedge_shape
from auroraedge.model.summary import preset_counts
from auroraedge.train.scale_settings import ScaleRecipe, ScaleStage

# Dense bfloat16 tensor-core peak in TFLOP/s and memory in GB, from the makers' data sheets.
GPUS = {
    "a100-40": (312.0, 40.0),
    "a100": (312.0, 80.0),
    "h100": (989.0, 80.0),
    "h200": (989.0, 141.0),
    "l40s": (362.0, 48.0),
}
UTILISATION = 0.35
# What a sample holds on average: tokens of a prompt and of an answer, and exchanges about an image.
TEXT = {"captions": (12, 24, 1.0), "questions": (40, 60, 3.0), "detailed": (40, 160, 1.5)}
_TYPICAL = (40, 80, 2.0)
_LOGIT_COPIES = 4
# Bytes that a whole layer keeps by position and width, attention recomputed (Korthikanti 2022, arXiv 2205.05198).
_LAYER_BYTES = 34


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """Of one stage. Bytes of one process at its largest; operations of all samples; hours of the stage."""

    stage: str
    steps: int
    samples: int
    weight_bytes: float
    activation_bytes: float
    flops_per_sample: float
    hours: float

    @property
    def memory_bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes


@cache
def _counts(preset: str) -> dict[str, int]:
    return preset_counts(preset)


def _text(stage: ScaleStage) -> tuple[float, float, float]:
    """Mean prompt tokens, answer tokens and exchanges of a sample under the stage's mix and limits."""
    total = sum(stage.mix.values())
    kinds = [(weight / total, TEXT.get(name, _TYPICAL)) for name, weight in stage.mix.items()]
    prompt = sum(w * min(k[0], stage.max_prompt_tokens) for w, k in kinds)
    answer = sum(w * min(k[1], stage.max_answer_tokens) for w, k in kinds)
    return prompt, answer, sum(w * min(k[2], stage.max_exchanges) for w, k in kinds)


def training_flops(preset: ModelPreset, stage: ScaleStage, *, checkpointing: bool) -> float:
    """Operations of one sample: an image, and its exchanges."""
    prompt, answer, exchanges = _text(stage)
    shape = auroraedge_shape(preset)
    connectors = shape.connector(round(prompt))
    image = connectors["projector"] + connectors["compressor"]
    fusion = connectors.get("fusion", 0)
    positions = preset.num_compressed + round(prompt + answer)
    # prefill counts the head once; training applies it to every answer token.
    head = 2 * preset.text_hidden * preset.vocab_size
    decoder = shape.decoder.prefill(positions) - head + head * answer
    again = 1 if checkpointing else 0
    backward = 2 if "decoder" in stage.learning_rate else 1
    encoder = 3 + again if "encoder" in stage.learning_rate else 1
    return (
        shape.encoder.flops * encoder
        + image * 3
        + exchanges * (fusion * (3 + again) + decoder * (1 + backward + again))
    )


def estimate_stage(
    preset: ModelPreset, stage: ScaleStage, *, gpus: int, gpu: str, sharded: bool, checkpointing: bool
) -> StageEstimate:
    """One stage on `gpus` of kind `gpu` (GPUS)."""
    counts = _counts(preset.name)
    parts = {
        "encoder": counts["vision_model"],
        "connectors": counts["projector"] + counts["compressor"] + counts["fusion"],
        "decoder": counts["language_model"],
    }
    everything = sum(parts.values())
    trained = sum(parts[part] for part in stage.learning_rate)
    share = gpus if sharded else 1
    table = preset.vocab_size * preset.text_hidden
    unsharded = 2 * (table + parts["connectors"]) if sharded and gpus > 1 else 2 * everything  # bf16 copies
    weights = (4 * everything + 12 * trained) / share + unsharded
    prompt, answer, exchanges = _text(stage)
    views = min(stage.micro_batch, stage.batch_size // gpus)
    rows = views * exchanges
    longest = preset.num_compressed + prompt + answer
    decoder_layer = rows * longest * preset.text_hidden * 2
    encoder_layer = views * preset.num_patches * preset.vision_hidden * 2
    depth = preset.text_layers + preset.fusion_layers
    kept = decoder_layer * depth + (encoder_layer * preset.vision_layers if "encoder" in stage.learning_rate else 0)
    whole = max(decoder_layer, encoder_layer) * _LAYER_BYTES / 2
    if not checkpointing:
        kept *= _LAYER_BYTES / 2
    logits = rows * answer * preset.vocab_size * 4 * _LOGIT_COPIES
    flops = training_flops(preset, stage, checkpointing=checkpointing)
    samples = stage.steps * stage.batch_size
    return StageEstimate(
        stage=stage.name,
        steps=stage.steps,
        samples=samples,
        weight_bytes=weights,
        activation_bytes=kept + whole + logits,
        flops_per_sample=flops,
        hours=flops * samples / (gpus * GPUS[gpu][0] * 1e12 * UTILISATION) / 3600,
    )


def estimate(recipe: ScaleRecipe, *, gpus: int = 8, gpu: str = "h100", preset: str = "2b") -> list[StageEstimate]:
    """Every stage of a recipe. Raises InvalidRequestError for an unknown GPU, TrainingError for a batch that does not
    divide."""
    if gpu not in GPUS:
        raise InvalidRequestError(f"There is no GPU '{gpu}'.", field="--gpu", remedy=f"Known: {', '.join(GPUS)}.")
    recipe.check_processes(gpus)
    run = recipe.run
    return [
        estimate_stage(
            PRESETS[preset],
            stage,
            gpus=gpus,
            gpu=gpu,
            sharded=run.shard == "fsdp",
            checkpointing=run.gradient_checkpointing,
        )
        for stage in recipe.stages
    ]


def estimate_table(recipe: ScaleRecipe, *, gpus: int, gpu: str) -> Table:
    """The estimates for people."""
    peak, memory = GPUS.get(gpu, (0.0, 0.0))
    found = estimate(recipe, gpus=gpus, gpu=gpu)
    table = Table(title=f"Estimates, not measured: {recipe.run.name} on {gpus} x {gpu} ({memory:g} GB)")
    for column in (
        "stage",
        "updates",
        "weights, gradients, moments",
        "activations",
        "GPU memory",
        "TFLOP an image",
        "hours",
    ):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in found:
        table.add_row(
            stage.stage,
            f"{stage.steps:,}",
            f"{stage.weight_bytes / 1e9:.1f} GB",
            f"{stage.activation_bytes / 1e9:.1f} GB",
            f"{stage.memory_bytes / 1e9:.1f} GB" + ("" if stage.memory_bytes < memory * 0.9e9 else " (too much)"),
            f"{stage.flops_per_sample / 1e12:.1f}",
            f"{stage.hours:.1f}",
        )
    table.add_row("all", "", "", "", "", "", f"{sum(s.hours for s in found):.1f}", style="bold")
    table.caption = (
        f"{UTILISATION:.0%} of {peak:g} TFLOP/s each, dense bfloat16; images of average length: "
        + ", ".join(f"{name} {p} + {a} tokens x {e:g}" for name, (p, a, e) in TEXT.items())
    )
    return table
