"""The checkpoints that a model is assembled from: a SigLIP2 encoder and a Qwen2 decoder, as Hugging Face folders.

A source names its tensors as the module that will hold them does (Siglip2VisionModel, Qwen2ForCausalLM), whatever the
prefix in its file. Llama decoders without biases are Qwen2 with biases of zero: the arithmetic is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import Qwen2Config, Siglip2VisionConfig

from auroraedge.config import PATCH_SIZE
from auroraedge.errors import InvalidRequestError
from auroraedge.train.tensor_files import TensorFiles

_VISION_TYPES = ("siglip2", "siglip2_vision_model")
_PATCH_KEY = "embeddings.patch_embedding.weight"
# Of a whole Siglip2Model: the text tower, the contrastive scale, and the pooling head, which AuroraEdge has not.
_UNUSED_VISION = ("text_model.", "logit_scale", "logit_bias", "head.")
_UNUSED_DECODER = ("rotary_emb.inv_freq",)
# Entries of config.json that describe the file and not the model.
_FILE_ONLY = ("model_type", "architectures", "transformers_version", "torch_dtype", "attention_bias", "mlp_bias")


class DecoderSource(Protocol):
    """A pretrained language model. `keys`, `shape` and `read` go by the names of Qwen2ForCausalLM's state."""

    name: str
    config: Qwen2Config
    tokenizer: Tokenizer
    end_id: int | None

    def keys(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> torch.Tensor: ...


def _wrong(field: str, message: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, field=field, remedy=remedy)


def _configured(kind: type[Any], fields: dict[str, Any], field: str) -> Any:
    """A transformers configuration; its own errors name no file."""
    try:
        return kind(**fields)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise _wrong(field, f"config.json is not valid: {reason}.", "Download the file again.") from error


def read_config(folder: Path, field: str) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise _wrong(field, f"There is no {path}.", "Give the folder of a Hugging Face checkpoint.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _wrong(field, f"{path} is not JSON: {error}.", "Download the file again.") from error
    if not isinstance(content, dict):
        raise _wrong(field, f"{path} is not a model configuration.", "Download the file again.")
    return content


class VisionSource:
    """SigLIP2 NaFlex: a whole Siglip2Model (vision and text tower) or its vision part alone."""

    field = "--vision"

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        content = read_config(folder, self.field)
        kind = content.get("model_type")
        if kind not in _VISION_TYPES:
            fixed = " (fixed-resolution SigLIP; the NaFlex variant is needed)" if str(kind).startswith("siglip") else ""
            raise _wrong(
                self.field,
                f"The encoder is of type '{kind}'{fixed}, not 'siglip2'.",
                "Give a NaFlex checkpoint such as siglip2-so400m-patch16-naflex.",
            )
        fields = content.get("vision_config", {}) if kind == "siglip2" else content
        chosen = {k: v for k, v in fields.items() if k not in ("model_type", "torch_dtype")}
        self.config = _configured(Siglip2VisionConfig, chosen, self.field)
        self._check()
        self._files = TensorFiles(folder, field=self.field)
        places = [key for key in self._files.places if key.endswith(_PATCH_KEY)]
        if len(places) != 1:
            raise _wrong(
                self.field,
                f"The weights hold {len(places)} tensors named ...{_PATCH_KEY}; one is expected.",
                "Give a checkpoint with one SigLIP2 encoder.",
            )
        self._prefix = places[0].removesuffix(_PATCH_KEY)
        whole = self._prefix.removesuffix("vision_model.")
        own = [key.removeprefix(self._prefix) for key in self._files.places if key.startswith(self._prefix)]
        self._keys = [key for key in own if not key.startswith(_UNUSED_VISION)]
        self.dropped = sorted(set(self._files.places) - {self._prefix + key for key in self._keys})
        strange = [key for key in self.dropped if not key.removeprefix(self._prefix).startswith(_UNUSED_VISION)]
        strange = [key for key in strange if not key.removeprefix(whole).startswith(_UNUSED_VISION)]
        if strange:
            raise _wrong(
                self.field,
                f"{len(strange)} tensors belong to no SigLIP2 model, {strange[0]} first.",
                "Give a plain SigLIP2 checkpoint, without adapters or quantisation.",
            )

    def _check(self) -> None:
        config = self.config
        for name, found, wanted in (
            ("patch_size", config.patch_size, PATCH_SIZE),
            ("num_channels", config.num_channels, 3),
            ("hidden_act", config.hidden_act, "gelu_pytorch_tanh"),
        ):
            if found != wanted:
                raise _wrong(
                    self.field,
                    f"The encoder's {name} is {found}; AuroraEdge needs {wanted}.",
                    "Give a checkpoint such as siglip2-so400m-patch16-naflex.",
                )
        if config.hidden_size % config.num_attention_heads:
            raise _wrong(
                self.field,
                f"The encoder's hidden_size {config.hidden_size} is no multiple of its "
                f"{config.num_attention_heads} heads.",
                "Correct config.json.",
            )
        side = round(config.num_patches**0.5)
        if side * side != config.num_patches:
            raise _wrong(
                self.field,
                f"The encoder's position table has {config.num_patches} places, not a square grid.",
                "Give a checkpoint with a square position table.",
            )

    def keys(self) -> list[str]:
        return self._keys

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._prefix + name)

    def read(self, name: str) -> torch.Tensor:
        return self._files.read(self._prefix + name)


def check_decoder(config: Qwen2Config, field: str = "--llm") -> None:
    """What AuroraEdge's connectors and engines rely on. Raises InvalidRequestError naming the setting."""
    heads = config.num_attention_heads
    rope = dict(config.rope_parameters or {})
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    for name, found, wanted in (
        ("hidden_act", config.hidden_act, "silu"),
        ("rope type", rope.get("rope_type", "default"), "default"),
        ("use_sliding_window", bool(config.use_sliding_window), False),
        ("hidden_size", config.hidden_size, heads * head_dim),
    ):
        if found != wanted:
            raise _wrong(
                field, f"The decoder's {name} is {found}; AuroraEdge needs {wanted}.", "Give a Qwen2.5 checkpoint."
            )
    if heads % config.num_key_value_heads:
        raise _wrong(
            field,
            f"{heads} attention heads cannot share {config.num_key_value_heads} key/value heads.",
            "Correct config.json.",
        )


def zero_bias_names(config: Qwen2Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the biases that Qwen2 has and Llama has not."""
    width = {"q": config.num_attention_heads * config.head_dim, "k": config.num_key_value_heads * config.head_dim}
    width["v"] = width["k"]
    return {
        f"model.layers.{i}.self_attn.{part}_proj.bias": (width[part],)
        for i in range(config.num_hidden_layers)
        for part in ("q", "k", "v")
    }


class DecoderFolder:
    """Qwen2 / Qwen2.5 (or a Llama without biases) as transformers saves it."""

    field = "--llm"

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        content = read_config(folder, self.field)
        kind = content.get("model_type")
        if kind not in ("qwen2", "llama"):
            raise _wrong(
                self.field,
                f"The decoder is of type '{kind}', not 'qwen2' (Qwen2.5) or 'llama'.",
                "Give a checkpoint such as Qwen2.5-1.5B or Qwen2.5-1.5B-Instruct.",
            )
        if kind == "llama" and (content.get("attention_bias") or content.get("mlp_bias")):
            raise _wrong(
                self.field, "The Llama decoder has biases that Qwen2 has no place for.", "Give a Qwen2.5 checkpoint."
            )
        self.config = _configured(Qwen2Config, {k: v for k, v in content.items() if k not in _FILE_ONLY}, self.field)
        check_decoder(self.config)
        self.config.head_dim = self.config.hidden_size // self.config.num_attention_heads
        self._files = TensorFiles(folder, field=self.field)
        self._zeros = zero_bias_names(self.config) if kind == "llama" else {}
        keys = [key for key in self._files.places if not key.endswith(_UNUSED_DECODER)]
        if self.config.tie_word_embeddings and "lm_head.weight" in keys:
            self._check_tied()
            keys.remove("lm_head.weight")
        self._keys = [*keys, *self._zeros]
        self.tokenizer = read_tokenizer(folder, self.field)
        self.end_id = _end_id(folder, content)

    def _check_tied(self) -> None:
        """Some savers write the tied head as well; it must be the table."""
        if not torch.equal(self._files.read("lm_head.weight"), self._files.read("model.embed_tokens.weight")):
            raise _wrong(
                self.field,
                "config.json says tie_word_embeddings, but lm_head.weight differs from the embedding table.",
                "Set tie_word_embeddings to false in config.json, or give another checkpoint.",
            )

    def keys(self) -> list[str]:
        return self._keys

    def shape(self, name: str) -> tuple[int, ...]:
        return self._zeros[name] if name in self._zeros else self._files.shape(name)

    def read(self, name: str) -> torch.Tensor:
        return torch.zeros(self._zeros[name]) if name in self._zeros else self._files.read(name)


def _end_id(folder: Path, content: dict[str, Any]) -> int | None:
    """The token that ends an answer: that of generation_config.json (chat models end a turn), else config.json's."""
    path = folder / "generation_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        settings = {}
    found = settings.get("eos_token_id", content.get("eos_token_id"))
    first = found[0] if isinstance(found, list) and found else found
    return first if isinstance(first, int) else None


def read_tokenizer(folder: Path, field: str) -> Tokenizer:
    """tokenizer.json, or what transformers makes of vocab.json and merges.txt."""
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise _wrong(
            field, f"The tokenizer in {folder} cannot be read: {error}.", "Download the tokenizer again."
        ) from error
    raise _wrong(
        field,
        f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt).",
        "Download the tokenizer files of the checkpoint as well.",
    )


def check_tensors(
    field: str,
    expected: dict[str, tuple[int, ...]],
    source: VisionSource | DecoderSource,
    *,
    free_rows: Iterable[str] = (),
) -> None:
    """Every expected tensor must be there in its shape, and nothing else. free_rows: tables of any number of rows."""
    found = set(source.keys())
    missing = [name for name in expected if name not in found]
    if missing:
        raise _wrong(
            field,
            f"{len(missing)} tensors of the configured model are missing: {', '.join(missing[:3])}"
            + (", ..." if len(missing) > 3 else "."),
            "The weights and config.json must belong together; download the checkpoint completely.",
        )
    strange = sorted(found - set(expected))
    if strange:
        raise _wrong(
            field,
            f"{len(strange)} tensors have no place in the configured model: {', '.join(strange[:3])}"
            + (", ..." if len(strange) > 3 else "."),
            "The weights and config.json must belong together; adapters and quantised weights are not read.",
        )
    free = set(free_rows)
    for name, shape in expected.items():
        there = source.shape(name)
        if (there[1:] != shape[1:]) if name in free else (there != shape):
            raise _wrong(
                field,
                f"{name} has shape {list(there)} in the weights and {list(shape)} by config.json.",
                "The weights and config.json must belong together.",
            )
