"""auroraedge::bias_squares, the epilogue of the projector's second layer after TensorRT's own product, as an
ahead-of-time plug-in (not run on hardware), and the same in plain layers.

Bias, and the sums of squares that the compressor's norm and that of keys and values need, in one pass over the result.
Annotations are read by tensorrt.plugin at run time: no postponed evaluation in this file.
"""

from types import ModuleType
from typing import Any

from kernels.plugins import Packs, PluginOp

ENTRY = "epilogue_kernel"
COLUMNS = 128  # of one part of a sum; the width is a multiple of it
# product [B, N, D], bias [D] -> y [B, N, D], squares float32 [B, N, D / 128]
FUNCTION = """
<domain: "auroraedge", opset_import: ["" : 20]>
bias_squares (product, bias) => (y, squares)
{
    last = Constant <value_ints = [-1]> ()
    parts = Constant <value_ints = [0, 0, -1, 128]> ()
    y = Add (product, bias)
    wide = Cast <to = 1> (y)
    squared = Mul (wide, wide)
    grouped = Reshape (squared, parts)
    squares = ReduceSum <keepdims = 0> (grouped, last)
}
"""


def register(trtp: ModuleType, packs: Packs) -> None:
    fitting = packs.fitting(ENTRY, HAS_BIAS=True, WRITE_SQUARES=True, GELU=False, BLOCK_O=COLUMNS)

    @trtp.register("auroraedge::bias_squares")
    def describe(product: trtp.TensorDesc, bias: trtp.TensorDesc) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        import tensorrt

        shape = product.shape_expr
        parts = trtp.ShapeExprs.from_tuple((shape[0], shape[1], trtp.cdiv(shape[2], COLUMNS)))
        return product.like(), trtp.from_shape_expr(parts, dtype=tensorrt.float32)

    @trtp.autotune("auroraedge::bias_squares")
    def tune(
        product: trtp.TensorDesc, bias: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc, trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        combination = trtp.AutoTuneCombination("FP16, FP16, FP16, FP32", "LINEAR")
        combination.tactics(list(range(1, len(fitting) + 1)))
        return [combination]

    @trtp.aot_impl("auroraedge::bias_squares")
    def launch(
        product: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
        tactic: int,
    ) -> Any:
        shape = product.shape_expr
        dims = {"rows": shape[0] * shape[1], "inputs": 1, "outputs": shape[2], "parts": 1}
        return fitting[tactic - 1].launch(trtp, dims)


OPS = (PluginOp(name="bias_squares", function=FUNCTION, register=register, entry=ENTRY),)
