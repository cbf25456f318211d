"""auroraedge::compress as a TensorRT ahead-of-time plug-in (not run on hardware), and the same in plain layers.

Annotations are read by tensorrt.plugin at run time: no postponed evaluation in this file.
"""

from types import ModuleType
from typing import Any

from kernels.plugins import Packs, PluginOp

ENTRY = "compress_kernel"
# squares: float32 [B, N, parts], mask: float32 [B, N]; dtype: ONNX's number of the activations' type.
FUNCTION = """
<domain: "auroraedge", opset_import: ["" : 20]>
compress <eps, width, dtype> (visual, squares, mask, norm, w1, b1, w2, b2) => (out)
{
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_float = 0.0> ()
    epsilon = Constant <value_float: float = @eps> ()
    count = Constant <value_float: float = @width> ()
    sum = ReduceSum <keepdims = 1> (squares, last)
    mean = Div (sum, count)
    shifted = Add (mean, epsilon)
    root = Sqrt (shifted)
    real = Unsqueeze (mask, last)
    factor = Div (real, root)
    wide = Cast <to = 1> (visual)
    scaled = Mul (wide, factor)
    gain = Cast <to = 1> (norm)
    normed = Mul (scaled, gain)
    present = Greater (real, zero)
    clean = Where (present, normed, zero)
    left = Cast <to: int = @dtype> (clean)
    product = MatMul (w1, left)
    bias1 = Unsqueeze (b1, last)
    hidden = Add (product, bias1)
    active = Gelu <approximate = "tanh"> (hidden)
    mixed = MatMul (w2, active)
    bias2 = Unsqueeze (b2, last)
    out = Add (mixed, bias2)
}
"""


def register(trtp: ModuleType, packs: Packs) -> None:
    fitting = packs.fitting(ENTRY, PRECISION=0)

    @trtp.register("auroraedge::compress")
    def describe(
        visual: trtp.TensorDesc,
        squares: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        norm: trtp.TensorDesc,
        w1: trtp.TensorDesc,
        b1: trtp.TensorDesc,
        w2: trtp.TensorDesc,
        b2: trtp.TensorDesc,
        eps: float,
        width: float,
        dtype: int,
    ) -> trtp.TensorDesc:
        out = visual.like()
        out.shape_expr[1] = w2.shape_expr[0]
        return out

    @trtp.autotune("auroraedge::compress")
    def tune(
        visual: trtp.TensorDesc,
        squares: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        norm: trtp.TensorDesc,
        w1: trtp.TensorDesc,
        b1: trtp.TensorDesc,
        w2: trtp.TensorDesc,
        b2: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        combination = trtp.AutoTuneCombination("FP16, FP32, FP32, FP16, FP16, FP16, FP16, FP16, FP16", "LINEAR")
        combination.tactics(list(range(1, len(fitting) + 1)))
        return [combination]

    @trtp.aot_impl("auroraedge::compress")
    def launch(
        visual: trtp.TensorDesc,
        squares: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        norm: trtp.TensorDesc,
        w1: trtp.TensorDesc,
        b1: trtp.TensorDesc,
        w2: trtp.TensorDesc,
        b2: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> Any:
        dims = {
            "views": visual.shape_expr[0],
            "patches": visual.shape_expr[1],
            "width": visual.shape_expr[2],
            "w1_stride": w1.shape_expr[1],
            "parts": squares.shape_expr[2],
        }
        return fitting[tactic - 1].launch(trtp, dims)


OPS = (PluginOp(name="compress", function=FUNCTION, register=register, entry=ENTRY),)
