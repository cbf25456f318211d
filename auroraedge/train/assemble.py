"""`auroraedge assemble`: one AuroraEdge model from a pretrained SigLIP2 encoder and a pretrained Qwen2 decoder.

Tensors pass through one by one, so memory holds the largest of them (the embedding table) and no model. The connectors
are new. They start so that the decoder's knowledge is of use from the first step: the fusion adds nothing to the
prompt yet (its output projections are 0, so F = T), and the compressed tokens have the size of the decoder's own
embeddings.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Tokenizer
from torch import nn

from auroraedge import __version__
from auroraedge.config import GRID, PRESETS
from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.tokenizer import EOS, SPECIAL_TOKENS, InspectionTokenizer
from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.assemble_sources import DecoderFolder, DecoderSource, VisionSource, check_tensors
from auroraedge.train.initialise import ordered_location_embeddings
from auroraedge.train.tensor_files import TensorPlan, write_model_files

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TABLE = "language_model.model.embed_tokens.weight"
_HEAD = "language_model.lm_head.weight"
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
# Size of what sets a new token apart from the mean of the table, in standard deviations of the table. A row near the
# mean takes next to no probability from the old ones (Hewitt 2021, "Initializing New Word Embeddings").
_APART = 0.1


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What was assembled; also written to assembly.json. Sizes in tensors, tokens and bytes."""

    vision: str
    llm: str
    preset: str
    dtype: str
    parameters: int
    bytes: int
    files: tuple[str, ...]
    positions: tuple[int, int]
    vocabulary: int
    table_rows: tuple[int, int]
    new_tokens: int
    end_token: str | None
    dropped_vision_tensors: int
    seed: int
    auroraedge: str = __version__


def open_decoder(path: Path) -> DecoderSource:
    """A Hugging Face folder, or a GGUF file of the Llama architecture."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InvalidRequestError(
                f"{path} is a file, and not a GGUF file.", field="--llm", remedy="Give a checkpoint folder."
            )
        from auroraedge.train.assemble_gguf import DecoderGguf

        return DecoderGguf(path)
    return DecoderFolder(path)


def extended_tokenizer(source: DecoderSource) -> tuple[Tokenizer, list[str]]:
    """A copy of the decoder's tokenizer that has the tokens of the answer grammar, and those that are new."""
    tokenizer = Tokenizer.from_str(source.tokenizer.to_str())
    rows = source.shape("model.embed_tokens.weight")[0]
    last = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if last >= rows:
        raise InvalidRequestError(
            f"The tokenizer has token ids up to {last}, the embedding table {rows} rows.",
            field="--llm",
            remedy="Tokenizer and weights must belong together.",
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    new = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer, new


@torch.no_grad()
def extended_table(
    table: torch.Tensor, tokenizer: Tokenizer, new: list[str], rows: int, end_id: int | None, seed: int
) -> torch.Tensor:
    """[rows, D] float32: the old rows, and the new tokens near their mean.

    Location tokens lie in order (train.initialise), the verdicts apart from each other, and <eos> is a copy of the
    decoder's own end token, so that it ends an answer where the decoder used to.
    """
    known = len(set(tokenizer.get_vocab(with_added_tokens=True).values())) - len(new)
    old = table[:known].float()
    grown = torch.zeros(rows, table.shape[1])
    grown[: len(table)] = table.float()
    mean, deviation = old.mean(0), float(old.std())
    ids = torch.tensor([tokenizer.token_to_id(token) for token in new], dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    apart = nn.Embedding(len(new), table.shape[1])
    apart.weight.copy_(torch.randn(apart.weight.shape, generator=generator) * deviation * _APART)
    places = torch.tensor([i for i, token in enumerate(new) if token.startswith("<loc")], dtype=torch.long)
    if len(places):
        ordered_location_embeddings(apart, places.numpy(), deviation * _APART)
    grown[ids] = mean + apart.weight
    # Rows that no token has, beyond the table of the source.
    grown[len(table) :][~torch.isin(torch.arange(len(table), rows), ids)] = mean
    if end_id is not None and EOS in new and end_id < known:
        grown[tokenizer.token_to_id(EOS)] = old[end_id]
    return grown


@torch.no_grad()
def resized_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """[side * side, E] from a square position table of another size, as SigLIP2 itself resizes it for an image."""
    old = round(len(table) ** 0.5)
    if old == side:
        return table
    grid = table.float().T.reshape(1, -1, old, old)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return grid[0].flatten(1).T


@torch.no_grad()
def fresh_connectors(config: AuroraEdgeConfig, table_rms: float, seed: int) -> dict[str, torch.Tensor]:
    """New projector, compressor, fusion and, where the configuration has labels, grounding head, by name."""
    small = AuroraEdgeConfig.from_dict(config.to_dict())
    small.vision_config.num_hidden_layers = 0
    small.text_config.num_hidden_layers = small.text_config.vocab_size = 1
    small.text_config.layer_types = small.text_config.layer_types[:1]
    small.text_config.eos_token_id = small.text_config.pad_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AuroraEdgeForConditionalGeneration(small)
    model.compressor.norm.weight.fill_(table_rms)
    for module in (model.fusion.cross, *(layer.self_attn for layer in model.fusion.layers)):
        if module is not None:
            module.o_proj.weight.zero_()
    for layer in model.fusion.layers:
        layer.mlp.down_proj.weight.zero_()
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("vision_model.", "language_model."))
    }


