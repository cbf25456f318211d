"""The connectors' kernels against eager PyTorch, torch.compile and CUDA graphs, beside the floor of the hardware.

    python -m benchmarks.kernels                       on a GPU: parity first, then times
    python -m benchmarks.kernels --gpu orin            without one: floors, launches and compile-time resources

A floor is the larger of bytes / bandwidth and operations / matrix rate; bytes are inputs, weights and results once
each. On a GPU bandwidth and rate are measured here (a copy of 1 GB, a product of 8192 x 8192); without one they are the
maker's published peaks, and so labelled. Times are of calls one after the other, so that launches count; data may lie
in the cache, as it does behind the encoder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from auroraedge.config import PRESETS
from auroraedge.model import AuroraEdgeConfig
from auroraedge.model.modeling import Compressor, CrossAttention, Projector
from auroraedge.ops import compress_reference, fusion_attention_reference
from benchmarks.environment import environment, percentiles
from kernels.compressor.op import compress
from kernels.connectors import FusedConnectors, fuse_connectors
from kernels.fusion_attention.op import fusion_attention
from kernels.gpus import GPUS, PTX_VERSIONS, nearest_gpu
from kernels.rms_norm.op import rms_norm, rms_norm_reference

BATCHES = (1, 4, 16)
PROMPT = 64


@dataclass(frozen=True, kw_only=True)
class Work:
    """What has to be done at least. bytes: inputs, weights, results once each; operations: two for a multiply-add."""

    bytes: float
    operations: float

    def floor_us(self, bandwidth: float, rate: float) -> float:
        """Microseconds that no implementation beats. bandwidth: bytes a second; rate: operations a second."""
        return 1e6 * max(self.bytes / bandwidth, self.operations / rate)


@dataclass(kw_only=True)
class Case:
    """One op at one batch. contenders: by name, calls without arguments; exact: the result in float64."""

    name: str
    views: int
    work: Work
    contenders: dict[str, Callable[[], Any]]
    exact: Callable[[], Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a preset's connectors."""

    patches: int
    tokens: int
    hidden: int
    encoder: int
    width: int
    heads: int
    prompt: int = PROMPT

    @classmethod
    def of(cls, preset: str) -> Sizes:
        p = PRESETS[preset]
        return cls(
            patches=p.num_patches,
            tokens=p.num_compressed,
            hidden=p.compressor_hidden,
            encoder=p.vision_hidden,
            width=p.text_hidden,
            heads=p.text_heads,
        )

    def work(self, what: str, views: int, size: int) -> Work:
        """size: bytes of a value."""
        n, c, m, e, d, t = self.patches, self.tokens, self.hidden, self.encoder, self.width, self.prompt
        if what == "compressor":
            return Work(
                bytes=size * (views * (n + c) * d + m * (n + c) + d) + 4 * views * n,
                operations=2 * views * d * m * (n + c),
            )
        if what == "attention":
            return Work(bytes=size * views * d * 2 * (t + n), operations=4 * views * t * n * d)
        if what == "rms norm":
            return Work(bytes=size * 4 * views * t * d, operations=0)
        assert what == "connectors"
        weights = e * d + d * d + m * (n + c) + 4 * d * d
        values = views * (n * e + n * d + c * d + 2 * t * d)
        products = n * e * d + n * d * d + d * m * (n + c) + 2 * n * d * d + 2 * t * d * d + 2 * t * n * d
        return Work(bytes=size * (weights + values), operations=2 * views * products)


# --- what runs -------------------------------------------------------------------------------------------------------


