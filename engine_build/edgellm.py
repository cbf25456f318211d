"""The decoder for TensorRT Edge-LLM, the vendor's runtime for Jetson, by its own exporter in its own environment.

    python -m engine_build.environments edgellm      # once
    python engine_build/build.py --target orin --decoder edge-llm

The exporter (tensorrt-edgellm 0.11, ran on a CPU) turns the Hugging Face folder of the decoder into an ONNX graph whose
attention is Edge-LLM's plug-in. No other runtime computes that node, so the export is checked for what it holds:
every weight of the model, sizes, rotary base and the inputs listed in INPUTS.

Prompts that are embeddings: the graph has no table, its first input is `inputs_embeds` [tokens, D] float16. Edge-LLM's
own server fills it from embedding.safetensors by token id and takes nothing else. Two routes, see docs/engines.md: a
loop of one's own over the engine's inputs, or Edge-LLM's C++ runtime with its embedding preprocessor replaced.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console

from auroraedge.errors import EngineError
from engine_build.decoder_source import DecoderSource, rope_theta, write_qwen_folder
from engine_build.environments import Environment, make_environment
from engine_build.trtllm import BuildSizes

ENVIRONMENT = "edgellm"
ATTENTION = ("trt_edgellm", "AttentionPlugin")
# Of the exported graph, beside past_key_values_I [2, pages, 128, kv heads, head] of every layer, which are updated in
# place. T tokens of all sequences in one row, N sequences.
INPUTS = {
    "inputs_embeds": "float16 [T, D]: compressed tokens and fused prompt, or a row of embedding.safetensors",
    "rope_rotary_cos_sin": "float32 [T, head]: cosine, then sine of every token's rotary angles",
    "positions": "int32 [T]: place of every token in its sequence",
    "query_start_offsets": "int32 [N + 1]: where the tokens of each sequence begin",
    "query_lengths": "int32 [N]: new tokens",
    "past_lengths": "int32 [N]: tokens in the cache",
    "attention_sequence_lengths": "int32 [N]: their sum",
    "state_indices": "int32 [N]: row of the cache's owner",
    "execution_phase_marker": "int32: its length says whether prompts are read or tokens generated",
    "context_sequence_count_carrier": "int32: its length is the number of sequences that read a prompt",
    "kv_page_table": "int32 [N, 2, pages]: pages of each sequence's keys and values",
    "logits_indices": "int64 [N]: the token whose logits are wanted, the last of each sequence",
}
# Its runtime wants a template of chats. Prompts here are embeddings; this one passes text through.
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}\n"


def export_edgellm(
    source: DecoderSource, folder: Path, *, console: Console, environment: Environment | None = None
) -> dict[str, Any]:
    """Writes `folder`/hf (the decoder in float16) and `folder`/llm (Edge-LLM's graph and tables); returns what is
    known of it. The environment is made if there is none. Raises EngineError, MissingDependencyError."""
    environment = environment or make_environment(ENVIRONMENT, console)
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "hf"
    write_qwen_folder(source, plain)
    (plain / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    shutil.rmtree(folder / "llm", ignore_errors=True)
    log = folder / "export.log"
    environment.run([environment.program("tensorrt-edgellm-export"), plain, folder], log=log)
    facts = check_export(source, folder / "llm")
    log.unlink()
    facts["exporter"] = environment.packages["tensorrt-edgellm"]
    return facts


def check_export(source: DecoderSource, folder: Path) -> dict[str, Any]:
    """What the exported graph holds. Raises EngineError when it is not the model's decoder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        graph = onnx.load(folder / "model.onnx").graph
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder} is no export of Edge-LLM: {error}.", field="edge-llm") from error
    model = source.model
    wanted = {
        "vocab_size": model.config.vocab_size,
        "hidden_size": model.config.hidden_size,
        "num_hidden_layers": model.config.num_hidden_layers,
        "num_key_value_heads": model.config.num_key_value_heads,
        "rope_theta": rope_theta(model.config),
        "rms_norm_eps": model.config.rms_norm_eps,
    }
    for name, value in wanted.items():
        if not np.isclose(float(config.get(name) or 0.0), float(value)):
            raise EngineError(f"Edge-LLM's export has {name} {config.get(name)}, the model {value}.", field=name)
    inputs = {item.name for item in graph.input}
    if missing := sorted(set(INPUTS) - inputs):
        raise EngineError(
            f"Edge-LLM's export has no input {', '.join(missing)}.",
            field="edge-llm",
            remedy="The exporter is not the pinned one: make the environment again.",
        )
    attention = sum((node.domain, node.op_type) == ATTENTION for node in graph.node)
    if attention != model.config.num_hidden_layers:
        raise EngineError(f"{attention} attention nodes for {model.config.num_hidden_layers} layers.", field="edge-llm")
    return {
        "inputs": sorted(inputs),
        "attention_nodes": attention,
        "weights": _require_weights(source, graph),
        "rope_theta": config["rope_theta"],
    }


def _require_weights(source: DecoderSource, graph: onnx.GraphProto) -> int:
    """How many weights of the decoder the graph holds: all, in float16, as they are or turned over; else EngineError.

    Found by content, because the exporter names and stacks them as it likes.
    """
    stored: set[bytes] = set()
    for item in graph.initializer:
        array = numpy_helper.to_array(item)
        if array.size > 1:
            values = array.astype(np.float16)
            stored |= {_mark(values), _mark(values.T)}
    names = [name for name in source.model.state_dict() if "embed_tokens" not in name and not name.endswith("inv_freq")]
    lost = []
    for name in names:
        values = source.model.state_dict()[name].half().numpy()
        # Rows are looked for in place of a matrix: q, k and v may be stacked.
        if _mark(values) not in stored and not _inside(values, graph):
            lost.append(name)
    if lost:
        raise EngineError(f"{len(lost)} weights are not in Edge-LLM's export, first {lost[0]}.", field=lost[0])
    return len(names)


def _mark(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _inside(values: np.ndarray, graph: onnx.GraphProto) -> bool:
    """Whether an initializer holds the rows (or, turned over, the columns) one after the other."""
    rows = values.reshape(len(values), -1)
    for item in graph.initializer:
        array = numpy_helper.to_array(item).astype(np.float16)
        if array.ndim not in (1, 2):
            continue
        for held in (array.reshape(len(array), -1), array.T.reshape(array.shape[-1], -1)):
            if held.shape[1] != rows.shape[1] or held.shape[0] < rows.shape[0]:
                continue
            starts = np.flatnonzero((held == rows[0]).all(axis=1))
            if any(np.array_equal(held[s : s + len(rows)], rows) for s in starts):
                return True
    return False


def build_script(sizes: BuildSizes) -> str:
    """A shell script for the Jetson: the engine from the checkpoint beside it, by Edge-LLM's own builder."""
    return (
        "#!/bin/sh\n"
        "# Needs tensorrt-edgellm 0.11 on the device (JetPack 7.2). Usage: sh build.sh [ENGINE FOLDER]\n"
        "# With its C++ tools instead: llm_build --onnxDir llm --engineDir ENGINE and the same sizes.\n"
        'set -eu\nhere=$(cd "$(dirname "$0")" && pwd)\n'
        'tensorrt-edgellm-build --model-dir "$here/hf" --engine-dir "${1:-$here/engine}" \\\n'
        f"  --max-batch-size {sizes.batch} --max-input-len {sizes.prompt} --max-kv-cache-capacity {sizes.tokens}\n"
    )
