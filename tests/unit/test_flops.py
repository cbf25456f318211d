"""The analytic counts equal what torch counts on the real modules."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from auroraedge.config import PRESETS  # noqa: E402
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.model.flops import (  # noqa: E402
    auroraedge_shape,
    measured,
    peers,
    reconcile,
    uncompressed_shape,
    without_fusion,
)

TEXT = 48


@torch.no_grad()
def counted(p) -> dict[str, int]:
    """Operations by part, counted while the real modules run."""
    config = AuroraEdgeConfig.from_preset(p)
    for part in (config, config.vision_config, config.text_config):
        part._attn_implementation = "eager"
    model = AuroraEdgeForConditionalGeneration(config).eval()
    n, d = p.num_patches, p.text_hidden
    visual, text = torch.zeros(1, n, d), torch.zeros(1, TEXT, d)
    ones, text_ones = torch.ones(1, n), torch.ones(1, TEXT)
    everything = measured(model.encode, torch.zeros(1, n, p.patch_pixels))
    parts = {
        "projector": measured(model.projector, torch.zeros(1, n, p.vision_hidden)),
        "compressor": measured(model.compressor, visual, ones),
    }
    # The table of positions is resized for every frame as a product since transformers 5.24 (interpolated before), and
    # once for all in our engines, so it is not counted.
    embeddings, side = model.vision_model.embeddings, round(n**0.5)
    table = embeddings.position_embedding.weight.reshape(side, side, -1)
    resizing = measured(embeddings.resize_positional_embeddings, table, torch.tensor([[side, side]]), n)
    parts["encoder"] = everything - resizing - sum(parts.values())
    if model.fusion.cross is not None:
        parts["fusion"] = measured(model.fusion, text, visual, ones, text_ones)
    prompt = torch.zeros(1, p.num_compressed + TEXT, d)
    parts["prefill"] = measured(model.language_model, inputs_embeds=prompt, use_cache=False, logits_to_keep=1)
    return parts


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["nano", "2b"])
def test_auroraedge_equals_torch(name: str, depth: int) -> None:
    """True widths; one and two layers, which fixes the cost of a layer, and a small vocabulary to save memory."""
    preset = replace(PRESETS[name], vision_layers=depth, text_layers=depth, vocab_size=640)
    expected = auroraedge_shape(preset).count(text=TEXT, new=1)
    assert expected.pop("generation") == 0
    assert counted(preset) == expected


def test_without_fusion_equals_torch() -> None:
    expected = without_fusion("nano").count(text=TEXT, new=1)
    expected.pop("generation")
    assert counted(replace(PRESETS["nano"], fusion="none")) == expected


def test_generated_tokens_equal_torch() -> None:
    """Three steps with a cache, on real tensors."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    p = replace(PRESETS["nano"], vocab_size=640)
    config = Qwen2Config(
        hidden_size=p.text_hidden,
        num_hidden_layers=p.text_layers,
        num_attention_heads=p.text_heads,
        num_key_value_heads=p.text_kv_heads,
        head_dim=p.text_head_dim,
        intermediate_size=p.text_intermediate,
        vocab_size=p.vocab_size,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(config).eval()
    shape = auroraedge_shape(p)
    with torch.no_grad():
        embeds = torch.randn(1, 20, p.text_hidden)
        out = model(inputs_embeds=embeds, use_cache=True)
        total = 0
        for _ in range(3):
            token = torch.tensor([[1]])
            total += measured(model, input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    assert total == shape.decoder.steps(20, 4)


def test_uncompressed_baseline_has_all_tokens_in_the_decoder() -> None:
    ours, base = auroraedge_shape("2b"), uncompressed_shape("2b")
    assert (ours.visual_tokens, base.visual_tokens) == (64, 256)
    assert base.count(text=64, new=8)["prefill"] == base.decoder.prefill(320)
    assert ours.encoder == base.encoder and ours.decoder == base.decoder


@pytest.mark.parametrize("name", ["Qwen2-VL-2B", "Qwen2.5-VL-3B", "InternVL2.5-2B"])
def test_peers_equal_transformers(name: str) -> None:
    """Encoder and decoder of one and of two layers at the true widths; their difference is a layer."""
    shape = next(vlm for vlm in peers() if vlm.name == name)
    encoder = replace(shape.encoder, layers=1, windows=(0, 0))
    with torch.no_grad():
        found = [_vision(name, layers) for layers in (1, 2)]
    two = replace(encoder, layers=2)
    assert found[1] - found[0] == two.flops - encoder.flops
    text = [_text(name, layers) for layers in (1, 2)]
    one_layer = replace(shape.decoder, layers=1, vocab=64)
    assert text[1] - text[0] == replace(one_layer, layers=2).prefill(40) - one_layer.prefill(40)
    assert text[0] == one_layer.prefill(40)


def _vision(name: str, layers: int) -> int:
    if name.startswith("Qwen"):
        if name == "Qwen2-VL-2B":
            from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig as Config
            from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel as Model

            config = Config(depth=layers, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4)
        else:
            from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig as Config
            from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
                Qwen2_5_VisionTransformerPretrainedModel as Model,
            )

            config = Config(
                depth=layers,
                hidden_size=1280,
                intermediate_size=3420,
                out_hidden_size=2048,
                num_heads=16,
                fullatt_block_indexes=list(range(layers)),
            )
        config._attn_implementation = "eager"
        grid = torch.tensor([[1, 18, 18]])
        return measured(Model(config).eval(), torch.zeros(324, 2 * 3 * 14 * 14), grid_thw=grid)
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionModel

    config = InternVLVisionConfig(
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=4096,
        image_size=[448, 448],
    )
    config._attn_implementation = "eager"
    return measured(InternVLVisionModel(config).eval(), torch.zeros(1, 3, 448, 448))


def _text(name: str, layers: int) -> int:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    d = next(vlm for vlm in peers() if vlm.name == name).decoder
    # InternLM2 is Llama with the projections stored together.
    kind, config = (LlamaForCausalLM, LlamaConfig) if name.startswith("Intern") else (Qwen2ForCausalLM, Qwen2Config)
    settings = config(
        hidden_size=d.width,
        num_hidden_layers=layers,
        num_attention_heads=d.heads,
        num_key_value_heads=d.kv_heads,
        head_dim=d.head_dim,
        intermediate_size=d.middle,
        vocab_size=64,
        attn_implementation="eager",
    )
    model = kind(settings).eval()
    with torch.no_grad():
        return measured(model, inputs_embeds=torch.zeros(1, 40, d.width), use_cache=False, logits_to_keep=1)


def test_claims_are_reconciled() -> None:
    claims = reconcile("2b", text=64, new=32)
    assert {claim.claim for claim in claims} == {"half", "84 %", "90 %"}
    true = {(claim.claim, claim.counting) for claim in claims if claim.holds}
    assert ("half", "the decoder's prefill") in true
    assert ("84 %", "attention scores of the whole prompt") in true
    assert ("90 %", "attention scores with a prompt of 32 tokens") in true
    everything = next(c for c in claims if c.counting.startswith("everything:"))
    assert 0 < everything.share < 0.5