def make_connectors(preset: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Projector, compressor and cross-attention of a preset with random weights, in the shape that a model has them."""
    config = AuroraEdgeConfig.from_preset(preset)
    torch.manual_seed(0)
    parts = Projector(config), Compressor(config), CrossAttention(config)
    for part in parts:
        for parameter in part.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            torch.nn.init.normal_(parameter, std=scale)
        part.to(device=device, dtype=dtype).eval().requires_grad_(False)
    projector, compressor, cross = parts
    return SimpleNamespace(projector=projector, compressor=compressor, fusion=SimpleNamespace(cross=cross))


def run_connectors(model: Any, features: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> tuple:
    visual = model.projector(features)
    return model.compressor(visual, mask), model.fusion.cross(text, visual, mask)


def graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call as a CUDA graph."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def _contenders(
    eager: Callable[[], Any], ours: Callable[[], Any], device: torch.device, compiled: bool, **more: Callable[[], Any]
) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {"eager": eager}
    if compiled:
        found["compile"] = torch.compile(eager, dynamic=False)
    found |= {"ours": ours, **more}
    if device.type == "cuda":
        found |= {f"{name} + graph": graphed(call, device) for name, call in list(found.items())}
    return found


def make_cases(
    preset: str, views: int, device: torch.device, dtype: torch.dtype, *, compiled: bool
) -> list[tuple[Case, Any]]:
    """All cases of a batch, with what must be kept alive while they run."""
    sizes = Sizes.of(preset)
    size = torch.empty(0, dtype=dtype).element_size()
    model = make_connectors(preset, device, dtype)
    double = make_connectors(preset, torch.device("cpu"), torch.float64)
    make = dict(device=device, dtype=dtype)
    features = torch.randn(views, sizes.patches, sizes.encoder, **make)
    text = torch.randn(views, sizes.prompt, sizes.width, **make)
    visual = torch.randn(views, sizes.patches, sizes.width, **make)
    mask = torch.ones(views, sizes.patches, device=device)
    mask[0, sizes.patches * 3 // 4 :] = 0
    c = model.compressor
    weights = (c.norm.weight, c.norm.variance_epsilon, c.w1, c.b1, c.w2, c.b2)
    weights64 = tuple(w.double().cpu() if isinstance(w, torch.Tensor) else w for w in weights)
    heads = (views, sizes.heads, sizes.prompt, sizes.width // sizes.heads)
    query = torch.randn(*heads, **make)
    key, value = (torch.randn(*heads[:2], sizes.patches, heads[3], **make) for _ in range(2))
    gain = torch.randn(sizes.width, **make)

    def fused(library: bool) -> Callable[[], Any]:
        parts = FusedConnectors(model, library=library)

        def run() -> Any:
            made = parts.project(features)
            return parts.compress(made, mask), parts.attend(text, made, mask)

        return run

    in_double = [tensor.double().cpu() for tensor in (features, text, visual, mask, query, key, value, gain)]
    f64, t64, v64, m64, q64, k64, value64, g64 = in_double
    cases = [
        Case(
            name="compressor",
            views=views,
            work=sizes.work("compressor", views, size),
            contenders=_contenders(
                lambda: compress_reference(visual, mask, *weights),
                lambda: compress(visual, mask, *weights),
                device,
                compiled,
            ),
            exact=lambda: compress_reference(v64, m64, *weights64),
        ),
        Case(
            name="attention",
            views=views,
            work=sizes.work("attention", views, size),
            contenders=_contenders(
                lambda: fusion_attention_reference(query, key, value, mask),
                lambda: fusion_attention(query, key, value, mask),
                device,
                compiled,
                **{
                    "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(
                        query, key, value, attn_mask=((1.0 - mask) * -6e4).to(dtype)[:, None, None]
                    )
                },
            ),
            exact=lambda: fusion_attention_reference(q64, k64, value64, m64),
        ),
        Case(
            name="rms norm",
            views=views,
            work=sizes.work("rms norm", views, size),
            contenders=_contenders(
                lambda: rms_norm_reference(text, text, gain, 1e-6)[0],
                lambda: rms_norm(text, text, gain, 1e-6)[0],
                device,
                compiled,
            ),
            exact=lambda: rms_norm_reference(t64, t64, g64, 1e-6)[0],
        ),
        Case(
            name="connectors",
            views=views,
            work=sizes.work("connectors", views, size),
            contenders=_contenders(
                lambda: run_connectors(model, features, text, mask),
                fused(False),
                device,
                compiled,
                **{"ours, cuBLAS": fused(True)},
            ),
            exact=lambda: run_connectors(double, f64, t64, m64),
        ),
    ]
    # The double model must have the very weights of the other, rounded as they are.
    for part in ("projector", "compressor"):
        getattr(double, part).load_state_dict(
            {k: v.double().cpu() for k, v in getattr(model, part).state_dict().items()}
        )
    cross = model.fusion.cross.state_dict()
    double.fusion.cross.load_state_dict({k: v.double().cpu() for k, v in cross.items()})
    return [(case, model) for case in cases]


# --- measuring -------------------------------------------------------------------------------------------------------


def time_us(call: Callable[[], Any], device: torch.device, *, samples: int = 30, inner: int = 20) -> list[float]:
    """Microseconds of a call: `samples` stretches of `inner` calls one after the other, after warming up."""
    for _ in range(max(3, inner // 2)):
        call()
    found = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        for _ in range(samples):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(inner):
                call()
            end.record()
            torch.cuda.synchronize(device)
            found.append(start.elapsed_time(end) * 1e3 / inner)
        return found
    for _ in range(samples):
        began = time.perf_counter()
        for _ in range(inner):
            call()
        found.append((time.perf_counter() - began) * 1e6 / inner)
    return found


def measured_peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(bytes a second of a copy, operations a second of a product): the best of a few on this GPU."""

    def best(call: Callable[[], Any]) -> float:
        return min(time_us(call, device, samples=10, inner=3))

    source = torch.empty(1 << 29, dtype=torch.int16, device=device)
    target = torch.empty_like(source)
    copy = best(lambda: target.copy_(source))
    a, b = torch.randn(2, 8192, 8192, device=device, dtype=dtype)
    product = best(lambda: a @ b)
    return 2 * 2**30 / (copy * 1e-6), 2 * 8192**3 / (product * 1e-6)


class _LaunchCounter(TorchDispatchMode):
    """Counts operators that compute; views and shape changes launch nothing."""

    FREE = ("_unsafe_view", "detach", "lift_fresh", "scalar_tensor", "empty", "new_empty")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0]
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if not view and name not in self.FREE:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def count_operators(call: Callable[[], Any]) -> list[str]:
    """Names of the operators of a call that would each be a launch on a GPU."""
    with torch.no_grad(), _LaunchCounter() as counter:
        call()
    return counter.names


