"""The GPU suite: AuroraEdge-2b with random weights of the true shapes against its own uncompressed baseline and other
models' shapes. Where there is no GPU it computes floors and says so.

Measured in one process (a GPU holds one model at a time): time to the verdict at batch 1, 8 and 32, a 20-token answer,
memory, energy where the driver reads it, and the time of each stage beside its roofline. `measure` is also a stage of
benchmarks/gpu_session.py. smoke: the same code with tiny models on a CPU; its figures mean nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from benchmarks.figures import ratio_interval
from benchmarks.suite import Document, Floor, Target

PROMPT, NEW = 64, 20
BATCHES = (1, 8, 32)
OURS = "AuroraEdge-2b"
PLAIN = "uncompressed"
_EAGER = "Qwen2-VL-2B-shaped, eager"
Call = Callable[[], Any]


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _times_ms(call: Call, device: torch.device, rounds: int) -> list[float]:
    """Of each call by the host's clock, the GPU's work included; after three that warm up."""
    for _ in range(3 if rounds > 1 else 1):
        call()
    found = []
    for _ in range(rounds):
        _sync(device)
        started = time.perf_counter()
        call()
        _sync(device)
        found.append((time.perf_counter() - started) * 1000)
    return found


def _energy_mj(device: torch.device) -> int | None:
    """Millijoules that the board has used since the driver was loaded; None where it does not say."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except Exception:  # the package, the driver or the board may lack it, each with an error of its own
        return None


class _Aurora:
    """AuroraEdge in torch. compressed False: the decoder reads 256 visual tokens and the plain prompt."""

    def __init__(self, device: torch.device, dtype: torch.dtype, smoke: bool) -> None:
        from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration

        config = AuroraEdgeConfig.from_preset("nano" if smoke else "2b")
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                self.model = AuroraEdgeForConditionalGeneration(config).to(dtype).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        self.device, self.dtype = device, dtype

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.randn(batch, 256, 768, device=self.device, dtype=self.dtype),
            "input_ids": torch.randint(0, 1000, (batch, PROMPT), device=self.device),
        }

    def embeds(self, inputs: dict[str, torch.Tensor], compressed: bool = True) -> torch.Tensor:
        visual, fewer, mask = self.model.encode(inputs["pixel_values"])
        ids = inputs["input_ids"]
        if not compressed:
            return torch.cat([visual, self.model.get_input_embeddings()(ids)], 1)
        return torch.cat([fewer, self.model.fuse(ids, torch.ones_like(ids), visual, mask)], 1)

    def first(self, inputs: dict[str, torch.Tensor], compressed: bool = True) -> torch.Tensor:
        embeds = self.embeds(inputs, compressed)
        return self.model.language_model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1]

    def answer(self, inputs: dict[str, torch.Tensor], compressed: bool = True) -> torch.Tensor:
        embeds = self.embeds(inputs, compressed)
        mask = torch.ones(embeds.shape[:2], device=self.device, dtype=torch.long)
        return self.model.language_model.generate(
            inputs_embeds=embeds, attention_mask=mask, do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW
        )

    def step(self, batch: int) -> Call:
        """One token of the decoder with a cache in place; what a CUDA graph can hold."""
        from transformers import StaticCache

        decoder = self.model.language_model
        places = 64 + PROMPT + NEW
        cache = StaticCache(config=decoder.config, max_cache_len=places)
        embeds = torch.randn(batch, places - NEW, decoder.config.hidden_size, device=self.device, dtype=self.dtype)
        decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        position = torch.full((batch, 1), places - NEW, dtype=torch.long, device=self.device)
        mask = torch.zeros(batch, 1, 1, places, device=self.device, dtype=self.dtype)
        mask[..., places - NEW + 1 :] = torch.finfo(self.dtype).min

        def run() -> torch.Tensor:
            # The same place is written again and again: the work of a token, without its meaning.
            for layer in cache.layers:
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length = torch.as_tensor(places - NEW, device=self.device)
            return decoder(
                input_ids=ids, position_ids=position, attention_mask=mask, past_key_values=cache, use_cache=True
            ).logits

        return run


