"""Every kernel in Triton's interpreter, at reduced and odd shapes with fresh random inputs, against float64."""

from __future__ import annotations

import importlib
import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kernel_support import assert_as_good_as_torch, doubled, run_poisoned

import kernels
from auroraedge import ops
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration
from auroraedge.ops import compress_reference, fusion_attention_reference
from kernels.compressor.op import compress, compress_quantised, compress_quantised_reference
from kernels.connectors import fuse_connectors
from kernels.fusion_attention.op import (
    cross_attention,
    cross_attention_quantised,
    cross_attention_quantised_reference,
    cross_attention_reference,
    fusion_attention,
)
from kernels.projector.op import linear, linear_quantised, linear_quantised_reference, linear_reference
from kernels.quantise import activation_scale, quantise_rows
from kernels.rms_norm.op import rms_norm, rms_norm_reference, square_sums
from kernels.tiles import TILES, Tile

EPS = 1e-6
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float16])
few = settings(
    max_examples=int(os.environ.get("AURORAEDGE_EXAMPLES", "15")),
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # the seed is printed; a smaller case is not worth the minutes
    suppress_health_check=list(HealthCheck),
)


def _mask(batch: int, patches: int) -> torch.Tensor:
    """Padding as NaFlex makes it: the first patches are real; at least one."""
    real = torch.randint(1, patches + 1, (batch, 1))
    return (torch.arange(patches)[None] < real).float()


def _compressor(batch: int, patches: int, width: int, hidden: int, tokens: int, full: int, dtype: torch.dtype) -> tuple:
    return (
        torch.randn(batch, patches, width).to(dtype) * 3,
        _mask(batch, patches),
        torch.randn(width).to(dtype),
        EPS,
        (torch.randn(hidden, full) / patches**0.5).to(dtype),
        torch.randn(hidden).to(dtype),
        (torch.randn(tokens, hidden) / hidden**0.5).to(dtype),
        torch.randn(tokens).to(dtype),
    )


@few
@given(
    seed=seeds,
    dtype=dtypes,
    batch=st.integers(1, 2),
    patches=st.integers(1, 70),
    missing=st.integers(0, 5),
    width=st.integers(1, 80),
    hidden=st.integers(1, 70),
    tokens=st.integers(1, 20),
)
def test_compress(
    seed: int, dtype: torch.dtype, batch: int, patches: int, missing: int, width: int, hidden: int, tokens: int
) -> None:
    torch.manual_seed(seed)
    arguments = _compressor(batch, patches, width, hidden, tokens, patches + missing, dtype)
    exact = compress_reference_64(*doubled(arguments))
    assert_as_good_as_torch(run_poisoned(compress, *arguments), compress_reference(*arguments), exact)


def compress_reference_64(x, mask, gain, eps, w1, b1, w2, b2):  # type: ignore[no-untyped-def]
    """compress_reference without its casts to float32."""
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain * mask[..., None]
    hidden = torch.matmul(w1[:, : x.shape[1]], normed) + b1[:, None]
    return torch.matmul(w2, torch.nn.functional.gelu(hidden, approximate="tanh")) + b2[:, None]


def test_compress_takes_the_projectors_sums_in_parts() -> None:
    arguments = _compressor(2, 33, 40, 20, 8, 40, torch.float32)
    parts = arguments[0].float().pow(2).unflatten(-1, (5, 8)).sum(-1)
    exact = compress_reference_64(*doubled(arguments))
    assert_as_good_as_torch(run_poisoned(compress, *arguments, parts), compress_reference(*arguments), exact)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 6e4])
def test_padded_patches_may_hold_anything(junk: float) -> None:
    visual, mask, *rest = _compressor(2, 20, 16, 20, 8, 20, torch.float32)
    mask[:, 15:] = 0
    spoilt = visual.clone()
    spoilt[mask == 0] = junk
    assert torch.equal(compress(spoilt, mask, *rest), compress(visual, mask, *rest))