def count_launches(call: Callable[[], Any]) -> list[str]:
    """Names of the GPU kernels of a call, from torch's profiler; copies between host and device left out."""
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad():
        call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
    device_type = torch.autograd.DeviceType.CUDA
    return [event.name for event in seen.events() if event.device_type == device_type]


def check_parity(case: Case, tolerance: float = 2.0) -> dict[str, Any]:
    """err_ours <= tolerance * err_eager + floor against float64, for every contender of ours."""
    exact = case.exact()
    exact = exact if isinstance(exact, tuple) else (exact,)
    errors: dict[str, float] = {}
    for name in ("eager", *(n for n in case.contenders if n.startswith("ours"))):
        found = case.contenders[name]()
        found = found if isinstance(found, tuple) else (found,)
        errors[name] = max(
            float((f.double().cpu() - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True)
        )
    eps = torch.finfo(found[0].dtype).eps
    bound = tolerance * errors["eager"] + (8 * eps if found[0].dtype == torch.float32 else 2 * eps)
    return {"errors": errors, "bound": bound, "passed": all(math.isfinite(e) and e <= bound for e in errors.values())}


def run_cases(
    preset: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    batches: tuple[int, ...] = BATCHES,
    compiled: bool = True,
    samples: int = 30,
    inner: int = 20,
    console: Console | None = None,
) -> dict[str, Any]:
    """Parity and times of every case; the report as plain data."""
    console = console or Console()
    on_gpu = device.type == "cuda"
    bandwidth, rate = measured_peaks(device, dtype) if on_gpu else (math.nan, math.nan)
    rows = []
    with torch.no_grad():
        for views in batches:
            for case, _keep in make_cases(preset, views, device, dtype, compiled=compiled):
                parity = check_parity(case)
                row: dict[str, Any] = {
                    "case": case.name,
                    "views": views,
                    **asdict(case.work),
                    "floor_us": case.work.floor_us(bandwidth, rate),
                    "parity": parity,
                    "contenders": {},
                }
                for name, call in case.contenders.items():
                    times = time_us(call, device, samples=samples, inner=inner)
                    entry = {"us": percentiles(times), "samples_us": times}
                    if on_gpu and "graph" not in name:
                        entry["launches"] = len(count_launches(call))
                    entry["times_floor"] = entry["us"]["p50"] / row["floor_us"]  # type: ignore[index]
                    row["contenders"][name] = entry
                rows.append(row)
                state = "parity" if parity["passed"] else "PARITY FAILED"
                console.print(f"{case.name}, {views} views: {state}, {row['contenders']['ours']['us']['p50']:.1f} us")
    return {
        "preset": preset,
        "dtype": str(dtype).removeprefix("torch."),
        "bandwidth": bandwidth,
        "rate": rate,
        "peaks": "measured here" if on_gpu else "none",
        "rows": rows,
    }


def time_table(report: dict[str, Any]) -> Table:
    """Median microseconds, launches and the ratio to the floor."""
    table = Table(title=f"{report['preset']}, {report['dtype']}: median us (launches), times the floor")
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["contenders"]))
    for title in ("case", "views", "floor us", *names, "parity"):
        table.add_column(title, justify="right" if title not in ("case", "parity") else "left")
    for row in report["rows"]:
        cells = []
        for name in names:
            entry = row["contenders"].get(name)
            if entry is None:
                cells.append("")
                continue
            launches = f" ({entry['launches']})" if "launches" in entry else ""
            ratio = f", {entry['times_floor']:.1f}x" if math.isfinite(entry["times_floor"]) else ""
            cells.append(f"{entry['us']['p50']:.1f}{launches}{ratio}")
        floor = f"{row['floor_us']:.1f}" if math.isfinite(row["floor_us"]) else "-"
        passed = "passed" if row["parity"]["passed"] else "FAILED"
        table.add_row(row["case"], str(row["views"]), floor, *cells, passed)
    return table