def _ways(call: Call, device: torch.device) -> dict[str, Callable[[], Call]]:
    """How a call may be run; each is made only when its turn comes, because it may not work."""
    ways: dict[str, Callable[[], Call]] = {"eager": lambda: call}
    if device.type == "cuda":
        from benchmarks.kernels import graphed

        ways["graph"] = lambda: graphed(call, device)
        ways["compiled"] = lambda: torch.compile(call, dynamic=False)
        ways["compiled, graph"] = lambda: torch.compile(call, dynamic=False, mode="reduce-overhead")
    return ways


def _add(
    document: Document, case: str, name: str, make: Callable[[], Call], device: torch.device, rounds: int, batch: int
) -> list[float]:
    """Times one contender; why it could not be measured goes into the notes."""
    try:
        call = make()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before = _energy_mj(device)
        samples = _times_ms(call, device, rounds)
        after = _energy_mj(device)
    except Exception as error:  # what torch cannot capture, compile or hold comes as many kinds
        document.notes.append(f"{case}, {name}: not measured: {type(error).__name__}: {str(error)[:150]}")
        _sync(device)
        return []
    document.contenders.setdefault(name, name)
    metric = "answer" if "token" in case else "step" if "step" in case else "verdict"
    document.add(case, name, metric, "ms", samples)
    document.add(case, name, "throughput", "1/s", [1000 * batch / ms for ms in samples], "more")
    if device.type == "cuda":
        document.add(case, name, "memory", "MB", [torch.cuda.max_memory_allocated(device) / 1e6])
    if before is not None and after is not None and after > before:
        # Warm-up calls are among them.
        document.add(case, name, "energy", "J", [(after - before) / 1000 / (rounds + 3) / batch])
    return samples


@torch.no_grad()
def measure(
    device: torch.device, dtype: torch.dtype, *, rounds: int = 15, smoke: bool = False, console: Console | None = None
) -> Document:
    """Everything above on `device`."""
    from benchmarks.shapes import SHAPES, make

    console = console or Console()
    title = "AuroraEdge-2b and others' shapes, random weights, on " + (
        torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU (smoke: the figures mean nothing)"
    )
    document = Document(suite="gpu", title=title, settings={"dtype": str(dtype), "rounds": rounds, "smoke": smoke})
    batches = (1,) if smoke else BATCHES
    rounds = 1 if smoke else rounds
    parameters = _aurora(document, device, dtype, rounds, batches, smoke, console)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for shape in SHAPES[1:]:
        _shape(document, make, shape, device, dtype, rounds, batches, smoke)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        console.print(shape)
    _finish(document, device, dtype, parameters, smoke)
    return document


