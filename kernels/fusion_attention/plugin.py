"""auroraedge::cross_attention as a TensorRT ahead-of-time plug-in (not run on hardware), and the same in plain layers.

Norm of the prompt, query projection and attention; keys and values [B, N, D] as their projections write them.
Annotations are read by tensorrt.plugin at run time: no postponed evaluation in this file.
"""

from types import ModuleType
from typing import Any

from kernels.plugins import Packs, PluginOp

ENTRY = "attention_kernel"
# mask: float32 [B, N]; wq [D, D] as a linear layer has it; scale = 1 / sqrt(d); dtype: ONNX's number of the type.
FUNCTION = """
<domain: "auroraedge", opset_import: ["" : 20]>
cross_attention <eps, heads, scale, dtype> (text, key, value, mask, norm, wq, bq) => (out)
{
    last = Constant <value_ints = [-1]> ()
    epsilon = Constant <value_float: float = @eps> ()
    factor = Constant <value_float: float = @scale> ()
    one = Constant <value_float = 1.0> ()
    masked = Constant <value_float = -1000000000.0> ()
    zeros = Constant <value_ints = [0, 0]> ()
    middle = Constant <value_ints = [1, 2]> ()
    count = Constant <value_int: int = @heads> ()
    counts = Unsqueeze (count, last)
    split = Concat <axis = 0> (zeros, counts, last)
    joined = Concat <axis = 0> (zeros, last)
    wide = Cast <to = 1> (text)
    squared = Mul (wide, wide)
    mean = ReduceMean <keepdims = 1> (squared, last)
    shifted = Add (mean, epsilon)
    root = Sqrt (shifted)
    scaled = Div (wide, root)
    narrow = Cast <to: int = @dtype> (scaled)
    normed = Mul (narrow, norm)
    wqt = Transpose <perm = [1, 0]> (wq)
    projected = MatMul (normed, wqt)
    query = Add (projected, bq)
    q4 = Reshape (query, split)
    k4 = Reshape (key, split)
    v4 = Reshape (value, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    v = Transpose <perm = [0, 2, 1, 3]> (v4)
    products = MatMul (q, kt)
    scores = Cast <to = 1> (products)
    weighted = Mul (scores, factor)
    padded = Sub (one, mask)
    penalty = Mul (padded, masked)
    bias = Unsqueeze (penalty, middle)
    biased = Add (weighted, bias)
    shares = Softmax <axis = -1> (biased)
    weights = Cast <to: int = @dtype> (shares)
    seen = MatMul (weights, v)
    back = Transpose <perm = [0, 2, 1, 3]> (seen)
    out = Reshape (back, joined)
}
"""


def register(trtp: ModuleType, packs: Packs) -> None:
    fitting = packs.fitting(ENTRY, PRECISION=0, FUSE_Q=True)

    @trtp.register("auroraedge::cross_attention")
    def describe(
        text: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        norm: trtp.TensorDesc,
        wq: trtp.TensorDesc,
        bq: trtp.TensorDesc,
        eps: float,
        heads: int,
        scale: float,
        dtype: int,
    ) -> trtp.TensorDesc:
        return text.like()

    @trtp.autotune("auroraedge::cross_attention")
    def tune(
        text: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        norm: trtp.TensorDesc,
        wq: trtp.TensorDesc,
        bq: trtp.TensorDesc,
        heads: int,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        combination = trtp.AutoTuneCombination("FP16, FP16, FP16, FP32, FP16, FP16, FP16, FP16", "LINEAR")
        width = text.shape_expr[2].constant_value()
        combination.tactics([place for place, _ in _of_this_size(width, heads)])
        return [combination]

    def _of_this_size(width: int, heads: int) -> list[tuple[int, Any]]:
        """(tactic, pack) for a width and head dimension: both are constants of the kernel."""
        wanted = {"WIDTH": width, "DIM": width // heads}
        return [
            (place, pack)
            for place, pack in enumerate(fitting, 1)
            if all(pack.content["constexprs"][name] == value for name, value in wanted.items())
        ]

    @trtp.aot_impl("auroraedge::cross_attention")
    def launch(
        text: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        norm: trtp.TensorDesc,
        wq: trtp.TensorDesc,
        bq: trtp.TensorDesc,
        heads: int,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> Any:
        width = text.shape_expr[2].constant_value()
        dims = {
            "views": text.shape_expr[0],
            "tokens": text.shape_expr[1],
            "patches": key.shape_expr[1],
            "heads": heads,
            # The kernel makes its own queries.
            **dict.fromkeys(("query_stride_b", "query_stride_h", "query_stride_t"), 0),
            "kv_stride_b": key.shape_expr[1] * width,
            "kv_stride_h": width // heads,
            "kv_stride_n": width,
        }
        return fitting[tactic - 1].launch(trtp, dims)


OPS = (PluginOp(name="cross_attention", function=FUNCTION, register=register, entry=ENTRY),)
