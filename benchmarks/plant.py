"""A plant on paper: how many devices, how much network and store a number of cameras needs.

    python -m benchmarks.plant [--cameras 1000] [--rate 2] [--megapixels 5] ... [--json FILE]

Every line of the answer is arithmetic on the assumptions that are printed with it. Where one was measured, its
source is the file and case it was read from; where it is a data sheet's figure, the sheet is named; the rest are
estimates and say so. Nothing of a GPU was measured for this model: the times there are the roofline of the operations
and bytes of one view, divided by an assumed share of the peak, and are labelled as estimates throughout.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from benchmarks.suite import RESULTS, read_document

SECONDS_A_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a data sheet says, dense (no sparsity). tflops: float16 with float32 sums (tensor cores); bandwidth_gb_s: of
    its memory; memory_gb; power_w: of the module or board."""

    name: str
    tflops: float
    bandwidth_gb_s: float
    memory_gb: float
    power_w: float
    source: str


DEVICES = (
    Device(name="Jetson AGX Orin 64 GB", tflops=42.5, bandwidth_gb_s=204.8, memory_gb=64, power_w=60,
           source="NVIDIA Jetson AGX Orin data sheet: 170 sparse INT8 TOPS of the GPU, 85 dense, half in FP16"),
    Device(name="H100 SXM", tflops=989.0, bandwidth_gb_s=3350.0, memory_gb=80, power_w=700,
           source="NVIDIA H100 data sheet, SXM5, dense FP16"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Of the plant and the model. share_compute: of the peak that the encoder and prefill reach; share_bandwidth: of
    the peak that token-by-token decoding reaches; batch: views that share one pass; headroom: share of a device left
    free for peaks; ng_share: frames that are not OK; jpeg_bits: a pixel of a stored frame."""

    cameras: int = 1000
    rate: float = 2.0  # frames a second and camera, averaged over a running shift
    hours: float = 16.0  # of production a day
    megapixels: float = 5.0
    view_px: int = 1024
    overlap_px: int = 64
    prompt_tokens: int = 64
    answer_tokens: int = 20
    ng_share: float = 0.02
    share_compute: float = 0.35
    share_bandwidth: float = 0.6
    batch: int = 8
    headroom: float = 0.3
    jpeg_bits: float = 2.0
    raw_bits: float = 8.0  # mono or Bayer from the camera
    record_bytes: int = 4096
    keep_days: int = 90
    preset: str = "2b"

    def __post_init__(self) -> None:
        for name in ("cameras", "rate", "hours", "megapixels", "view_px", "batch", "share_compute", "share_bandwidth"):
            if getattr(self, name) <= 0:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}; it must be positive.", field=name)
        if self.overlap_px * 2 > self.view_px:
            raise InvalidRequestError("overlap_px is more than half of view_px.", field="overlap_px")
        for name in ("ng_share", "headroom"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} must be in 0..1, below 1.", field=name)

    @property
    def views(self) -> int:
        """Of a frame of 5:4, as the tiling plans them."""
        height = math.sqrt(self.megapixels * 1e6 / 1.25)

        def along(length: float) -> int:
            if length <= self.view_px:
                return 1
            return 1 + math.ceil((length - self.view_px) / (self.view_px - self.overlap_px))

        return along(1.25 * height) * along(height)


SOURCES = {
    "rate": "estimate: a part every half second",
    "hours": "estimate: two shifts",
    "megapixels": "estimate: the commonest area camera of inspection lines",
    "view_px": "estimate: a view is resized to 256 px, so a defect of 8 px in the frame is 2 px for the model",
    "ng_share": "estimate: of frames that are not OK and whose defects are decoded and whose picture is kept",
    "share_compute": "estimate: share of the dense peak; not measured here",
    "share_bandwidth": "target of the GPU suite (>= 60 % of the bandwidth floor); not measured here",
    "batch": "the service batches what waits; 8 views share one pass over the decoder's weights",
    "headroom": "estimate",
    "jpeg_bits": "estimate: JPEG of quality 90 on a machined surface",
    "raw_bits": "8-bit mono or Bayer, as GenICam cameras send them",
    "record_bytes": "estimate: a result as stored, with its audit entry",
    "keep_days": "estimate",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    device: Device
    seconds_a_view: float
    seconds_an_answer: float
    devices: int
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Plant:
    """The whole plant. camera_gbit_s: from cameras to devices, raw. store_*: pictures of frames that are not OK, and
    records of all."""

    frames_a_second: float
    views_a_second: float
    estimates: tuple[Estimate, ...]
    camera_gbit_s: float
    server_gbit_s_to_store: float
    records_a_day: float
    store_tb_a_day: float
    store_tb: float
    power_kw: dict[str, float]


def plan(a: Assumptions, devices: tuple[Device, ...] = DEVICES) -> Plant:
    """Work of a view: operations of encoder, connectors and prefill over the peak, or the weights' bytes shared by a
    batch over the bandwidth, whichever is longer. Of an answer: one pass over the decoder's weights a token, shared by
    the batch."""
    from auroraedge.model.flops import auroraedge_shape

    vlm = auroraedge_shape(a.preset)
    first = sum(vlm.count(text=a.prompt_tokens, new=1).values())
    weights = weight_bytes(a.preset)
    frames = a.cameras * a.rate
    views = frames * a.views
    estimates = []
    for device in devices:
        compute = first / (device.tflops * 1e12 * a.share_compute)
        memory = weights["all"] / a.batch / (device.bandwidth_gb_s * 1e9 * a.share_bandwidth)
        view = max(compute, memory)
        step = weights["decoder"] / a.batch / (device.bandwidth_gb_s * 1e9 * a.share_bandwidth)
        answer = step * (a.answer_tokens - 1)
        load = views * view + frames * a.ng_share * answer
        estimates.append(
            Estimate(
                device=device, seconds_a_view=view, seconds_an_answer=answer,
                devices=math.ceil(load / (1 - a.headroom)), fits=weights["all"] < 0.7 * device.memory_gb * 1e9,
            )
        )  # fmt: skip
    seconds = a.hours * 3600
    picture = a.megapixels * 1e6 * a.jpeg_bits / 8
    stored_a_day = frames * seconds * (a.record_bytes + a.ng_share * picture)
    return Plant(
        frames_a_second=frames,
        views_a_second=views,
        estimates=tuple(estimates),
        camera_gbit_s=frames * a.megapixels * 1e6 * a.raw_bits / 1e9,
        server_gbit_s_to_store=frames * (a.record_bytes + a.ng_share * picture) * 8 / 1e9,
        records_a_day=frames * seconds,
        store_tb_a_day=stored_a_day / 1e12,
        store_tb=stored_a_day * a.keep_days / 1e12,
        power_kw={e.device.name: e.devices * e.device.power_w / 1000 for e in estimates},
    )


def weight_bytes(preset: str) -> dict[str, float]:
    """Of the matrices, float16; the embedding table counts once (tied)."""
    from auroraedge.config import PRESETS

    p = PRESETS[preset]
    inner = p.text_heads * p.text_head_dim
    layer = p.text_hidden * (2 * inner + 2 * p.text_kv_heads * p.text_head_dim + 3 * p.text_intermediate)
    decoder = p.text_layers * layer + p.text_hidden * p.vocab_size
    vision = p.vision_layers * (4 * p.vision_hidden**2 + 2 * p.vision_hidden * p.vision_intermediate)
    connectors = p.vision_hidden * p.text_hidden + 5 * p.text_hidden**2 + p.fusion_layers * layer
    return {"decoder": 2.0 * decoder, "all": 2.0 * (decoder + vision + connectors)}


def measured_cpu() -> tuple[float, str] | None:
    """Milliseconds of processor time a view of nano, from the committed run; None where there is none."""
    path = RESULTS / "cpu_scaling.json"
    if not path.is_file():
        return None
    found = read_document(path).find("frames in flight: 8", "ours", "processor time")
    if found is None:
        return None
    ordered = sorted(found.samples)
    return ordered[len(ordered) // 2] / 8, "benchmarks/results/cpu_scaling.json, frames in flight: 8"


def tables(a: Assumptions, plant: Plant) -> list[Table]:
    said = Table("assumption", "value", "source", title="Assumptions")
    for name, value in asdict(a).items():
        said.add_row(name, f"{value:g}" if isinstance(value, int | float) else str(value), SOURCES.get(name, "chosen"))
    for device in DEVICES:
        text = (
            f"{device.tflops:g} TFLOP/s, {device.bandwidth_gb_s:g} GB/s, {device.memory_gb:g} GB, {device.power_w:g} W"
        )
        said.add_row(device.name, text, device.source)
    need = Table("need", "value", title=f"{a.cameras} cameras, AuroraEdge-{a.preset} (estimates)")
    need.add_row("frames a second", f"{plant.frames_a_second:,.0f}")
    need.add_row("views a frame, views a second", f"{a.views}, {plant.views_a_second:,.0f}")
    for e in plant.estimates:
        text = f"{1000 * e.seconds_a_view:.2f} ms a view, {1000 * e.seconds_an_answer:.1f} ms an answer, "
        text += f"{e.devices:,} devices, {plant.power_kw[e.device.name]:,.1f} kW" + ("" if e.fits else ", does not fit")
        need.add_row(e.device.name, text)
    need.add_row("network, cameras to devices", f"{plant.camera_gbit_s:,.0f} Gbit/s raw, in all")
    need.add_row("network, devices to store", f"{plant.server_gbit_s_to_store:,.2f} Gbit/s")
    need.add_row("results a day", f"{plant.records_a_day:,.0f}")
    need.add_row(f"store, a day and {a.keep_days} days", f"{plant.store_tb_a_day:,.2f} TB, {plant.store_tb:,.0f} TB")
    cpu = measured_cpu()
    if cpu is not None:
        cores = plant.views_a_second * cpu[0] / 1000 / (1 - a.headroom)
        need.add_row("nano on CPUs instead", f"{cores:,.0f} cores ({cpu[0]:.0f} ms a view, measured: {cpu[1]})")
    return [said, need]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=SOURCES.get(name))
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args(arguments))
    path = options.pop("json")
    console = Console()
    try:
        assumed = Assumptions(**options)
        plant = plan(assumed)
    except AuroraEdgeError as error:
        console.print(f"[red]error: {error}[/red]")
        return 2
    for table in tables(assumed, plant):
        console.print(table)
    if path:
        content = {"assumptions": asdict(assumed), "sources": SOURCES, "plant": asdict(plant)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