def _config(
    vision: VisionSource, llm: DecoderSource, tokenizer: InspectionTokenizer, rows: int, labels: tuple[str, ...]
) -> AuroraEdgeConfig:
    paper = PRESETS["2b"]
    encoder = {**vision.config.to_dict(), "num_patches": GRID * GRID, "vision_use_head": False, "dtype": None}
    text = llm.config.to_dict()
    text |= {
        "vocab_size": rows,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": None,
        "dtype": None,
    }
    config = AuroraEdgeConfig(
        vision_config=encoder,
        text_config=text,
        num_compressed=paper.num_compressed,
        compressor_hidden=paper.compressor_hidden,
        fusion=paper.fusion,
        fusion_layers=paper.fusion_layers,
        grounding_labels=labels,
    )
    config.preset = "2b" if not size_differences(config) else ""
    config.architectures = ["AuroraEdgeForConditionalGeneration"]
    return config


def size_differences(config: AuroraEdgeConfig) -> list[str]:
    """In what the sizes differ from the preset `2b`, in words; none for the paper's two checkpoints."""
    paper, vision, text = PRESETS["2b"], config.vision_config, config.text_config
    pairs = {
        "vision hidden_size": (vision.hidden_size, paper.vision_hidden),
        "vision layers": (vision.num_hidden_layers, paper.vision_layers),
        "vision heads": (vision.num_attention_heads, paper.vision_heads),
        "vision intermediate_size": (vision.intermediate_size, paper.vision_intermediate),
        "decoder hidden_size": (text.hidden_size, paper.text_hidden),
        "decoder layers": (text.num_hidden_layers, paper.text_layers),
        "decoder heads": (text.num_attention_heads, paper.text_heads),
        "decoder key/value heads": (text.num_key_value_heads, paper.text_kv_heads),
        "decoder intermediate_size": (text.intermediate_size, paper.text_intermediate),
        "decoder rope_theta": (text.rope_parameters["rope_theta"], paper.rope_theta),
    }
    return [f"{name} {found} (2b: {wanted})" for name, (found, wanted) in pairs.items() if found != wanted]


