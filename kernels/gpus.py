"""The GPUs that tiles are chosen for, and what their drivers accept.

Peak figures are the makers' published ones (dense, without sparsity): they serve floors where nothing was measured, and
are labelled so wherever they are printed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """sm: compute capability without its dot. Peaks: bandwidth GB/s, matrix arithmetic 10^12 operations a second."""

    title: str
    sm: int
    sm_count: int
    bandwidth: float
    fp16: float
    int8: float
    fp8: float = 0.0  # 0: the hardware has none

    def rate(self, precision: str) -> float:
        """Operations a second of 'float' (fp16 and bf16), 'int8' or 'fp8'."""
        return {"float": self.fp16, "int8": self.int8, "fp8": self.fp8}[precision] * 1e12


# Sources: NVIDIA's data sheets and architecture white papers of each product. Jetson and RTX figures are stated there
# with sparsity in part; they are halved here. The RTX rows are small cards (engine_build/targets), except the last.
GPUS: dict[str, Gpu] = {
    "orin-nano": Gpu(title="Jetson Orin Nano 8 GB", sm=87, sm_count=8, bandwidth=68, fp16=10, int8=20),
    "orin-nx": Gpu(title="Jetson Orin NX 16 GB", sm=87, sm_count=8, bandwidth=102, fp16=15, int8=30),
    "orin": Gpu(title="Jetson AGX Orin 64 GB", sm=87, sm_count=16, bandwidth=205, fp16=43, int8=85),
    "a100": Gpu(title="A100 80 GB", sm=80, sm_count=108, bandwidth=2039, fp16=312, int8=624),
    "rtx-ampere": Gpu(title="RTX A2000", sm=86, sm_count=26, bandwidth=288, fp16=32, int8=64),
    "l4": Gpu(title="L4 24 GB", sm=89, sm_count=58, bandwidth=300, fp16=121, int8=242, fp8=242),
    "l40s": Gpu(title="L40S 48 GB", sm=89, sm_count=142, bandwidth=864, fp16=362, int8=733, fp8=733),
    "rtx-ada": Gpu(title="RTX 2000 Ada", sm=89, sm_count=22, bandwidth=224, fp16=48, int8=96, fp8=96),
    "h100": Gpu(title="H100 SXM 80 GB", sm=90, sm_count=132, bandwidth=3350, fp16=989, int8=1979, fp8=1979),
    "h200": Gpu(title="H200 141 GB", sm=90, sm_count=132, bandwidth=4800, fp16=989, int8=1979, fp8=1979),
    "b200": Gpu(title="B200 180 GB", sm=100, sm_count=148, bandwidth=8000, fp16=2250, int8=4500, fp8=4500),
    "thor": Gpu(title="Jetson AGX Thor 128 GB", sm=110, sm_count=20, bandwidth=273, fp16=250, int8=500, fp8=500),
    "rtx-blackwell": Gpu(
        title="RTX PRO 2000 Blackwell", sm=120, sm_count=30, bandwidth=288, fp16=68, int8=136, fp8=136
    ),
    "rtx-pro-6000": Gpu(title="RTX PRO 6000", sm=120, sm_count=188, bandwidth=1792, fp16=500, int8=1000, fp8=1000),
}

# What is compiled for a capability: the PTX version, and the oldest driver that accepts it. Sources: the PTX ISA
# manual's release notes (which capability needs which version, and the CUDA release of each version), the CUDA release
# notes (driver of each CUDA release) and the JetPack release notes (CUDA of each JetPack).
PTX_VERSIONS: dict[int, tuple[int, str]] = {
    80: (82, "CUDA 12.2, driver 535"),
    86: (82, "CUDA 12.2, driver 535"),
    87: (82, "CUDA 12.2, JetPack 6.0"),
    89: (84, "CUDA 12.4, driver 550"),  # fp8 mma of sm_89 came with PTX 8.4
    90: (82, "CUDA 12.2, driver 535"),
    100: (86, "CUDA 12.7, driver 565"),
    120: (87, "CUDA 12.8, driver 570"),
}


def nearest_gpu(sm: int, sm_count: int) -> str:
    """The class of a GPU that is there: same capability if any has it, then the nearest number of processors."""
    return min(GPUS, key=lambda name: (abs(GPUS[name].sm - sm), abs(GPUS[name].sm_count - sm_count)))


def precisions_of(sm: int) -> tuple[str, ...]:
    """Precisions that a capability's matrix units have. sm_100 and sm_110 are given FP8 instead of INT8."""
    if sm < 89:
        return ("float", "int8")
    return ("float", "fp8") if 100 <= sm < 120 else ("float", "int8", "fp8")
