"""auroraedge::add_rms_norm as a TensorRT ahead-of-time plug-in (not run on hardware), and the same in plain layers.

The residual addition and the RMSNorm after it, in one pass. Annotations are read by tensorrt.plugin at run time: no
postponed evaluation in this file.
"""

from types import ModuleType
from typing import Any

from kernels.plugins import Packs, PluginOp

ENTRY = "rms_norm_kernel"
# x, residual [B, n, D], gain [D] -> y, sum [B, n, D]; dtype: ONNX's number of the type.
FUNCTION = """
<domain: "auroraedge", opset_import: ["" : 20]>
add_rms_norm <eps, dtype> (x, residual, gain) => (y, sum)
{
    last = Constant <value_ints = [-1]> ()
    epsilon = Constant <value_float: float = @eps> ()
    sum = Add (x, residual)
    wide = Cast <to = 1> (sum)
    squared = Mul (wide, wide)
    mean = ReduceMean <keepdims = 1> (squared, last)
    shifted = Add (mean, epsilon)
    root = Sqrt (shifted)
    scaled = Div (wide, root)
    narrow = Cast <to: int = @dtype> (scaled)
    y = Mul (narrow, gain)
}
"""


def register(trtp: ModuleType, packs: Packs) -> None:
    fitting = packs.fitting(ENTRY, HAS_RESIDUAL=True)

    def _of_this_width(width: int) -> list[int]:
        """Tactics whose rows fit the registers: the block is the power of two at or above the width."""
        block = 1 << (width - 1).bit_length()
        return [place for place, pack in enumerate(fitting, 1) if pack.content["constexprs"]["BLOCK_D"] == block]

    @trtp.register("auroraedge::add_rms_norm")
    def describe(
        x: trtp.TensorDesc, residual: trtp.TensorDesc, gain: trtp.TensorDesc, eps: float, dtype: int
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        return x.like(), x.like()

    @trtp.autotune("auroraedge::add_rms_norm")
    def tune(
        x: trtp.TensorDesc,
        residual: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        combination = trtp.AutoTuneCombination("FP16, FP16, FP16, FP16, FP16", "LINEAR")
        combination.tactics(_of_this_width(x.shape_expr[2].constant_value()))
        return [combination]

    @trtp.aot_impl("auroraedge::add_rms_norm")
    def launch(
        x: trtp.TensorDesc,
        residual: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
        tactic: int,
    ) -> Any:
        shape = x.shape_expr
        return fitting[tactic - 1].launch(trtp, {"rows": shape[0] * shape[1], "width": shape[2]})


OPS = (PluginOp(name="add_rms_norm", function=FUNCTION, register=register, entry=ENTRY),)
