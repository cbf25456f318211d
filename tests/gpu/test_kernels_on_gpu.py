"""Kernels on a GPU: full shapes, bfloat16, INT8 and FP8, gradients, CUDA graphs, torch.compile, launches.

Reduced and odd shapes, and every tile, are in tests/interpreter; what is asked of the results is the same.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kernel_support import assert_as_good_as_torch, doubled, run_poisoned  # noqa: E402

import kernels  # noqa: E402
from auroraedge.config import PRESETS  # noqa: E402
from auroraedge.ops import compress_reference, fusion_attention_reference  # noqa: E402
from kernels.compressor.op import compress, compress_quantised, compress_quantised_reference  # noqa: E402
from kernels.fusion_attention.op import (  # noqa: E402
    cross_attention,
    cross_attention_quantised,
    cross_attention_quantised_reference,
    cross_attention_reference,
    fusion_attention,
)
from kernels.projector.op import linear, linear_quantised, linear_quantised_reference, linear_reference  # noqa: E402
from kernels.quantise import LARGEST, activation_scale, quantise_rows, to_eight_bit  # noqa: E402
from kernels.rms_norm.op import rms_norm, rms_norm_reference, square_sums  # noqa: E402

EPS = 1e-6
CUDA = "cuda"
DTYPES = [torch.float16, torch.bfloat16]
BATCHES = [1, 3, 16]
PRESET_NAMES = ["2b", "nano"]


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    """Printed when a test fails."""
    print("seed", torch.seed())


def precisions() -> list[str]:
    """8-bit precisions of the matrix units that are here."""
    if not torch.cuda.is_available():
        return ["int8", "fp8"]
    capability = torch.cuda.get_device_capability()
    return ["int8", "fp8"] if capability >= (8, 9) else ["int8"]


def _randn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device=CUDA) * scale).to(dtype)


def _mask(batch: int, patches: int) -> torch.Tensor:
    mask = (torch.arange(patches)[None] < torch.randint(1, patches + 1, (batch, 1))).float()
    mask[0] = 1
    return mask.to(CUDA)


def _compressor(preset: str, batch: int, dtype: torch.dtype) -> tuple:
    p = PRESETS[preset]
    n, d, m, c = p.num_patches, p.text_hidden, p.compressor_hidden, p.num_compressed
    return (
        _randn(batch, n, d, dtype=dtype, scale=3),
        _mask(batch, n),
        _randn(d, dtype=dtype),
        EPS,
        _randn(m, n, dtype=dtype, scale=n**-0.5),
        _randn(m, dtype=dtype),
        _randn(c, m, dtype=dtype, scale=m**-0.5),
        _randn(c, dtype=dtype),
    )


def _cross(preset: str, batch: int, tokens: int, dtype: torch.dtype) -> tuple:
    p = PRESETS[preset]
    d = p.text_hidden
    text = _randn(batch, tokens, d, dtype=dtype, scale=3)
    key, value = _randn(batch, p.num_patches, 2, p.text_heads, p.text_head_dim, dtype=dtype).permute(2, 0, 3, 1, 4)
    weights = (_randn(d, dtype=dtype), EPS, _randn(d, d, dtype=dtype, scale=d**-0.5), _randn(d, dtype=dtype))
    return (text, key, value, _mask(batch, p.num_patches), *weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_compress(preset: str, batch: int, dtype: torch.dtype) -> None:
    arguments = _compressor(preset, batch, dtype)
    exact = compress_reference(*doubled(arguments))
    assert_as_good_as_torch(run_poisoned(compress, *arguments), compress_reference(*arguments), exact)


@pytest.mark.parametrize("precision", precisions())
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_compress_in_eight_bit(preset: str, batch: int, precision: str) -> None:
    plain = _compressor(preset, batch, torch.float16)
    visual, mask, gain, eps, w1, b1, w2, b2 = plain
    x = visual.float()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain.float() * mask[..., None]
    hidden = torch.nn.functional.gelu(torch.matmul(w1.float(), normed) + b1.float()[:, None])
    scales = torch.cat([activation_scale(t, precision) for t in (normed, hidden)])
    (q1, s1), (q2, s2) = quantise_rows(w1, precision), quantise_rows(w2, precision)
    arguments = (visual, mask, gain, eps, q1, s1, b1, q2, s2, b2, scales)
    ours = run_poisoned(compress_quantised, *arguments)
    theirs = compress_quantised_reference(*arguments)
    exact = compress_reference(*doubled(plain))
    # A value on the border of two 8-bit ones may fall to either: the mean error tells, and the largest stays near.
    error, error_theirs = ((t.double() - exact).abs() for t in (ours, theirs))
    assert float(error.mean()) <= 1.05 * float(error_theirs.mean())
    assert float(error.max()) <= 2 * float(error_theirs.max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 64), (3, 17), (16, 64), (2, 256)])
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_attention_with_and_without_queries(preset: str, batch: int, tokens: int, dtype: torch.dtype) -> None:
    arguments = _cross(preset, batch, tokens, dtype)
    ours = run_poisoned(cross_attention, *arguments)
    assert_as_good_as_torch(ours, cross_attention_reference(*arguments), cross_attention_reference(*doubled(arguments)))
    heads, dim = arguments[1].shape[1], arguments[1].shape[3]
    given = (_randn(batch, heads, tokens, dim, dtype=dtype), *arguments[1:4])
    exact = fusion_attention_reference(*doubled(given))
    assert_as_good_as_torch(run_poisoned(fusion_attention, *given), fusion_attention_reference(*given), exact)


@pytest.mark.parametrize("precision", precisions())
@pytest.mark.parametrize(("batch", "tokens"), [(1, 64), (16, 64)])
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_attention_in_eight_bit(preset: str, batch: int, tokens: int, precision: str) -> None:
    text, key, value, *rest = _cross(preset, batch, tokens, torch.float16)
    scales = torch.stack([t.float().abs().amax((0, 2, 3)) / LARGEST[precision] for t in (key, value)])
    key8, value8 = (to_eight_bit(t, s[:, None, None], precision) for t, s in zip((key, value), scales, strict=True))
    ours = run_poisoned(cross_attention_quantised, text, key8, value8, scales, *rest)
    half = cross_attention_quantised_reference(text, key8, value8, scales, *rest)
    exact = cross_attention_reference(*doubled((text, key, value, *rest)))
    # Queries and softmax weights are 8 bit too, the reference's are not: a share of the largest value more.
    share = {"int8": 0.03, "fp8": 0.08}[precision]
    assert_as_good_as_torch(ours, half, exact, floor=share * float(value.abs().max()))
    assert torch.nn.functional.cosine_similarity(ours.double().flatten(), exact.flatten(), 0) > 0.99


ROLES = {
    "fc1": dict(gelu=True, squares_out=False, norm=False, residual=False),
    "fc2": dict(gelu=False, squares_out=True, norm=False, residual=False),
    "kv": dict(gelu=False, squares_out=False, norm=True, residual=False),
    "out": dict(gelu=False, squares_out=False, norm=False, residual=True),
}


@pytest.mark.parametrize("library", [False, True], ids=["ours", "cublas"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [64, 256, 4096, 333])
@pytest.mark.parametrize("role", ROLES)
def test_linear(role: str, rows: int, dtype: torch.dtype, library: bool) -> None:
    inputs, outputs = {"fc1": (1152, 1536), "fc2": (1536, 1536), "kv": (1536, 3072), "out": (1536, 1536)}[role]
    what = ROLES[role]
    x = _randn(rows, inputs, dtype=dtype, scale=2)
    arguments = (
        x,
        _randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5),
        None if role == "out" else _randn(outputs, dtype=dtype),
        _randn(rows, outputs, dtype=dtype) if what["residual"] else None,
        square_sums(x) if what["norm"] else None,
        EPS,
        what["gelu"],
        what["squares_out"],
        library,
    )
    y, sums = run_poisoned(linear, *arguments)
    assert_as_good_as_torch(y, linear_reference(*arguments)[0], linear_reference(*doubled(arguments))[0])
    if what["squares_out"]:
        assert torch.allclose(sums.sum(-1), y.float().pow(2).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("precision", precisions())
@pytest.mark.parametrize("rows", [64, 256, 4096])
@pytest.mark.parametrize("role", ["fc1", "kv"])
def test_linear_in_eight_bit(role: str, rows: int, precision: str) -> None:
    inputs, outputs = 1536, 1536
    x = _randn(rows, inputs, dtype=torch.float16, scale=2)
    squares = square_sums(x) if role == "kv" else None
    normed = x.float() if squares is None else x.float() * torch.rsqrt(squares / inputs + EPS)
    weight8, scale = quantise_rows(_randn(outputs, inputs, dtype=torch.float16, scale=inputs**-0.5), precision)
    x_scale = activation_scale(normed, precision)
    bias = _randn(outputs, dtype=torch.float16)
    arguments = (x, weight8, scale, x_scale, bias, None, squares, EPS, role == "fc1", False, None, torch.float16)
    ours, _ = run_poisoned(linear_quantised, *arguments)
    theirs, _ = linear_quantised_reference(*arguments)
    # The same 8-bit factors: what differs is a value on the border of two, and fp8 sums on Hopper with 14 bits.
    share = {"int8": 2e-3, "fp8": 2e-2}[precision]
    assert float((ours.float() - theirs.float()).abs().max()) <= share * float(theirs.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1536, 256, 8960])
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    x, other = _randn(2, 777, width, dtype=dtype)
    arguments = (x, other, _randn(width, dtype=dtype), EPS)
    y, total = run_poisoned(rms_norm, *arguments)
    theirs, their_total = rms_norm_reference(*arguments)
    assert_as_good_as_torch(y, theirs, rms_norm_reference(*doubled(arguments))[0])
    assert torch.equal(total, their_total)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_through_the_models_ops(dtype: torch.dtype) -> None:
    kernels.register()
    arguments = _compressor("2b", 2, dtype)
    query = _randn(2, 12, 33, 128, dtype=dtype)
    key, value = _randn(2, 2, 12, 256, 128, dtype=dtype)
    mask = _mask(2, 256)
    found = {}
    for mode in ("reference", "triton"):
        leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
        leaves[1] = arguments[1]
        heads = [x.clone().requires_grad_() for x in (query, key, value)]
        with kernels.using(mode):
            out = torch.ops.auroraedge.compress(*leaves)
            attended = torch.ops.auroraedge.fusion_attention(*heads, mask)
        # A gradient that does not depend on the forward result: both modes get the same one.
        torch.manual_seed(1)
        torch.autograd.backward([out, attended], [torch.randn_like(out), torch.randn_like(attended)])
        found[mode] = [t.grad for t in (*leaves, *heads) if isinstance(t, torch.Tensor) and t.requires_grad]
    kernels.unregister()
    assert len(found["triton"]) == 9
    for ours, theirs in zip(found["triton"], found["reference"], strict=True):
        # The reference's gradient from the same inputs; products may sum in another order.
        assert (ours - theirs).abs().max() <= 0.01 * theirs.abs().max()


def _nano() -> object:
    from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration

    model = AuroraEdgeForConditionalGeneration(AuroraEdgeConfig.from_preset("nano")).to(CUDA, torch.float16).eval()
    torch.nn.init.normal_(model.compressor.w2, std=0.1)
    return model


@torch.no_grad()
def test_the_model_answers_alike_with_kernels_fused_connectors_and_cuda_graphs() -> None:
    from kernels.connectors import fuse_connectors

    kernels.register()
    model = _nano()
    pixels = _randn(3, 256, 768, dtype=torch.float16)
    ids = torch.randint(0, 1000, (3, 33), device=CUDA)
    text_mask, patch_mask = torch.ones_like(ids), _mask(3, 256)

    def run() -> tuple[torch.Tensor, ...]:
        visual, compressed, _ = model.encode(pixels, patch_mask, torch.full((3, 2), 16, device=CUDA))
        return compressed, model.fuse(ids, text_mask, visual, patch_mask)

    with kernels.using("reference"):
        plain = run()
    with kernels.using("triton"):
        ours = run()
    with fuse_connectors(model):
        fused = run()
        # The position table's resize reads sizes on the host, so the connectors alone are captured.
        features = model.vision_model(
            pixel_values=pixels, pixel_attention_mask=patch_mask.long(), spatial_shapes=torch.full((3, 2), 16)
        ).last_hidden_state
        graph = torch.cuda.CUDAGraph()
        model.compressor(model.projector(features), patch_mask)
        with torch.cuda.graph(graph):
            captured = model.compressor(model.projector(features), patch_mask)
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
    kernels.unregister()
    for theirs, *others in zip(plain, ours, fused, strict=True):
        for other in others:
            difference = (other.float() - theirs.float()).abs().max()
            assert difference <= 0.02 * theirs.float().abs().max()
    assert torch.allclose(captured, fused[0], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_the_connectors_take_six_launches() -> None:
    from benchmarks.kernels import count_launches, make_connectors, run_connectors
    from kernels.connectors import FusedConnectors

    model = make_connectors("2b", torch.device(CUDA), torch.float16)
    features, text = _randn(1, 256, 1152, dtype=torch.float16), _randn(1, 64, 1536, dtype=torch.float16)
    mask = _mask(1, 256)
    fused = FusedConnectors(model)

    def ours() -> object:
        visual = fused.project(features)
        return fused.compress(visual, mask), fused.attend(text, visual, mask)

    names = count_launches(ours)
    assert len(names) <= 6, names
    assert len(count_launches(lambda: run_connectors(model, features, text, mask))) > 20


@torch.no_grad()
def test_torch_compile_takes_the_ops() -> None:
    arguments = _compressor("2b", 2, torch.float16)
    compiled = torch.compile(lambda *a: compress(*a) * 2, fullgraph=True)
    assert torch.equal(compiled(*arguments), compress(*arguments) * 2)


def test_another_stream_and_repeated_calls_give_the_same_bits() -> None:
    arguments = _compressor("2b", 4, torch.float16)
    first = compress(*arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        others = [compress(*arguments) for _ in range(20)]
    stream.synchronize()
    assert all(torch.equal(first, other) for other in others)