def _aurora(
    document: Document,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    batches: tuple[int, ...],
    smoke: bool,
    console: Console,
) -> int:
    """AuroraEdge and its uncompressed baseline. Returns the bytes of the decoder's matrices."""
    aurora = _Aurora(device, dtype, smoke)
    both = ((OURS, True), (f"{OURS}, {PLAIN}", False))
    for batch in batches:
        inputs = aurora.inputs(batch)
        for name, compressed in both:
            call = functools.partial(aurora.first, inputs, compressed)
            for way, made in _ways(call, device).items():
                if way.startswith("compiled") and batch != 1:
                    continue  # minutes of compiling each
                _add(document, f"verdict, batch {batch}", f"{name}, {way}", made, device, rounds, batch)
            console.print(f"verdict, batch {batch}: {name}")
    single = aurora.inputs(1)
    for name, compressed in both:
        answer = functools.partial(aurora.answer, single, compressed)
        few = max(1, rounds // 3)
        _add(document, f"{NEW}-token answer", f"{name}, eager", lambda call=answer: call, device, few, 1)
    for way, made in _ways_of_step(aurora, device).items():
        _add(document, "decoder step, batch 1", f"{OURS}, {way}", made, device, rounds, 1)
    _stages(document, aurora, device, rounds)
    return _matrix_bytes(aurora.model.language_model)


def _ways_of_step(aurora: _Aurora, device: torch.device) -> dict[str, Callable[[], Call]]:
    ways: dict[str, Callable[[], Call]] = {"eager": lambda: aurora.step(1)}
    if device.type == "cuda":
        from benchmarks.kernels import graphed

        ways["graph"] = lambda: graphed(aurora.step(1), device)
        ways["compiled, graph"] = lambda: torch.compile(aurora.step(1), dynamic=False, mode="reduce-overhead")
    return ways


def _shape(
    document: Document,
    make: Callable[..., Any],
    shape: str,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    batches: tuple[int, ...],
    smoke: bool,
) -> None:
    name = {"qwen2-vl-2b": "Qwen2-VL-2B", "qwen2.5-vl-3b": "Qwen2.5-VL-3B", "internvl2.5-2b": "InternVL2.5-2B"}[shape]
    try:
        made = make(shape, device=device, dtype=dtype, tiny=smoke)
    except Exception as error:  # too little memory, or another version of transformers
        document.notes.append(f"{name}: not measured: {type(error).__name__}: {str(error)[:150]}")
        return
    for batch in batches:
        inputs = made.inputs(batch, PROMPT)
        call = functools.partial(made.first, inputs)
        for way, how in _ways(call, device).items():
            if way != "eager" and batch != 1:
                continue
            _add(document, f"verdict, batch {batch}", f"{name}-shaped, {way}", how, device, rounds, batch)
    answer = functools.partial(made.measure, prompt_tokens=PROMPT, new_tokens=2 if smoke else NEW)
    _add(document, f"{NEW}-token answer", f"{name}-shaped, eager", lambda: answer, device, max(1, rounds // 3), 1)


def _stages(document: Document, aurora: _Aurora, device: torch.device, rounds: int) -> None:
    """Encoder, connectors and prefill by themselves at batch 1, eager."""
    inputs, model = aurora.inputs(1), aurora.model
    visual, _, mask = model.encode(inputs["pixel_values"])
    ids = inputs["input_ids"]
    embeds = aurora.embeds(inputs)
    stages: dict[str, Call] = {
        "encoder, projector, compressor": lambda: model.encode(inputs["pixel_values"]),
        "fusion": lambda: model.fuse(ids, torch.ones_like(ids), visual, mask),
        "prefill": lambda: model.language_model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits,
    }
    for stage, call in stages.items():
        _add(document, f"stage: {stage}", f"{OURS}, eager", lambda call=call: call, device, rounds, 1)


def _matrix_bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.dim() > 1)


def floors(document: Document, gpu: str, preset: str = "2b") -> None:
    """Time to the verdict and of one token at batch 1, from the maker's peaks of `gpu` (kernels.gpus.GPUS)."""
    from auroraedge.model.flops import auroraedge_shape, uncompressed_shape
    from benchmarks.plant import weight_bytes
    from kernels.gpus import GPUS

    peak, weights = GPUS[gpu], weight_bytes(preset)
    for title, vlm in ((OURS, auroraedge_shape(preset)), (f"{OURS}, {PLAIN}", uncompressed_shape(preset))):
        operations = sum(vlm.count(text=PROMPT, new=1).values())
        by_math = operations / peak.rate("float") * 1000
        by_bytes = weights["all"] / (peak.bandwidth * 1e9) * 1000
        how = f"{peak.title}: {operations / 1e12:.2f} TFLOP at {peak.fp16:g} TFLOP/s = {by_math:.2f} ms; "
        how += (
            f"{weights['all'] / 1e9:.2f} GB of weights at {peak.bandwidth:g} GB/s = {by_bytes:.2f} ms; the longer one"
        )
        document.floors.append(
            Floor(case=f"verdict, batch 1, {title}", metric="verdict", unit="ms", value=max(by_math, by_bytes), how=how)
        )
    ms = weights["decoder"] / (peak.bandwidth * 1e9) * 1000
    how = f"{peak.title}: {weights['decoder'] / 1e9:.2f} GB of the decoder's weights once at {peak.bandwidth:g} GB/s"
    document.floors.append(Floor(case="decoder step, batch 1", metric="step", unit="ms", value=ms, how=how))


def _finish(document: Document, device: torch.device, dtype: torch.dtype, decoder_bytes: int, smoke: bool) -> None:
    """Floors of this GPU and the targets."""
    if device.type == "cuda":
        from benchmarks.kernels import measured_peaks
        from kernels.gpus import nearest_gpu
        from kernels.launch import gpu_of

        floors(document, nearest_gpu(*gpu_of(torch.empty(0, device=device))))
        bandwidth = measured_peaks(device, dtype)[0]
        ms = decoder_bytes / bandwidth * 1000
        how = f"{decoder_bytes / 1e9:.2f} GB of the decoder's weights at {bandwidth / 1e9:.0f} GB/s, a measured copy"
        document.floors.append(Floor(case="decoder step, batch 1", metric="step", unit="ms", value=ms, how=how))
        document.settings["measured_bandwidth_gb_s"] = bandwidth / 1e9
    _targets(document, smoke)


def _targets(document: Document, smoke: bool) -> None:
    case = "verdict, batch 1"
    ours = [m for m in document.measurements if m.case == case and m.contender.startswith(f"{OURS}, ")]
    ours = [m for m in ours if PLAIN not in m.contender and m.metric == "verdict"]
    theirs = document.find(case, _EAGER, "verdict")
    wanted = Target(name="time to the verdict against Qwen2-VL-2B-shaped eager", wanted=">= 3x")
    if smoke or theirs is None or not ours:
        why = "smoke run" if smoke else "needs a GPU"
        document.targets.append(wanted.model_copy(update={"note": f"not measured: {why}"}))
    else:
        best = min(ours, key=lambda m: sorted(m.samples)[len(m.samples) // 2])
        found = ratio_interval(theirs.samples, best.samples)
        note = f"{best.contender}; 95 % interval {found.low:.2f} to {found.high:.2f}"
        document.targets.append(
            wanted.model_copy(update={"measured": found.middle, "met": found.middle >= 3, "note": note})
        )
    wanted = Target(name="decoder step with graphs, share of the bandwidth floor", wanted=">= 0.60")
    graph = document.find("decoder step, batch 1", f"{OURS}, graph", "step")
    floor = next((f for f in reversed(document.floors) if f.metric == "step"), None)
    if smoke or graph is None or floor is None or document.settings.get("measured_bandwidth_gb_s") is None:
        why = "smoke run" if smoke else "needs a GPU"
        document.targets.append(wanted.model_copy(update={"note": f"not measured: {why}"}))
    else:
        share = floor.value / sorted(graph.samples)[len(graph.samples) // 2]
        document.targets.append(wanted.model_copy(update={"measured": share, "met": share >= 0.6}))


def run(*, rounds: int, smoke: bool, console: Console) -> Document:
    """Measures on the first GPU; without one (and without smoke) floors of known GPUs only."""
    if smoke or torch.cuda.is_available():
        device = torch.device("cpu" if smoke else "cuda:0")
        dtype = torch.float32 if smoke else torch.float16
        if smoke:
            torch.set_num_threads(1)  # small products; threads that wait for each other cost more than they bring
        return measure(device, dtype, rounds=rounds, smoke=smoke, console=console)
    console.print("[yellow]No CUDA device: floors from the makers' figures, nothing is measured.[/yellow]")
    document = Document(suite="gpu", title="AuroraEdge-2b on GPUs: floors, nothing measured")
    for gpu in ("orin", "l40s", "a100", "h100", "h200"):
        floors(document, gpu)
    document.notes.append("There was no GPU. Floors are from the makers' peak figures; nothing reaches them.")
    _targets(document, smoke=False)
    return document
