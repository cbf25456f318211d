"""The decoder for TensorRT-LLM's PyTorch backend (1.2 and newer, the only one from 1.3 on), as a model out of its tree.

    import trtllm_model                      # registers the model and its input processor
    llm = LLM(model="decoder", backend="pytorch", kv_cache_config=KvCacheConfig(enable_block_reuse=False))
    llm.generate([trtllm_model.request(embeds)], SamplingParams(max_tokens=64, end_id=488))

"decoder" is the Hugging Face folder that lies beside this file in a build kit. A prompt is handed over whole as
`multi_modal_embeddings`; each of its places is the id vocab_size + 1, which the model replaces by the embedding. The
same file serves `trtllm-serve` and `trtllm-bench` through --custom_module_dirs.

The API it uses: tensorrt_llm._torch.models.modeling_utils.register_auto_model and tensorrt_llm.inputs (
register_input_processor, BaseMultimodalInputProcessor). NOT RUN ON HARDWARE.
"""

from __future__ import annotations

import torch
from tensorrt_llm._torch.models.modeling_multimodal_utils import fuse_input_embeds
from tensorrt_llm._torch.models.modeling_qwen import Qwen2ForCausalLM
from tensorrt_llm._torch.models.modeling_utils import register_auto_model
from tensorrt_llm.inputs import MultimodalPlaceholderMetadata, register_input_processor
from tensorrt_llm.inputs.registry import BaseMultimodalInputProcessor

ARCHITECTURE = "AuroraEdgeDecoderForCausalLM"
_MODALITY = "image"


def request(embeds: torch.Tensor) -> dict:
    """One request of `LLM.generate`. embeds [S, D] float16: compressed tokens, then the fused prompt."""
    # The text is never read; without one the request would be taken for token ids.
    return {"prompt": "-", "multi_modal_embeddings": {_MODALITY: [embeds]}}


class EmbeddedPrompt(BaseMultimodalInputProcessor):
    """Token ids of a prompt of embeddings: as many ids beyond the vocabulary as there are rows."""

    @property
    def processor(self):
        return None

    @property
    def tokenizer(self):
        return self._tokenizer

    @property
    def config(self):
        return self._config

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16

    def get_vocab_size(self) -> int:
        return int(self._config.vocab_size)

    def attach_multimodal_embeddings(self, inputs, multimodal_embedding, sampling_params):
        """-> (ids [S], what the model's forward gets). Older versions call this, newer ones the one below."""
        return self._attach_multimodal_embeddings_impl(inputs, multimodal_embedding, sampling_params)

    def _attach_multimodal_embeddings_impl(self, inputs, multimodal_embedding, sampling_params):
        embeds = torch.cat(list(multimodal_embedding[_MODALITY]), dim=0)
        if embeds.dim() != 2 or embeds.shape[1] != self._config.hidden_size:
            raise ValueError(f"a prompt is [S, {self._config.hidden_size}], not {tuple(embeds.shape)}")
        ids = [self.get_vocab_size() + 1] * embeds.shape[0]
        return ids, {"multimodal_data": {"multimodal_embedding": embeds}}

    def call_with_text_prompt(self, inputs, sampling_params):
        """The name that newer versions want for what older ones call directly."""
        return self._plain(inputs, sampling_params)

    def __call__(self, inputs, sampling_params):
        return self._plain(inputs, sampling_params)

    def _plain(self, inputs, sampling_params):
        if self._tokenizer is None:
            raise ValueError("this decoder reads embeddings: hand them over with trtllm_model.request")
        return self._tokenizer.encode(inputs["prompt"], add_special_tokens=False), None


@register_auto_model(ARCHITECTURE)
@register_input_processor(
    EmbeddedPrompt,
    model_type="auroraedge_decoder",
    placeholder_metadata=MultimodalPlaceholderMetadata(placeholder_map={_MODALITY: "<image>"}),
)
class AuroraEdgeDecoderForCausalLM(Qwen2ForCausalLM):
    """Qwen2 whose prompts may be embeddings. All tensors of a step are flat: the tokens of all requests in one row."""

    def forward(
        self,
        attn_metadata,
        input_ids=None,
        position_ids=None,
        inputs_embeds=None,
        return_context_logits: bool = False,
        **kwargs,
    ):
        # Only requests in their first step carry embeddings; they come before those that generate.
        given = kwargs.pop("multimodal_params", None) or []
        embeds = [item.multimodal_data["multimodal_embedding"] for item in given[: attn_metadata.num_contexts]]
        if embeds:
            input_ids, inputs_embeds = fuse_input_embeds(
                self.model.embed_tokens, input_ids, [e.to(input_ids.device) for e in embeds]
            )
        return super().forward(
            attn_metadata,
            input_ids=input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_context_logits=return_context_logits,
            **kwargs,
        )