def test_a_mask_of_another_dtype_is_the_same_mask() -> None:
    visual, mask, *rest = _compressor(2, 20, 16, 20, 8, 20, torch.float32)
    mask[1, 3:] = 0
    for dtype in (torch.int64, torch.bool, torch.float16):
        assert torch.equal(compress(visual, mask.to(dtype), *rest), compress(visual, mask, *rest))


def _quantised_compressor(arguments: tuple, precision: str) -> tuple:
    visual, mask, gain, eps, w1, b1, w2, b2 = arguments
    x = visual.float()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain.float() * mask[..., None]
    hidden = torch.matmul(w1.float()[:, : x.shape[1]], normed) + b1.float()[:, None]
    scales = torch.cat([activation_scale(t, precision) for t in (normed, torch.nn.functional.gelu(hidden))])
    w1, w1_scale = quantise_rows(w1, precision)
    w2, w2_scale = quantise_rows(w2, precision)
    return visual, mask, gain, eps, w1, w1_scale, b1, w2, w2_scale, b2, scales


@few
@given(seed=seeds, dtype=dtypes, patches=st.integers(1, 70), width=st.integers(1, 80), hidden=st.integers(1, 70))
def test_compress_int8(seed: int, dtype: torch.dtype, patches: int, width: int, hidden: int) -> None:
    torch.manual_seed(seed)
    plain = _compressor(2, patches, width, hidden, 9, patches, dtype)
    arguments = _quantised_compressor(plain, "int8")
    ours = run_poisoned(compress_quantised, *arguments)
    theirs = compress_quantised_reference(*arguments)
    # A value on the border between two integers may fall to either: a few steps of the hidden units' scale.
    w2_largest = float((arguments[7].float() * arguments[8][:, None]).abs().max())
    step = 4 * float(arguments[10][1]) * w2_largest + torch.finfo(dtype).eps * float(theirs.abs().max())
    assert float((ours.float() - theirs.float()).abs().max()) <= step
    assert float((ours.float() - theirs.float()).abs().mean()) <= step / 8
    # And it is the model's function: quantisation alone stands between them.
    exact = compress_reference_64(*doubled(plain))
    assert_as_good_as_torch(ours, theirs, exact, floor=step)


@few
@given(
    seed=seeds,
    dtype=dtypes,
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 40),
    patches=st.integers(1, 70),
    dim=st.integers(1, 40),
)
def test_fusion_attention(
    seed: int, dtype: torch.dtype, batch: int, heads: int, tokens: int, patches: int, dim: int
) -> None:
    torch.manual_seed(seed)
    query = torch.randn(batch, heads, tokens, dim).to(dtype) * 2
    key, value = torch.randn(2, batch, heads, patches, dim).to(dtype)
    arguments = (query, key, value, _mask(batch, patches))
    assert_as_good_as_torch(
        run_poisoned(fusion_attention, *arguments),
        fusion_attention_reference(*arguments),
        attention_64(*doubled(arguments)),
    )


def attention_64(query, key, value, mask):  # type: ignore[no-untyped-def]
    scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return torch.matmul(torch.softmax(scores + (1.0 - mask[:, None, None]) * -1e9, -1), value)


def test_attention_reads_strided_heads_and_survives_large_scores() -> None:
    """As the model calls it: heads split by a view. Scores of several hundred must not overflow."""
    query, key, value = torch.randn(3, 2, 21, 3 * 16)
    split = [x.unflatten(-1, (3, 16)).transpose(1, 2) for x in (query * 40, key * 10, value)]
    mask = torch.ones(2, 21)
    mask[1, 4:] = 0
    ours = fusion_attention(*split, mask)
    exact = attention_64(*doubled((*split, mask)))
    # A score of several hundred is rounded by that share of its weight; whether two are as near is chance.
    largest = float((split[0].double() @ split[1].double().transpose(-1, -2)).abs().max()) * 16**-0.5
    floor = torch.finfo(torch.float32).eps * largest * float(exact.abs().max())
    assert largest > 300 and floor < 1e-3
    assert_as_good_as_torch(ours, fusion_attention_reference(*split, mask), exact, floor=floor)


