"""A Llama decoder from a GGUF file (llama.cpp), dequantised tensor by tensor with the package `gguf`.

llama.cpp stores the rows of q and k so that each rotary pair lies side by side; transformers keeps the two halves of a
head apart. `_unpermuted` undoes that (llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2Config

from auroraedge.errors import InvalidRequestError
from auroraedge.train.assemble_sources import check_decoder, zero_bias_names

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_SPECIAL = 3  # GGUF token type of control tokens


def _name(gguf: str) -> str | None:
    """The Qwen2ForCausalLM name of a GGUF tensor, None for one that has no place there."""
    if gguf in _TOP:
        return _TOP[gguf]
    parts = gguf.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    return None


def _unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * d, D] from pairs side by side to halves apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


class DecoderGguf:
    """SmolLM2, Llama: architecture 'llama' with a byte-level BPE tokenizer."""

    field = "--llm"

    def __init__(self, path: Path) -> None:
        import gguf

        self.name = path.name
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise self._wrong(f"{path} is no readable GGUF file: {error}.", "Download the file again.") from error
        self._dequantise = gguf.quants.dequantize
        self._values = {key: field.contents() for key, field in reader.fields.items()}
        if self._values.get("general.architecture") != "llama":
            raise self._wrong(
                f"The GGUF file is of architecture '{self._values.get('general.architecture')}', not 'llama'.",
                "Give a Hugging Face folder of the model instead.",
            )
        self._tensors = {}
        self._strange = []
        for tensor in reader.tensors:
            name = _name(tensor.name)
            if name is None:
                self._strange.append(tensor.name)
            else:
                self._tensors[name] = tensor
        self.config = self._config()
        check_decoder(self.config)
        self._zeros = zero_bias_names(self.config)
        self.tokenizer = self._tokenizer()
        self.end_id: int | None = self._values.get("tokenizer.ggml.eos_token_id")

    def _wrong(self, message: str, remedy: str) -> InvalidRequestError:
        return InvalidRequestError(message, field=self.field, remedy=remedy)

    def _value(self, key: str) -> Any:
        if key not in self._values:
            raise self._wrong(f"The GGUF file lacks the entry {key}.", "Convert the model to GGUF again.")
        return self._values[key]

    def _config(self) -> Qwen2Config:
        heads = int(self._value("llama.attention.head_count"))
        width = int(self._value("llama.embedding_length"))
        if self._values.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in self._strange:
            raise self._wrong("The GGUF model scales its rotary positions.", "Give a model with plain RoPE.")
        return Qwen2Config(
            vocab_size=int(self._tensors["model.embed_tokens.weight"].shape[1]),
            hidden_size=width,
            num_hidden_layers=int(self._value("llama.block_count")),
            num_attention_heads=heads,
            num_key_value_heads=int(self._values.get("llama.attention.head_count_kv", heads)),
            head_dim=width // heads,
            intermediate_size=int(self._value("llama.feed_forward_length")),
            max_position_embeddings=int(self._value("llama.context_length")),
            rms_norm_eps=float(self._value("llama.attention.layer_norm_rms_epsilon")),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": float(self._values.get("llama.rope.freq_base", 10_000.0)),
            },
            tie_word_embeddings="lm_head.weight" not in self._tensors,
            bos_token_id=None,
        )

    def _tokenizer(self) -> Tokenizer:
        if self._value("tokenizer.ggml.model") != "gpt2":
            raise self._wrong(
                f"The GGUF tokenizer is of kind '{self._value('tokenizer.ggml.model')}', not byte-level BPE.",
                "Give a Hugging Face folder of the model instead.",
            )
        tokens: list[str] = self._value("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self._value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        by_kind = {
            # As llama.cpp splits text for this name (src/llama-vocab.cpp): digits one by one, then GPT-2's words.
            "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
            "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        }
        kind = self._values.get("tokenizer.ggml.pre", "gpt-2")
        if kind not in by_kind:
            raise self._wrong(
                f"The GGUF file splits text by '{kind}'; known here: {', '.join(by_kind)}.",
                "Give a Hugging Face folder of the model instead.",
            )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(by_kind[kind])
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self._value("tokenizer.ggml.token_type")
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return tokenizer

    def keys(self) -> list[str]:
        return [*self._tensors, *self._strange, *self._zeros]

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._zeros:
            return self._zeros[name]
        return tuple(int(side) for side in reversed(self._tensors[name].shape))  # GGUF counts from the fastest side

    def read(self, name: str) -> torch.Tensor:
        if name in self._zeros:
            return torch.zeros(self._zeros[name])
        tensor = self._tensors[name]
        values = np.array(self._dequantise(tensor.data, tensor.tensor_type), dtype=np.float32)  # the file is read-only
        weight = torch.from_numpy(values).reshape(self.shape(name))
        if name.endswith("self_attn.q_proj.weight"):
            return _unpermuted(weight, self.config.num_attention_heads)
        if name.endswith("self_attn.k_proj.weight"):
            return _unpermuted(weight, self.config.num_key_value_heads)
        return weight