def dispatch_rows(report: dict[str, Any], gpu: str) -> list[dict[str, Any]]:
    """Rows of kernels/dispatch.json: ours where it beats the best of the library's, both without CUDA graphs."""
    ops = {"compressor": "compress", "attention": "fusion_attention"}
    found = []
    for row in report["rows"]:
        if row["case"] not in ops:
            continue
        times = {name: entry["us"]["p50"] for name, entry in row["contenders"].items() if "graph" not in name}
        best = min(value for name, value in times.items() if not name.startswith("ours"))
        won = row["parity"]["passed"] and times["ours"] < best
        found.append(
            {
                "gpu": gpu,
                "op": ops[row["case"]],
                "dtype": report["dtype"],
                "views": row["views"],
                "winner": "triton" if won else "reference",
                "speedup": round(best / times["ours"], 3),
            }
        )
    return found


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of the times by case and batch, with the floor as a line, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in report["rows"]))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(5 * len(cases), 4))
    for axis, name in zip(axes, cases, strict=True):
        rows = [row for row in report["rows"] if row["case"] == name]
        contenders = list(rows[0]["contenders"])
        width = 0.8 / len(contenders)
        for place, contender in enumerate(contenders):
            heights = [row["contenders"][contender]["us"]["p50"] for row in rows]
            axis.bar([i + place * width for i in range(len(rows))], heights, width, label=contender)
        for i, row in enumerate(rows):
            if math.isfinite(row["floor_us"]):
                axis.hlines(row["floor_us"], i - width / 2, i + 0.8 - width / 2, colors="black", linestyles="dashed")
        axis.set_xticks([i + 0.4 - width / 2 for i in range(len(rows))], [f"{row['views']} views" for row in rows])
        axis.set_yscale("log")
        axis.set_title(name)
        axis.set_ylabel("us, median; dashed: floor")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


# --- without a GPU ---------------------------------------------------------------------------------------------------


def _small(preset: str) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """Connectors and inputs on the CPU, to count operators with; 16 bit, so that casts are counted too."""
    sizes = Sizes.of(preset)
    model = make_connectors(preset, torch.device("cpu"), torch.float16)
    features, text = torch.randn(1, sizes.patches, sizes.encoder), torch.randn(1, 8, sizes.width)
    return model, (features.half(), text.half(), torch.ones(1, sizes.patches))


def operator_counts() -> dict[str, list[str]]:
    """Operators of eager PyTorch and of ours, counted while the nano connectors run on the CPU."""
    model, inputs = _small("nano")
    found = {"eager": count_operators(lambda: run_connectors(model, *inputs))}
    for name, library in (("ours", False), ("ours, cuBLAS", True)):
        with torch.no_grad(), fuse_connectors(model, library=library):
            calls = count_operators(lambda: run_connectors(model, *inputs))
        # With `library` a linear layer is a product of cuBLAS and an epilogue.
        twice = [2 if library and call.endswith("::linear") else 1 for call in calls]
        found[name] = [call for call, count in zip(calls, twice, strict=True) for _ in range(count)]
    return found