def test_a_view_without_any_patch_gives_the_mean_as_the_reference_does() -> None:
    query, key, value = torch.randn(3, 1, 2, 9, 16)
    mask = torch.zeros(1, 9)
    ours = fusion_attention(query, key, value, mask)
    assert torch.allclose(ours, fusion_attention_reference(query, key, value, mask), atol=1e-6)


def _cross(batch: int, tokens: int, patches: int, heads: int, dim: int, width: int, dtype: torch.dtype) -> tuple:
    text = torch.randn(batch, tokens, width).to(dtype) * 3
    key_value = torch.randn(batch, patches, 2, heads, dim).to(dtype)  # as the fused projection writes it
    key, value = key_value.permute(2, 0, 3, 1, 4)
    gain, wq = torch.randn(width).to(dtype), (torch.randn(heads * dim, width) / width**0.5).to(dtype)
    return text, key, value, _mask(batch, patches), gain, EPS, wq, torch.randn(heads * dim).to(dtype)


def cross_64(text, key, value, mask, gain, eps, wq, bq):  # type: ignore[no-untyped-def]
    normed = text * torch.rsqrt(text.pow(2).mean(-1, keepdim=True) + eps) * gain
    query = torch.nn.functional.linear(normed, wq, bq).unflatten(-1, (key.shape[1], -1)).transpose(1, 2)
    return attention_64(query, key, value, mask).transpose(1, 2).flatten(2)


@few
@given(
    seed=seeds,
    dtype=dtypes,
    heads=st.integers(1, 3),
    tokens=st.integers(1, 40),
    patches=st.integers(1, 70),
    dim=st.integers(1, 40),
    width=st.integers(1, 90),
)
def test_cross_attention_makes_its_own_queries(
    seed: int, dtype: torch.dtype, heads: int, tokens: int, patches: int, dim: int, width: int
) -> None:
    torch.manual_seed(seed)
    arguments = _cross(2, tokens, patches, heads, dim, width, dtype)
    assert_as_good_as_torch(
        run_poisoned(cross_attention, *arguments), cross_attention_reference(*arguments), cross_64(*doubled(arguments))
    )


@few
@given(seed=seeds, heads=st.integers(1, 3), tokens=st.integers(1, 40), patches=st.integers(1, 70))
def test_cross_attention_int8(seed: int, heads: int, tokens: int, patches: int) -> None:
    """8-bit queries and softmax weights too: the error beside 8-bit keys and values alone stays of their size."""
    torch.manual_seed(seed)
    text, key, value, *rest = _cross(2, tokens, patches, heads, 24, 48, torch.float32)
    scales = torch.stack([t.abs().amax((0, 2, 3)) / 127 for t in (key, value)])
    key8, value8 = ((t / s[:, None, None]).round().to(torch.int8) for t, s in zip((key, value), scales, strict=True))
    ours = run_poisoned(cross_attention_quantised, text, key8, value8, scales, *rest)
    half = cross_attention_quantised_reference(text, key8, value8, scales, *rest)
    exact = cross_64(*doubled((text, key, value, *rest)))
    floor = 0.03 * float(value.abs().max())
    assert_as_good_as_torch(ours, half, exact, floor=floor)
    assert float((ours.double() - exact).abs().mean()) <= floor / 3


@few
@given(
    seed=seeds,
    dtype=dtypes,
    rows=st.integers(1, 70),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    gelu=st.booleans(),
    bias=st.booleans(),
    residual=st.booleans(),
    norm=st.booleans(),
    library=st.booleans(),
)
def test_linear(
    seed: int,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    outputs: int,
    gelu: bool,
    bias: bool,
    residual: bool,
    norm: bool,
    library: bool,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs).to(dtype) * 2
    squares = x.float().pow(2).sum(-1, keepdim=True)
    arguments = (
        x,
        (torch.randn(outputs, inputs) / inputs**0.5).to(dtype),
        torch.randn(outputs).to(dtype) if bias else None,
        torch.randn(rows, outputs).to(dtype) if residual else None,
        torch.cat([squares / 4, squares * 3 / 4], -1) if norm else None,
        EPS,
        gelu,
        True,
        library,
    )
    y, sums = run_poisoned(linear, *arguments)
    theirs, _ = linear_reference(*arguments)
    exact, _ = linear_reference(*doubled(arguments))
    assert_as_good_as_torch(y, theirs, exact)
    assert torch.allclose(sums.sum(-1), y.float().pow(2).sum(-1), rtol=1e-5)


