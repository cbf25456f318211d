"""The model of a fine-tuning run: a base with rows for new labels, LoRA where wanted, and a stock model at the end.

LoRA: arXiv 2106.09685, by the peft library. The connectors (projector, compressor, fusion, grounding head) are trained
as they are: they are small, and they are where new labels meet the image.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from auroraedge.errors import TrainingError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.finetune_settings import FinetuneSettings
from auroraedge.train.optimiser import MasterAdamW, named_parts

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_ENCODER_LAYERS = r"self_attn\.(q|k|v|out)_proj|mlp\.fc[12]"
_DECODER_LAYERS = r"self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj"


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model folder: its weights' hash and the labels that its grounding head names."""

    folder: Path
    weights_sha256: str
    labels: tuple[str, ...]
    name: str


def open_base(folder: Path) -> Base:
    """Reads what a base folder says of itself. Raises TrainingError when it is not one."""
    missing = [name for name in (CONFIG, TOKENIZER) if not (folder / name).is_file()]
    weights = sorted(folder.glob("model*.safetensors"))
    if missing or not weights:
        raise TrainingError(
            f"{folder} is no model folder ({', '.join(missing or [WEIGHTS])} is not there).",
            field="model",
            remedy="Give a folder that save_pretrained wrote, with tokenizer.json, such as models/nano.",
        )
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Base(
        folder=folder,
        weights_sha256=digest.hexdigest(),
        labels=tuple(config.get("grounding_labels") or ()),
        name=str(config.get("preset") or folder.name),
    )


def _head_rows(old: Sequence[str], new: Sequence[str], before: int, after: int) -> list[tuple[int, int]]:
    """(new row, old row) of what a grounding layer keeps: `before` rows, one a label, `after` rows."""
    kept = [(i, i) for i in range(before)]
    kept += [(before + new.index(label), before + index) for index, label in enumerate(old)]
    return kept + [(before + len(new) + i, before + len(old) + i) for i in range(after)]


def load_extended(base: Base, labels: Sequence[str]) -> AuroraEdgeForConditionalGeneration:
    """The base in float32 with a grounding head for its own labels and then the new ones of `labels`; old rows stay.

    A base without a grounding head gets a fresh one. The new rows are drawn with torch's current seed.
    """
    model = AuroraEdgeForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32, use_safetensors=True)
    old = list(model.config.grounding_labels)
    wanted = [*old, *(label for label in labels if label not in old)]
    if wanted == old:
        return model
    config = AuroraEdgeConfig.from_dict({**model.config.to_dict(), "grounding_labels": wanted})
    # Only the head differs: built alone, so that a model of gigabytes is not made twice.
    from auroraedge.model.modeling import GroundingHead

    head = GroundingHead(config)
    head.reset_parameters()
    nn.init.normal_(head.pool.weight, std=0.02)
    nn.init.constant_(head.pool.bias, -1.0)
    if model.grounding is not None:
        state, fresh = model.grounding.state_dict(), head.state_dict()
        for name, tensor in state.items():
            if not name.startswith(("out.", "pool.")):
                fresh[name].copy_(tensor)
        for layer, before, after in (("out", 1, 4), ("pool", 0, 1)):
            for new_row, old_row in _head_rows(old, wanted, before, after):
                for part in ("weight", "bias"):
                    fresh[f"{layer}.{part}"][new_row] = state[f"{layer}.{part}"][old_row]
        head.load_state_dict(fresh)
    model.grounding = head
    model.config.grounding_labels = wanted
    return model


def tokenizer_of(base: Base, labels: Sequence[str]) -> InspectionTokenizer:
    """The base's tokenizer. Raises TrainingError for a label that it cannot spell back."""
    tokenizer = InspectionTokenizer.load(base.folder / TOKENIZER)
    for label in labels:
        ids = tokenizer.label_ids(label)
        if tokenizer.decode(ids).strip() != label:
            raise TrainingError(
                f"The tokenizer of the base cannot spell the label '{label}'.", field="labels", remedy="Rename it."
            )
    return tokenizer


class Tuned:
    """A base model being fine-tuned: which parameters move, how a view is encoded, and how it is exported."""

    def __init__(self, base: Base, labels: Sequence[str], settings: FinetuneSettings) -> None:
        self.base, self.settings = base, settings
        self.model = load_extended(base, labels)
        for part in (self.model.config.vision_config, self.model.config.text_config):
            # On a CPU, plain matrix products are faster than scaled_dot_product_attention at 256 tokens.
            part._attn_implementation = "eager"
        layers = self.model.config.vision_config.num_hidden_layers
        moving = {"lora": settings.encoder_layers, "decoder": 0, "all": layers}[settings.mode]
        self.cut = max(0, layers - moving)
        self._peft = self._with_lora() if settings.mode == "lora" else None
        self.optimizer = self._optimizer()
        self.model.train()

    def _with_lora(self) -> Any:
        from peft import LoraConfig, get_peft_model

        numbers = range(self.cut, self.model.config.vision_config.num_hidden_layers)
        places = [rf"language_model\.model\.layers\.\d+\.({_DECODER_LAYERS})"]
        if numbers:
            chosen = "|".join(map(str, numbers))
            places.append(rf"vision_model\.encoder\.layers\.({chosen})\.({_ENCODER_LAYERS})")
        rank = self.settings.rank
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=rf"({'|'.join(places)})")
        return get_peft_model(self.model, config)

    def _optimizer(self) -> MasterAdamW:
        model = self.model
        connectors = [("connectors", name, getattr(model, name)) for name in ("projector", "compressor", "fusion")]
        modules = [*connectors, ("grounding", "grounding", model.grounding)]
        if self.settings.mode in ("decoder", "all"):
            modules.append(("decoder", "language_model", model.language_model))
        if self.settings.mode == "all":
            modules.append(("encoder", "vision_model", model.vision_model))
        groups = named_parts(modules)
        if self._peft is not None:
            lora = [(name, p) for name, p in model.named_parameters() if "lora_" in name]
            groups["lora"] = lora
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for named in groups.values():
            for _, parameter in named:
                parameter.requires_grad_(True)
        return MasterAdamW(groups, self.settings.weight_decay)

    @property
    def trained(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def stem(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, 256, E] after the encoder layers that do not move; pixel_values [B, 256, 768] in -1..1."""
        vision = self.model.vision_model
        side = round(pixel_values.shape[1] ** 0.5)
        shapes = torch.full((len(pixel_values), 2), side, dtype=torch.long)
        hidden = vision.embeddings(pixel_values, shapes)
        for layer in vision.encoder.layers[: self.cut]:
            hidden = layer(hidden, None)
        return hidden

    def visual(self, hidden_BNE: torch.Tensor) -> torch.Tensor:
        """V [B, 256, D] from what `stem` gave."""
        vision = self.model.vision_model
        hidden = hidden_BNE
        for layer in vision.encoder.layers[self.cut :]:
            hidden = layer(hidden, None)
        return self.model.projector(vision.post_layernorm(hidden))

    def export(self, folder: Path, masters: dict[str, torch.Tensor], about: dict[str, Any]) -> Path:
        """Writes the stock model with the given float32 weights of the trained parameters; LoRA is merged in.

        The folder appears complete or not at all. Afterwards this object is spent.
        """
        with torch.no_grad():
            for name, parameter in self.optimizer.parameters.items():
                parameter.copy_(masters[name])
        stock = self.model if self._peft is None else self._peft.merge_and_unload()
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        stock.half().save_pretrained(fresh)
        shutil.copyfile(self.base.folder / TOKENIZER, fresh / TOKENIZER)
        (fresh / "finetune.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
        return folder