def report_without_gpu(preset: str, gpu_name: str, packs: Path | None, console: Console) -> dict[str, Any]:
    """Floors from published peaks, operators that would launch, and what the compiler says of the kernels."""
    gpu, sizes = GPUS[gpu_name], Sizes.of(preset)
    table = Table(title=f"Floors of {preset} on {gpu.title}, fp16, from published peaks; times: not measured")
    for title in ("case", "views", "MB", "GFLOP", "floor us", "bound by"):
        table.add_column(title, justify="right" if title not in ("case", "bound by") else "left")
    floors = []
    for what in ("compressor", "attention", "rms norm", "connectors"):
        for views in BATCHES:
            work = sizes.work(what, views, 2)
            floor = work.floor_us(gpu.bandwidth * 1e9, gpu.rate("float"))
            bound = "bandwidth" if work.bytes / (gpu.bandwidth * 1e9) * 1e6 >= floor else "arithmetic"
            floors.append({"case": what, "views": views, **asdict(work), "floor_us": floor, "bound_by": bound})
            amounts = (f"{work.bytes / 1e6:.1f}", f"{work.operations / 1e9:.2f}", f"{floor:.1f}")
            table.add_row(what, str(views), *amounts, bound)
    console.print(table)
    counts = operator_counts()
    table = Table(title="Launches of projector, compressor and cross-attention: operators counted on the CPU")
    for title in ("", "operators", "which"):
        table.add_column(title)
    for name, names in counts.items():
        by_name = {n: names.count(n) for n in dict.fromkeys(names)}
        shown = ", ".join(f"{n.split('::')[-1]} x{k}" if k > 1 else n.split("::")[-1] for n, k in by_name.items())
        table.add_row(name, str(len(names)), shown)
    console.print(table)
    resources = compiled_resources(gpu.sm, packs, console)
    return {
        "preset": preset,
        "gpu": gpu_name,
        "peaks": "published by the maker",
        "floors": floors,
        "operators": counts,
        "resources": resources,
    }


def compiled_resources(sm: int, packs: Path | None, console: Console) -> list[dict[str, Any]]:
    """Registers and shared memory of what is compiled for a capability; compiled now, reduced, without `packs`."""
    import tempfile

    from kernels.pack import compile_target

    if sm not in PTX_VERSIONS:
        console.print(f"No packs for sm_{sm}: resources left out.")
        return []
    with tempfile.TemporaryDirectory() if packs is None else nullcontext(str(packs)) as folder:
        if packs is None:
            result = compile_target(sm, Path(folder), reduced=True)
            if not result.sound:
                console.print(f"[red]{result.failed or result.abort}[/red]")
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob(f"sm_{sm}/*/pack.json"))]
    table = Table(title=f"Compiled for sm_{sm}")
    for title in ("variant", "threads", "registers", "shared bytes", "spills", "matrix instructions"):
        table.add_column(title, justify="left" if title in ("variant", "matrix instructions") else "right")
    for pack in found:
        instructions = ", ".join(f"{n} {k}" for n, k in pack["instructions"].items())
        numbers = (pack["block"][0], pack["registers"], pack["shared_bytes"], pack["spill_stores"])
        table.add_row(pack["name"], *map(str, numbers), instructions)
    console.print(table)
    keys = ("name", "block", "registers", "shared_bytes", "spill_stores", "instructions")
    return [{key: pack[key] for key in keys} for pack in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="2b")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="orin", help="whose published peaks, without a GPU")
    parser.add_argument("--packs", type=Path, help="folder of kernels.pack; without it a few are compiled now")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG; with a GPU alone")
    options = parser.parse_args()
    console = Console()
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        name = torch.cuda.get_device_name(device)
        found = torch.cuda.get_device_properties(device)
        report = run_cases(options.preset, device, getattr(torch, options.dtype), console=console)
        report |= {"device": name, "gpu": nearest_gpu(found.major * 10 + found.minor, found.multi_processor_count)}
        console.print(time_table(report))
        if options.plot:
            plot(report, options.plot)
        passed = all(row["parity"]["passed"] for row in report["rows"])
    else:
        console.print("No CUDA device: nothing is timed.")
        report, passed = report_without_gpu(options.preset, options.gpu, options.packs, console), True
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"environment": environment(), **report}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