@few
@given(
    seed=seeds,
    rows=st.integers(1, 70),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    norm=st.booleans(),
    ready=st.booleans(),
    eight_bit_result=st.booleans(),
)
def test_linear_int8(
    seed: int, rows: int, inputs: int, outputs: int, norm: bool, ready: bool, eight_bit_result: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs) * 2
    squares = x.pow(2).sum(-1, keepdim=True) if norm and not ready else None
    normed = x if squares is None else x * torch.rsqrt(squares / inputs + EPS)
    weight = torch.randn(outputs, inputs) / inputs**0.5
    weight8, scale = quantise_rows(weight, "int8")
    x_scale = activation_scale(normed, "int8")
    exact_y = torch.nn.functional.linear(normed.double(), weight.double())
    y_scale = activation_scale(exact_y, "int8") if eight_bit_result else None
    given_x = (x / x_scale).round().to(torch.int8) if ready else x
    arguments = (given_x, weight8, scale, x_scale, None, None, squares, EPS, False, False, y_scale, torch.float32)
    ours, _ = run_poisoned(linear_quantised, *arguments)
    theirs, _ = linear_quantised_reference(*arguments)
    if y_scale is not None:
        assert ours.dtype == torch.int8
        assert int((ours.int() - theirs.int()).abs().max()) <= 1
        ours, theirs = ours * y_scale, theirs * y_scale
    step = float(x_scale * (weight8.float() * scale[:, None]).abs().max() + (y_scale or 0))
    assert_as_good_as_torch(ours, theirs, exact_y, floor=step)


@few
@given(seed=seeds, dtype=dtypes, rows=st.integers(1, 40), width=st.integers(1, 200), residual=st.booleans())
def test_rms_norm(seed: int, dtype: torch.dtype, rows: int, width: int, residual: bool) -> None:
    torch.manual_seed(seed)
    x, other = torch.randn(2, rows, width).to(dtype)
    arguments = (x, other if residual else None, torch.randn(width).to(dtype), EPS)
    y, total = run_poisoned(rms_norm, *arguments)
    theirs, their_total = rms_norm_reference(*arguments)
    assert_as_good_as_torch(y, theirs, rms_norm_reference(*doubled(arguments))[0])
    assert torch.equal(total, their_total)
    assert torch.allclose(run_poisoned(square_sums, x)[:, 0], x.float().pow(2).sum(-1), rtol=1e-5)


