"""The loss of the distributed trainer: weighted cross-entropy of the answers' tokens.

Suffixes as in auroraedge.model.modeling; n answer tokens of a micro-batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model import AuroraEdgeForConditionalGeneration
from auroraedge.train.batches import LOCATION_SIGMA_BINS


class TokenLoss(nn.Module):
    """The model with its loss, as one module for DDP and FSDP to wrap.

    Location tokens have soft targets over neighbouring bins, less their entropy, as in the trainer of nano. Logits are
    made for answer tokens alone: with 151,936 words they would be most of the memory.
    """

    def __init__(
        self, model: AuroraEdgeForConditionalGeneration, tokenizer: InspectionTokenizer, *, train_encoder: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.train_encoder = train_encoder
        bins = torch.arange(len(tokenizer.loc_ids), dtype=torch.float32)
        kernel = torch.exp(-0.5 * ((bins[:, None] - bins[None, :]) / LOCATION_SIGMA_BINS) ** 2)
        self.register_buffer("soft", kernel / kernel.sum(1, keepdim=True), persistent=False)
        self.register_buffer("loc_ids", torch.from_numpy(tokenizer.loc_ids), persistent=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        view: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_ids: torch.Tensor,
        answer_mask: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """The summed loss, float32. Arguments as in train.batches.Batch; divide by the sum of the weights."""
        model = self.model
        batch, patches = pixel_values.shape[:2]
        side = round(patches**0.5)
        pixel_values = pixel_values.to(model.vision_model.embeddings.patch_embedding.weight.dtype)
        with torch.set_grad_enabled(self.train_encoder):
            features = model.vision_model(
                pixel_values=pixel_values,
                pixel_attention_mask=torch.ones(batch, patches, dtype=torch.long, device=pixel_values.device),
                spatial_shapes=torch.full((batch, 2), side, device=pixel_values.device),
            ).last_hidden_state
        visual = model.projector(features)
        mask = visual.new_ones(visual.shape[:2])
        compressed = model.compressor(visual, mask)
        fused = model.fuse(input_ids, attention_mask, visual[view], mask[view])
        inputs = model.decoder_inputs(compressed[view], fused, attention_mask, answer_ids, answer_mask)
        hidden = model.language_model.model(**inputs, use_cache=False).last_hidden_state[:, -labels.shape[1] :]
        counted = weights > 0
        logits_nV = model.language_model.lm_head(hidden[counted]).float()
        truth_n, weight_n = labels[counted], weights[counted]
        loss_n = F.cross_entropy(logits_nV, truth_n, reduction="none")
        place = (truth_n[:, None] == self.loc_ids).nonzero()
        if len(place):
            log_p = F.log_softmax(logits_nV[place[:, 0]], -1)[:, self.loc_ids]
            soft = self.soft[place[:, 1]]
            loss_n = loss_n.index_put((place[:, 0],), (torch.special.entr(soft).neg() - soft * log_p).sum(-1))
        return (loss_n * weight_n).sum()