def parse_size(text: str) -> int:
    """Bytes of '5GB', '500MB' (powers of ten)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2].strip(), text[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError):
        size = 0
    if size <= 0:
        raise InvalidRequestError(f"'{text}' is no size.", field="--max-shard-size", remedy="Write 5GB or 500MB.")
    return size


def assemble(
    vision: Path,
    llm: Path,
    out: Path,
    *,
    dtype: str = "bf16",
    max_shard_size: str = "5GB",
    labels: tuple[str, ...] = (),
    seed: int = 0,
    console: Console | None = None,
) -> Assembly:
    """Writes the model folder `out`: safetensors, config.json, tokenizer.json, assembly.json. All of it or nothing.

    labels: defects of a grounding head, which is ours and not the paper's; none by default. The encoder's position
    table is resized to 16 x 16 places where it has others. Raises InvalidRequestError naming option and tensor.
    """
    console = console or Console()
    if dtype not in DTYPES:
        raise InvalidRequestError(f"There is no dtype '{dtype}'.", field="--dtype", remedy=f"Use {', '.join(DTYPES)}.")
    limit = parse_size(max_shard_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequestError(f"{out} exists and is not an empty folder.", field="--out", remedy="Name a new one.")
    encoder, decoder = VisionSource(vision), open_decoder(llm)
    tokenizer, new = extended_tokenizer(decoder)
    inspection = InspectionTokenizer(tokenizer)
    source_rows = decoder.shape("model.embed_tokens.weight")[0]
    rows = max(source_rows, -(-inspection.vocab_size // 64) * 64)
    config = _config(encoder, decoder, inspection, rows, labels)
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in AuroraEdgeForConditionalGeneration(config).state_dict().items()}
    if config.text_config.tie_word_embeddings:
        shapes.pop(_HEAD)

    def part(prefix: str) -> dict[str, tuple[int, ...]]:
        return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}

    check_tensors("--vision", part("vision_model."), encoder, free_rows=["embeddings.position_embedding.weight"])
    check_tensors("--llm", part("language_model."), decoder, free_rows=["model.embed_tokens.weight", "lm_head.weight"])
    places = encoder.shape("embeddings.position_embedding.weight")[0]
    plan = [TensorPlan(name=n, shape=s, dtype=DTYPES[dtype]) for n, s in shapes.items()]
    total = sum(entry.size for entry in plan)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < total * 1.01:
        raise InvalidRequestError(
            f"The model takes {total / 1e9:.1f} GB and {out.parent} has {free / 1e9:.1f} GB free.",
            field="--out",
            remedy="Free disk space, or name another folder.",
        )
    table_rms = _rms(decoder)
    connectors = fresh_connectors(config, table_rms, seed)

    def tensor(name: str) -> torch.Tensor:
        if name in connectors:
            return connectors[name]
        if name == _POSITIONS:
            return resized_positions(encoder.read(name.removeprefix("vision_model.")), GRID)
        if name.startswith("vision_model."):
            return encoder.read(name.removeprefix("vision_model."))
        found = decoder.read(name.removeprefix("language_model."))
        if name in (_TABLE, _HEAD):
            return extended_table(found, tokenizer, new, rows, decoder.end_id, seed)
        return found

    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("assembling", total=total)

            def tensors() -> Iterator[torch.Tensor]:
                for entry in plan:
                    yield _finite(tensor(entry.name), entry)
                    bar.advance(task, entry.size)

            files = write_model_files(draft, plan, limit, tensors())
        config.dtype = DTYPES[dtype]
        config.save_pretrained(draft)
        (draft / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
        assembly = Assembly(
            vision=encoder.name,
            llm=decoder.name,
            preset=config.preset,
            dtype=dtype,
            parameters=sum(math.prod(entry.shape) for entry in plan),
            bytes=total,
            files=tuple(file.name for file in files),
            positions=(places, GRID * GRID),
            vocabulary=inspection.vocab_size,
            table_rows=(source_rows, rows),
            new_tokens=len(new),
            end_token=None if decoder.end_id is None else tokenizer.id_to_token(decoder.end_id),
            dropped_vision_tensors=len(encoder.dropped),
            seed=seed,
        )
        (draft / "assembly.json").write_text(json.dumps(asdict(assembly), indent=1), encoding="utf-8")
        draft.chmod(0o755)  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _say(console, out, assembly, config)
    return assembly


def _rms(decoder: DecoderSource) -> float:
    """Root mean square of the decoder's embeddings, from its first thousands of rows."""
    return float(decoder.read("model.embed_tokens.weight")[:4096].float().pow(2).mean().sqrt())


def _finite(tensor: torch.Tensor, entry: TensorPlan) -> torch.Tensor:
    """The tensor in the dtype of the plan. Raises InvalidRequestError where that overflows or is not a number."""
    cast = tensor.to(entry.dtype)
    if not torch.isfinite(cast).all():
        field = "--vision" if entry.name.startswith("vision_model.") else "--llm"
        raise InvalidRequestError(
            f"{entry.name} holds values that are not finite in {entry.dtype}.",
            field=field,
            remedy="Use --dtype bf16, or download the checkpoint again.",
        )
    return cast


def _say(console: Console, out: Path, done: Assembly, config: AuroraEdgeConfig) -> None:
    console.print(
        f"{out}: {done.parameters / 1e6:,.1f} M parameters, {done.bytes / 1e9:.2f} GB in {len(done.files)} file(s); "
        f"{done.new_tokens} new tokens in {done.table_rows[1]:,} rows (before: {done.table_rows[0]:,})"
    )
    if done.positions[0] != done.positions[1]:
        console.print(f"position table resized from {done.positions[0]} to {done.positions[1]} places")
    differences = size_differences(config)
    if differences:
        console.print("Not the sizes of 2b: " + "; ".join(differences))