def test_the_models_ops_run_the_kernels_and_their_gradients_are_the_references() -> None:
    kernels.register()
    arguments = _compressor(2, 20, 24, 20, 8, 24, torch.float32)
    query, key, value = torch.randn(3, 2, 2, 9, 16)
    mask = _mask(2, 9)
    found = {}
    for mode in ("reference", "triton"):
        leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
        leaves[1] = arguments[1]
        heads = [x.clone().requires_grad_() for x in (query, key, value)]
        with kernels.using(mode):
            out = torch.ops.auroraedge.compress(*leaves)
            attended = torch.ops.auroraedge.fusion_attention(*heads, mask)
        assert ("Generated" in type(out.grad_fn).__name__ or "auroraedge" in str(out.grad_fn)) == (mode == "triton")
        (out.square().sum() + attended.square().sum()).backward()
        gradients = [t.grad for t in (*leaves, *heads) if isinstance(t, torch.Tensor) and t.requires_grad]
        found[mode] = [out.detach(), attended.detach(), *gradients]
    assert len(found["triton"]) == 11
    for ours, theirs in zip(found["triton"], found["reference"], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with kernels.using("auto"):  # nothing is measured for the interpreter: the reference
        assert torch.equal(ops.fusion_attention(query, key, value, mask), found["reference"][1])
    kernels.unregister()


def _every_tile() -> list:
    """Each set of block sizes that is compiled for any GPU, once."""
    found = {}
    for kernel, tiles in TILES.items():
        for tile in tiles:
            found[kernel, *tile.blocks.items()] = pytest.param(kernel, tile, id=f"{kernel}-{tile.name}")
    return list(found.values())


@pytest.mark.parametrize(("kernel", "tile"), _every_tile())
def test_every_tile_gives_the_same_function(kernel: str, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes beyond one tile in every direction; the tile of the other GPUs instead of the interpreter's own choice."""
    folder = {"attention_q": "fusion_attention", "attention": "fusion_attention", "linear": "projector"}
    module = importlib.import_module(f"kernels.{folder.get(kernel, kernel)}.op")
    monkeypatch.setattr(module, "tile_for", lambda *_, **__: tile)
    dtype = torch.float16
    if kernel == "compressor":
        arguments = _compressor(1, 37, 150, 70, 12, 40, dtype)
        results = run_poisoned(compress, *arguments), compress_reference(*arguments)
        exact = compress_reference_64(*doubled(arguments))
    elif kernel == "linear":
        x, weight, other = torch.randn(140, 150), torch.randn(140, 150) / 12, torch.randn(140, 140)
        arguments = (x.to(dtype), weight.to(dtype), None, other.to(dtype), None, EPS, True, True, False)
        results = run_poisoned(linear, *arguments)[0], linear_reference(*arguments)[0]
        exact = linear_reference(*doubled(arguments))[0]
    else:
        arguments = _cross(1, 70, 70, 2, 24, 150, dtype)
        if kernel == "attention":
            arguments = (torch.randn(1, 2, 70, 24).to(dtype), *arguments[1:4])
            results = run_poisoned(fusion_attention, *arguments), fusion_attention_reference(*arguments)
            exact = attention_64(*doubled(arguments))
        else:
            results = run_poisoned(cross_attention, *arguments), cross_attention_reference(*arguments)
            exact = cross_64(*doubled(arguments))
    assert_as_good_as_torch(*results, exact)


def test_an_empty_batch_launches_nothing() -> None:
    arguments = _compressor(2, 20, 24, 20, 8, 24, torch.float32)
    assert compress(arguments[0][:0], arguments[1][:0], *arguments[2:]).shape == (0, 8, 24)
    query, key, value = torch.randn(3, 0, 2, 9, 16)
    assert fusion_attention(query, key, value, torch.ones(0, 9)).shape == (0, 2, 9, 16)


def test_the_fused_connectors_are_the_models_and_take_six_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import GridExecutor

    launches = []
    original = GridExecutor.__call__

    def counted(self: GridExecutor, *arguments: object, **rest: object) -> object:
        launches.append(self.fn.__name__)
        return original(self, *arguments, **rest)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    config = AuroraEdgeConfig.from_preset("nano", vocab_size=32)
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    config.text_config.layer_types = config.text_config.layer_types[:1]
    model = AuroraEdgeForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.compressor.w2, std=0.1)
    for norm in (model.compressor.norm, model.fusion.cross.text_norm, model.fusion.cross.visual_norm):
        torch.nn.init.normal_(norm.weight)
    features, text = torch.randn(2, 256, 384), torch.randn(2, 9, 256)
    mask = torch.ones(2, 256)
    mask[1, 100:] = 0

    def connectors() -> list[torch.Tensor]:
        visual = model.projector(features)
        return [visual, model.compressor(visual, mask), model.fusion.cross(text, visual, mask)]

    with torch.no_grad():
        plain = connectors()
        assert not launches
        with fuse_connectors(model):
            fused = connectors()
        assert len(launches) == 6, launches
        with fuse_connectors(model, library=True):
            fused += connectors()
        assert "epilogue_kernel" in launches[6:]
        again = connectors()
    for ours, theirs in zip(fused, plain * 2, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(again, plain, strict=True):
        assert torch.equal(ours, theirs)
    # With gradients on, the model computes as ever.
    with fuse_connectors(model):
        model.projector(features).sum().backward()
    assert model.projector.fc1.weight.grad is not None
