"""The model: parity with the stock transformers parts, and the right tokens on the right path."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from transformers import Qwen2ForCausalLM, Siglip2VisionModel  # noqa: E402

from auroraedge import ops  # noqa: E402
from auroraedge.config import PRESETS  # noqa: E402
from auroraedge.model.configuration import AuroraEdgeConfig  # noqa: E402
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration, parameter_counts  # noqa: E402
from auroraedge.model.processing import naflex_grid  # noqa: E402

VOCAB = 96


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _config(**overrides: object) -> AuroraEdgeConfig:
    config = AuroraEdgeConfig.from_preset("nano", vocab_size=VOCAB, **overrides)
    config.vision_config.num_hidden_layers = 2
    config.text_config.num_hidden_layers = 2
    config.text_config.layer_types = config.text_config.layer_types[:2]
    return config


def _model(**overrides: object) -> AuroraEdgeForConditionalGeneration:
    model = AuroraEdgeForConditionalGeneration(_config(**overrides)).eval()
    # The compressor starts as a plain pool; random weights exercise all of it.
    torch.nn.init.normal_(model.compressor.w2, std=0.1)
    return model


def _inputs(batch: int = 2, prompt: int = 7, patches: int = 256) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(batch, patches, 768),
        "input_ids": torch.randint(0, VOCAB, (batch, prompt)),
    }


def test_encoder_is_the_stock_one() -> None:
    model = _model()
    stock = Siglip2VisionModel(model.config.vision_config).eval()
    stock.load_state_dict(model.vision_model.state_dict())
    x = _inputs()["pixel_values"]
    shapes = torch.tensor([[16, 16], [8, 20]])
    mask = torch.zeros(2, 256, dtype=torch.long)
    mask[0], mask[1, :160] = 1, 1
    with torch.no_grad():
        theirs = stock(pixel_values=x, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
        visual, _, _ = model.encode(x, mask, shapes)
        assert torch.equal(visual, model.projector(theirs))


def test_decoder_is_the_stock_one() -> None:
    model = _model()
    stock = Qwen2ForCausalLM(model.config.text_config).eval()
    stock.load_state_dict(model.language_model.state_dict())
    inputs = _inputs()
    answer = torch.randint(0, VOCAB, (2, 5))
    with torch.no_grad():
        ours = model(**inputs, answer_ids=answer).logits
        visual, compressed, mask = model.encode(inputs["pixel_values"])
        fused = model.fuse(inputs["input_ids"], torch.ones_like(inputs["input_ids"]), visual, mask)
        embeds = torch.cat([compressed, fused, stock.get_input_embeddings()(answer)], 1)
        theirs = stock(inputs_embeds=embeds).logits[:, -6:]
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("fusion", ["combined", "cross"])
def test_fusion_reads_the_uncompressed_tokens_and_the_decoder_the_compressed(fusion: str) -> None:
    """Fails when either path is fed from the other: that is the classic mistake."""
    model = _model(fusion=fusion)
    seen: dict[str, tuple[int, ...]] = {}
    model.fusion.cross.k_proj.register_forward_hook(lambda m, i, o: seen.__setitem__("fusion", tuple(i[0].shape)))
    model.language_model.model.register_forward_hook(
        lambda m, a, k, o: seen.__setitem__("decoder", tuple(k["inputs_embeds"].shape)), with_kwargs=True
    )
    inputs = _inputs(batch=1)
    with torch.no_grad():
        model(**inputs)
        assert seen["fusion"][1] == 256
        assert seen["decoder"][1] == 64 + 7
        visual, compressed, mask = model.encode(inputs["pixel_values"])
        ones = torch.ones_like(inputs["input_ids"])
        fused = model.fuse(inputs["input_ids"], ones, visual, mask)
        # A change of V that the compressor cannot see still reaches the prompt's tokens.
        model.compressor.w1[:, 100] = 0
        changed = visual.clone()
        changed[:, 100] = torch.randn_like(changed[:, 100])
        blind = model.compressor(visual, mask)
        assert torch.equal(model.compressor(changed, mask), blind)
        assert not torch.allclose(model.fuse(inputs["input_ids"], ones, changed, mask), fused)
        # And a change of C alone reaches the decoder with the prompt unchanged.
        first = model.decoder_inputs(compressed, fused, ones)["inputs_embeds"]
        second = model.decoder_inputs(compressed + 1, fused, ones)["inputs_embeds"]
        assert torch.equal(first[:, 64:], second[:, 64:])
        assert not torch.allclose(first[:, :64], second[:, :64])


def test_without_fusion_the_prompt_is_plain() -> None:
    model = _model(fusion="none")
    ids = _inputs()["input_ids"]
    with torch.no_grad():
        plain = model.get_input_embeddings()(ids)
        assert torch.equal(model.fuse(ids, torch.ones_like(ids), torch.randn(2, 256, 256), torch.ones(2, 256)), plain)


def test_generated_tokens_are_not_fused() -> None:
    model = _model()
    inputs, answer = _inputs(), torch.randint(0, VOCAB, (2, 3))
    with torch.no_grad():
        visual, compressed, mask = model.encode(inputs["pixel_values"])
        ones = torch.ones_like(inputs["input_ids"])
        fused = model.fuse(inputs["input_ids"], ones, visual, mask)
        embeds = model.decoder_inputs(compressed, fused, ones, answer)["inputs_embeds"]
        assert torch.equal(embeds[:, -3:], model.get_input_embeddings()(answer))


def test_padding_and_batch_size_do_not_change_a_result() -> None:
    model = _model()
    inputs, answer = _inputs(batch=3), torch.randint(0, VOCAB, (3, 4))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :4], mask[2, :1] = 0, 0
    patch_mask = torch.ones(3, 256)
    patch_mask[2, 150:] = 0
    shapes = torch.tensor([[16, 16], [16, 16], [10, 15]])
    with torch.no_grad():
        together = model(
            **inputs,
            attention_mask=mask,
            answer_ids=answer,
            pixel_attention_mask=patch_mask,
            spatial_shapes=shapes,
        ).logits
        for row, patches in ((0, 256), (1, 256), (2, 150)):
            kept = mask[row].bool()
            alone = model(
                pixel_values=inputs["pixel_values"][row : row + 1, :patches],
                input_ids=inputs["input_ids"][row : row + 1, kept],
                answer_ids=answer[row : row + 1],
                pixel_attention_mask=patch_mask[row : row + 1, :patches],
                spatial_shapes=shapes[row : row + 1],
            ).logits
            assert torch.allclose(together[row], alone[0], atol=2e-5), row
        # What stands in padded patches and padded prompt places is never read.
        noisy = {k: v.clone() for k, v in inputs.items()}
        noisy["pixel_values"][2, 150:] = 1e3
        noisy["input_ids"][1, :4] = 5
        again = model(
            **noisy, attention_mask=mask, answer_ids=answer, pixel_attention_mask=patch_mask, spatial_shapes=shapes
        ).logits
    assert torch.allclose(together, again, atol=2e-5)


def test_generate_follows_forward() -> None:
    model = _model()
    inputs = _inputs()
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    ids = model.generate(**inputs, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    answer = ids[:, :0]
    with torch.no_grad():
        for _ in range(4):
            logits = model(**inputs, attention_mask=mask, answer_ids=answer if answer.shape[1] else None).logits
            answer = torch.cat([answer, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, answer)


def test_save_and_load(tmp_path: Path) -> None:
    model = _model()
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.bin")] == []
    again = AuroraEdgeForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = _inputs()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("compressed", [128, 64, 32, 16])
def test_compressor_starts_as_a_block_pool(compressed: int) -> None:
    model = AuroraEdgeForConditionalGeneration(_config(num_compressed=compressed))
    visual = torch.randn(1, 256, 256)
    with torch.no_grad():
        got = model.compressor(visual, torch.ones(1, 256))
        normed = model.compressor.norm(visual).reshape(16, 16, 256)
    rows = 1 << ((compressed.bit_length() - 1) // 2)
    columns = compressed // rows
    pooled = normed.reshape(rows, 16 // rows, columns, 16 // columns, 256).mean((1, 3)).reshape(1, compressed, 256)
    assert torch.allclose(got, pooled, atol=1e-5)


def test_op_reference_against_float64() -> None:
    q, k, v = (torch.randn(2, 4, n, 16) for n in (5, 33, 33))
    mask = (torch.rand(2, 33) > 0.3).float()
    exact = torch.softmax((q.double() @ k.double().mT) / 4 + (1 - mask.double())[:, None, None] * -1e9, -1) @ v.double()
    assert torch.allclose(ops.fusion_attention(q, k, v, mask).double(), exact, atol=1e-5)
    x, g = torch.randn(2, 33, 16), torch.rand(16)
    w1, b1, w2, b2 = torch.randn(24, 40), torch.randn(24), torch.randn(8, 24), torch.randn(8)
    xd = x.double()
    n = xd / (xd.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * g.double() * mask.double()[..., None]
    hidden = torch.nn.functional.gelu(w1.double()[:, :33] @ n + b1.double()[:, None], approximate="tanh")
    exact = w2.double() @ hidden + b2.double()[:, None]
    assert torch.allclose(ops.compress(x, mask, g, 1e-6, w1, b1, w2, b2).double(), exact, atol=1e-4)


def test_ops_differentiate() -> None:
    x = torch.randn(1, 6, 4, dtype=torch.double, requires_grad=True)
    weights = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((5, 6), (5,), (3, 5), (3,))]
    mask, g = torch.ones(1, 6, dtype=torch.double), torch.ones(4, dtype=torch.double)
    # The norm computes in float32 on purpose, so the check is as exact as that.
    assert torch.autograd.gradcheck(
        lambda *w: ops.compress(x.detach(), mask, g, 1e-6, *w), weights, eps=1e-4, atol=1e-3
    )
    ops.compress(x, mask, g, 1e-6, *weights).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_2b_has_the_published_sizes() -> None:
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(AuroraEdgeConfig.from_preset("2b"))
    counts = parameter_counts(model)
    text, vision = model.config.text_config, model.config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers) == (1152, 27)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (
        1536,
        28,
        12,
        2,
    )
    assert counts["language_model"] == 1_543_714_304  # Qwen2.5-1.5B, tied LM head counted once
    assert 1.9e9 < counts["total"] < 2.1e9


@pytest.mark.parametrize(("width", "height"), [(640, 640), (1130, 460), (121, 289), (5000, 50), (16, 16)])
def test_naflex_grid_matches_transformers(width: int, height: int) -> None:
    siglip2 = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    rows, columns = naflex_grid(width, height)
    theirs = siglip2.get_image_size_for_max_num_patches(height, width, 16, 256)
    assert (rows * 16, columns * 16) == tuple(theirs)
    assert rows * columns <= PRESETS["nano"].num_patches
