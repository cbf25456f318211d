"""GPU engines: the graphs equal the model, quantised layers are quantised, and tensorrt_rtx compiles them for real."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # beside other work, threads that wait for each other make small layers slower
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from requires import lacks  # noqa: E402
from rich.console import Console  # noqa: E402

from auroraedge.errors import AuroraEdgeError, CalibrationError, EngineError  # noqa: E402
from auroraedge.manifest import verify_package  # noqa: E402
from calib.ranges import Ranges, measure_ranges  # noqa: E402
from calib.sensitivity import Sensitivity, sweep  # noqa: E402
from calib.smoothing import awq, folds, round_int4, smooth_quant  # noqa: E402
from engine_build import gpu_build  # noqa: E402
from engine_build import kit as kit_module  # noqa: E402
from engine_build.build import ROOT, main  # noqa: E402
from engine_build.gpu_graphs import (  # noqa: E402
    MASKED,
    GraphOptions,
    ModelShape,
    cache_names,
    write_decoder,
    write_fusion,
    write_vision,
)
from engine_build.graphs import DecoderGraph, FusionGraph, VisionGraph  # noqa: E402
from engine_build.kit import write_kit  # noqa: E402
from engine_build.network import Network, Precisions  # noqa: E402
from engine_build.steps import load_model  # noqa: E402
from engine_build.targets import load_target  # noqa: E402
from engine_build.tensorrt_compiler import CompileSettings, compile_graph  # noqa: E402

PLAIN = GraphOptions(dtype="float32")
FP32 = Precisions(name="fp32")
QUIET = Console(quiet=True)


def needs_tensorrt_rtx() -> None:
    try:
        import tensorrt_rtx  # noqa: F401
    except (ImportError, OSError) as error:
        lacks(f"tensorrt_rtx cannot be loaded: {error}")


@pytest.fixture(scope="module")
def nano():
    model = load_model(ROOT / "models" / "nano")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, ModelShape.of(model.config), lambda name: state[name]


@pytest.fixture(scope="module")
def prepared():
    """nano in INT8, calibrated on a few generated views."""
    build = gpu_build.GpuBuild(
        target=load_target("rtx-ampere"),
        model="nano",
        precision={"vision": "int8", "fusion": "fp16", "decoder": "int8"},
        views=6,
    )
    return build, gpu_build.prepare(build, QUIET)


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As the build checks them: integer products would saturate on a processor without VNNI, which no GPU does.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


# -- the graphs against the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("baked", [False, True])
def test_vision_equals_the_model(nano, tmp_path: Path, baked: bool) -> None:
    model, shape, weights = nano
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 256, (2, 256, 768), dtype=np.uint8)
    mask = np.ones((2, 256), np.float32)
    if not baked:
        mask[1, 200:] = 0
    position = np.repeat(weights("vision_model.embeddings.position_embedding.weight")[None], 2, 0)
    write_vision(tmp_path / "v.onnx", shape, weights, FP32, replace(PLAIN, baked_grid=baked))
    feeds = {"patches": patches} if baked else {"patches": patches, "position": position, "patch_mask": mask}
    found = run(tmp_path / "v.onnx", feeds)
    graph = VisionGraph(model)
    with torch.no_grad():
        wanted = graph(torch.from_numpy(patches), torch.from_numpy(position), torch.from_numpy(mask))
    for name, value in zip(graph.outputs, wanted, strict=True):
        rows = slice(0, 200) if value.dim() == 3 and value.shape[1] == 256 else slice(None)
        scale = float(value.abs().max())
        assert np.abs(found[name][:, rows] - value.numpy()[:, rows]).max() < 1e-5 * scale + 1e-5, name


def test_fusion_equals_the_model_with_padding_on_either_side(nano, tmp_path: Path) -> None:
    model, shape, weights = nano
    rng = np.random.default_rng(2)
    text = rng.standard_normal((3, 7, shape.width)).astype(np.float32)
    visual = rng.standard_normal((3, 256, shape.width)).astype(np.float32)
    mask, text_mask = np.ones((3, 256), np.float32), np.ones((3, 7), np.float32)
    mask[2, 100:], text_mask[1, :3], text_mask[2, 5:] = 0, 0, 0
    write_fusion(tmp_path / "f.onnx", shape, weights, FP32, PLAIN)
    feeds = {"text": text, "visual": visual, "patch_mask": mask, "text_mask": text_mask}
    found = run(tmp_path / "f.onnx", feeds)["fused"]
    with torch.no_grad():
        wanted = FusionGraph(model)(*(torch.from_numpy(feeds[name]) for name in feeds)).numpy()
    real = text_mask.astype(bool)
    assert np.isfinite(found).all()
    assert np.abs(found - wanted)[real].max() < 1e-5 * np.abs(wanted[real]).max()


def decoder_feeds(shape: ModelShape, embeds: np.ndarray, mask: np.ndarray, places: int) -> dict[str, np.ndarray]:
    """Feeds of the decoder with its cache in place."""
    length = embeds.shape[1]
    later = np.triu(np.ones((length, length)), 1)[None, None] > 0
    bias = np.full((len(embeds), 1, length, places), MASKED, np.float32)
    bias[..., :length] = np.where((mask[:, None, None, :] == 0) | later, MASKED, 0)
    position = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int64)
    empty = np.zeros((len(embeds), shape.kv_heads, places, shape.head_dim), np.float32)
    return {
        "inputs_embeds": embeds,
        "position_ids": position,
        "attention_bias": bias,
        "write_index": np.zeros(len(embeds), np.int64),
        **{name: empty for name in cache_names(shape, "past")},
    }


def test_both_forms_of_the_decoder_equal_the_model_step_by_step(nano, tmp_path: Path) -> None:
    """A prompt with padding, then two single tokens: in place, handed on and torch agree at every step."""
    model, shape, weights = nano
    rng = np.random.default_rng(3)
    places, start = 24, 9
    embeds = rng.standard_normal((2, start + 2, shape.width)).astype(np.float32)
    mask = np.ones((2, start + 2), np.float32)
    mask[1, :2] = 0
    position = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int64)
    in_place = GraphOptions(dtype="float32", cache="in_place", places=places, lm_head_parts=3)
    write_decoder(tmp_path / "a.onnx", shape, weights, FP32, in_place)
    write_decoder(tmp_path / "b.onnx", shape, weights, FP32, PLAIN)
    graph, names = DecoderGraph(model), cache_names(shape, "past")
    empty = np.zeros((2, shape.kv_heads, 0, shape.head_dim), np.float32)
    reference, handed = [torch.from_numpy(empty)] * len(names), dict.fromkeys(names, empty)
    kept: dict[str, np.ndarray] = {}
    first = 0
    for end in (start, start + 1, start + 2):
        new = embeds[:, first:end]
        with torch.no_grad():
            out = graph(
                torch.from_numpy(new),
                torch.from_numpy(mask[:, :end]),
                torch.from_numpy(position[:, first:end]),
                list(reference),
            )
        wanted, reference = out[0].numpy(), list(out[1:])
        b = run(
            tmp_path / "b.onnx",
            {"inputs_embeds": new, "attention_mask": mask[:, :end], "position_ids": position[:, first:end], **handed},
        )
        handed = {name: b[name.replace("past", "present")] for name in names}
        feeds = decoder_feeds(shape, embeds[:, :end], mask[:, :end], places)
        feeds |= {"inputs_embeds": new, "position_ids": position[:, first:end]}
        feeds |= {"attention_bias": feeds["attention_bias"][:, :, first:end], "write_index": np.full(2, first), **kept}
        a = run(tmp_path / "a.onnx", feeds)
        kept = {name: a[name.replace("past", "present")] for name in names}
        assert np.abs(b["logits"] - wanted).max() < 2e-4
        assert np.abs(a["logits"] - wanted).max() < 2e-4
        first = end


# -- quantisation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_every_layer_has_the_precision_that_was_asked_for(tmp_path: Path, prepared, precision: str) -> None:
    _, ready = prepared
    precisions = Precisions(name=precision, activation=ready.activation)
    net = write_decoder(tmp_path / "d.onnx", ready.shape, ready.weights, precisions, GraphOptions())
    assert set(net.quantised.values()) == {precision}
    assert set(net.quantised) == set(net.linear_layers)
    assert len(net.linear_layers) == 4 * ready.shape.layers + 1
    kinds = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN, "int4": onnx.TensorProto.INT4}
    graph = onnx.load(tmp_path / "d.onnx").graph
    stored = [t for t in graph.initializer if t.data_type == kinds[precision] and len(t.dims) == 2]
    assert len(stored) == len(net.linear_layers)
    assert not [
        t.name
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT16 and len(t.dims) == 2 and t.name.endswith("weight")
    ]


def test_kept_layers_stay_in_16_bits(tmp_path: Path, prepared) -> None:
    _, ready = prepared
    keep = frozenset({"language_model.model.layers.0.mlp.down_proj"})
    precisions = Precisions(name="int8", activation=ready.activation, keep=keep)
    net = write_decoder(tmp_path / "d.onnx", ready.shape, ready.weights, precisions, GraphOptions())
    assert set(net.linear_layers) - set(net.quantised) == keep


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_inputs_with_few_huge_values_are_not_rounded_to_eight_bits(tmp_path: Path, prepared, precision: str) -> None:
    build, ready = prepared
    build = replace(build, precision=build.precision | {"decoder": precision})
    kept = replace(ready, keep=build.kept(ready.shape))
    found = gpu_build.write_graph(build, kept, "decoder", tmp_path / "d.onnx", GraphOptions(lm_head_parts=2))
    wide = 0 if precision == "int4" else 1
    assert found["LM head"].weights == (1 - wide) * 2
    assert found["decoder"].weights == (4 - wide) * ready.shape.layers


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_the_grounding_head_is_not_quantised(tmp_path: Path, prepared, precision: str) -> None:
    """Ranges of its inputs, a percentile, would clip the few tokens that show a defect."""
    build, ready = prepared
    build = replace(build, precision=build.precision | {"vision": precision})
    found = gpu_build.write_graph(build, ready, "vision", tmp_path / "v.onnx", GraphOptions())
    assert (found["grounding"].layers, found["grounding"].weights, found["grounding"].inputs) == (3, 0, 0)
    assert found["encoder"].weights == found["encoder"].layers > 0


def test_a_layer_without_a_range_is_an_error(tmp_path: Path, nano) -> None:
    _, shape, weights = nano
    with pytest.raises(EngineError, match="no calibrated range"):
        write_vision(tmp_path / "v.onnx", shape, weights, Precisions(name="int8"), GraphOptions())


def test_small_weights_survive_eight_bits(tmp_path: Path) -> None:
    """A folded LayerScale makes weights of 1e-5, whose INT8 scales no float16 number could hold."""
    rng = np.random.default_rng(4)
    weight = (rng.standard_normal((16, 128)) * 1e-5).astype(np.float32)
    x = rng.standard_normal((1, 3, 128)).astype(np.float32)
    net = Network("t", dtype="float32", opset=20, precisions=Precisions(name="int8", activation={"l": 4.0}))
    y = net.linear(net.input("x", "T", (1, 3, 128)), "l", weight)
    net.output(y, "y", (1, 3, 16))
    net.save(tmp_path / "t.onnx")
    found, wanted = run(tmp_path / "t.onnx", {"x": x})["y"], x @ weight.T
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


def test_smoothing_changes_the_weights_and_not_the_model(nano, prepared) -> None:
    model, _, _weights = nano
    _, ready = prepared
    state = dict(ready.reference_state)
    ranges = measure_ranges(model, ready.frames)
    assert len(folds(state)) == 2 * 6 + 3 * 5  # encoder layers; fusion's and the decoder's
    prompt = torch.tensor([ready.frames.prompt_ids[0]])
    pixels = torch.from_numpy(ready.frames.patches[:1]).float() / 127.5 - 1.0
    with torch.no_grad():
        wanted = model(input_ids=prompt, pixel_values=pixels).logits
    for method in (smooth_quant, awq):
        changed = method(state, ranges.layers)
        assert max(float(np.abs(changed[n] - state[n]).max()) for n in state) > 0.01
        gpu_build._load(model, changed)
        with torch.no_grad():
            found = model(input_ids=prompt, pixel_values=pixels).logits
        gpu_build._load(model, state)
        assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_awq_lowers_the_error_of_rounding(nano, prepared) -> None:
    model, _, _ = nano
    _, ready = prepared
    state, layers = ready.reference_state, measure_ranges(model, ready.frames).layers
    scaled = awq(state, layers, under="language_model")
    before = after = 0.0
    for fold in folds(state):
        # Only attention's readers: the rows of up_proj are scaled once more, for down_proj.
        if not fold.source.startswith("language_model") or "input_layernorm" not in fold.source:
            continue
        norm = f"{fold.source}.weight"
        scale = state[norm] / scaled[norm]
        for reader in fold.readers:
            name, rms = f"{reader}.weight", layers[reader].rms
            before += float(((round_int4(state[name]) - state[name]) ** 2 @ rms**2).sum())
            after += float(((round_int4(scaled[name]) / scale - state[name]) ** 2 @ rms**2).sum())
    assert after <= before


def test_sensitivity_orders_layers_by_their_damage(nano, prepared) -> None:
    model, _, _ = nano
    _, ready = prepared
    frames = replace(ready.frames, patches=ready.frames.patches[:2], prompt_ids=ready.frames.prompt_ids[:2])
    names = ["projector.fc1", "vision_model.encoder.layers.5.mlp.fc2"]
    before = {n: p.clone() for n, p in model.named_parameters()}
    # A range far too small for the second layer clips nearly everything: it must come out as the worst.
    found = sweep(model, frames, {names[0]: 40.0, names[1]: 1e-4}, dict.fromkeys(names, "int8"), QUIET)
    assert next(item.layer for item in found) == names[1]
    assert found[0].noise > 10 * found[1].noise > 0
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_the_worst_layers_are_kept_and_reported(nano, prepared, tmp_path: Path) -> None:
    build, ready = prepared
    ready = replace(ready, sensitivity=[Sensitivity(layer=f"projector.fc{i}", noise=1e-4 / i) for i in (1, 2)])
    assert gpu_build.layer_names(["a.self_attn.v_proj", "x.lm_head"]) >= {"a.self_attn.qkv", "x.lm_head.0"}
    quality = {"onnx_qdq": {"visual": {"cosine": 0.9}, "logits": {"cosine": 0.9999}}}
    page = tmp_path / "calibration.html"
    gpu_build.write_calibration_report(replace(build, keep_worst=1), ready, quality, page)
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3 and not re.search(r'(src|href)="http', text)
    assert 'class="low"' in text and text.count("Kept in 16 bits: <code>projector.fc1</code>.") == 1
    gpu_build.write_calibration_report(replace(build, keep_worst=1), ready, quality, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_an_interrupted_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = gpu_build.GpuBuild(
        target=load_target("rtx-ampere"),
        model="nano",
        precision={"vision": "fp16", "fusion": "int8", "decoder": "fp16"},
        views=2,
        keep_worst=1,
    )
    whole = gpu_build.prepare(build, QUIET, tmp_path)
    journal = (tmp_path / "sensitivity.jsonl").read_text(encoding="utf-8")
    assert len(journal.splitlines()) == len(whole.sensitivity) > 4
    # Interrupted in the middle of a line: what stands before it is not measured again.
    (tmp_path / "sensitivity.jsonl").write_text(journal[: len(journal) // 2], encoding="utf-8")
    monkeypatch.setattr(gpu_build, "measure_ranges", None)
    resumed = gpu_build.prepare(build, QUIET, tmp_path, resume=True)
    assert resumed.used == whole.used and resumed.keep == whole.keep and resumed.sensitivity == whole.sensitivity
    # Of another precision nothing is taken.
    monkeypatch.undo()
    other = replace(build, precision={"vision": "fp16", "fusion": "fp16", "decoder": "fp16"})
    assert gpu_build.prepare(other, QUIET, tmp_path, resume=True).ranges is None
    assert not (tmp_path / "ranges.npz").exists()
    (tmp_path / "ranges.npz").write_bytes(b"PK cut off")
    with pytest.raises(CalibrationError, match="holds no ranges"):
        Ranges.load(tmp_path / "ranges.npz")


def test_ranges_by_method_are_ordered(nano, prepared) -> None:
    model, _, _ = nano
    _, ready = prepared
    ranges = measure_ranges(model, ready.frames)
    largest, percentile = ranges.largest("max"), ranges.largest("percentile")
    assert all(0 < percentile[name] <= largest[name] * 1.001 for name in largest)
    assert sum(percentile[n] < 0.95 * largest[n] for n in largest) > 5
    some = dict(list(ranges.layers.items())[:3])
    entropy = replace(ranges, layers=some).largest("entropy")
    assert all(0 < entropy[name] <= largest[name] for name in some)


def test_a_model_with_nan_cannot_be_calibrated(prepared) -> None:
    _, ready = prepared
    model = load_model(ROOT / "models" / "nano")
    model.projector.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(CalibrationError):
        measure_ranges(
            model,
            replace(
                ready.frames,
                patches=ready.frames.patches[:1],
                prompt_ids=ready.frames.prompt_ids[:1],
                samples=ready.frames.samples[:1],
            ),
        )


# -- compiling for real ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "capability"),
    [("fp16", "8.6"), ("int8", "8.6"), ("int4", "8.6"), ("fp8", "8.9"), ("fp8", "12.0")],
)
def test_tensorrt_rtx_compiles_all_graphs_of_nano(tmp_path: Path, prepared, precision: str, capability: str) -> None:
    needs_tensorrt_rtx()
    build, ready = prepared
    options = replace(build.options, lm_head_parts=2)
    wanted = gpu_build.profiles(ready.shape, build.target, "in_place")
    sizes = {}
    for graph in ("vision", "fusion", "decoder"):
        own = replace(build, precision={**build.precision, graph: precision})
        gpu_build.write_graph(own, ready, graph, tmp_path / f"{graph}.onnx", options)
        seen: list[float] = []
        made = compile_graph(
            "tensorrt_rtx",
            tmp_path / f"{graph}.onnx",
            tmp_path / f"{graph}.plan",
            wanted[graph],
            CompileSettings(compute_capability=capability),
            on_progress=lambda share, _, seen=seen: seen.append(share),
        )
        sizes[graph] = made.plan_bytes
        assert made.plan_bytes == (tmp_path / f"{graph}.plan").stat().st_size > 1_000_000
        assert seen == sorted(seen) and 0.5 < seen[-1] <= 1.0
    names = {tensor.name for tensor in made.inputs}
    assert {"write_index", "past.0.key"} <= names
    assert sizes["vision"] < (30e6 if precision == "fp16" else 20e6)


def test_an_error_of_the_compiler_is_a_failed_build(tmp_path: Path, nano) -> None:
    needs_tensorrt_rtx()
    net = Network("bad", dtype="float16", opset=20, precisions=Precisions())
    a, b = net.input("a", "T", (2, 3)), net.input("b", "T", (4, 5))
    net.output(net.matmul(a, b), "y", (2, 5))
    with pytest.raises(AuroraEdgeError):
        net.save(tmp_path / "bad.onnx")
        compile_graph(
            "tensorrt_rtx", tmp_path / "bad.onnx", tmp_path / "bad.plan", {}, CompileSettings(compute_capability="8.6")
        )
    assert not (tmp_path / "bad.plan").exists()


def test_a_capability_that_the_compiler_lacks_is_refused(tmp_path: Path, nano) -> None:
    needs_tensorrt_rtx()
    _, shape, weights = nano
    write_fusion(tmp_path / "f.onnx", shape, weights, Precisions(), GraphOptions())
    with pytest.raises(EngineError, match=r"8\.7"):
        compile_graph(
            "tensorrt_rtx", tmp_path / "f.onnx", tmp_path / "p", {}, CompileSettings(compute_capability="8.7")
        )


@pytest.fixture(scope="module")
def rtx_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """An engine of nano in INT4 for another machine's GPU: package, workspace and the command that made them."""
    needs_tensorrt_rtx()
    folder = tmp_path_factory.mktemp("rtx")
    out, work = folder / "engine", folder / "work"
    command = ["--target", "rtx-ampere", "--precision", "int4", "--views", "4", "--keep-worst", "0"]
    command += ["--out", str(out), "--workspace", str(work)]
    assert main(command) == 0
    return out, work, command


def test_build_for_rtx_resumes_and_publishes(
    rtx_build: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, work, command = rtx_build
    manifest = verify_package(out)
    assert manifest.target == "rtx-ampere" and manifest.compute_capability == "8.6"
    assert manifest.precision == {"vision": "int8", "fusion": "fp16", "decoder": "int4"}
    assert manifest.graphs["decoder"].profiles["inputs_embeds"].maximum[0] == 16
    assert manifest.parity["onnx_qdq/logits"]["cosine"] > 0.99
    assert manifest.parity["onnx_qdq/task"]["tokens"] > 20
    # As after an interruption: two graphs are there, the third is not.
    (work / "decoder.plan").unlink()
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "vision: kept from the workspace" in said and "decoder: int4" in said


def test_a_gpu_engine_is_refused_by_the_cpu_runtime(rtx_build: tuple[Path, Path, list[str]]) -> None:
    from auroraedge.runtime.engine import EnginePackage

    with pytest.raises(EngineError, match="rtx-ampere") as caught:
        EnginePackage(rtx_build[0])
    assert "build.py" in caught.value.remedy


def test_simulated_engine_inspects_on_the_cpu(tmp_path: Path) -> None:
    from auroraedge.inspection.recipe import load_recipe
    from auroraedge.runtime import Inspector

    out = tmp_path / "engine"
    assert main(["--target", "orin", "--simulate", "--keep-worst", "0", "--views", "4", "--out", str(out)]) == 0
    manifest = verify_package(out)
    assert manifest.precision["vision"] == "int8-qdq"
    rng = np.random.default_rng(5)
    with Inspector.open(out) as inspector:
        result = inspector.inspect(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8), load_recipe("magnetic_tile"))
    assert result.ng_probability is not None


# -- build kits --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, prepared) -> Path:
    build, _ = prepared
    out = tmp_path_factory.mktemp("kit") / "kit"
    write_kit(replace(build, views=2), out, QUIET)
    return out


def finish(kit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without AuroraEdge on the path: the script may use nothing but Python and the compiler."""
    command = [sys.executable, "-I", str(kit / "finish.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_orin_gets_a_kit_where_its_compiler_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kit"
    assert main(["--target", "orin", "--keep-worst", "0", "--views", "2", "--out", str(out)]) == 0
    assert "python3 finish.py" in capsys.readouterr().out
    content = json.loads((out / "kit.json").read_text(encoding="utf-8"))
    assert content["target"]["compute_capability"] == "8.7"
    assert "float16" in content["description"]["decoder_checkpoints"]["edge-llm"]
    assert "decoder-edge-llm/build.sh" in content["files"]
    assert [form["name"] for form in content["graphs"]["decoder"]] == ["in_place", "handed_on"]
    assert content["graphs"]["decoder"][0]["golden"]["outputs"]["logits"]["shape"][0] == 1


def test_a_kit_for_a_data_center_carries_a_tensorrt_llm_checkpoint(tmp_path: Path, prepared) -> None:
    build, found = prepared
    build = replace(build, target=load_target("h100"))
    about = kit_module._write_checkpoints(build, found, tmp_path, QUIET)
    assert about["tensorrt-llm"].startswith("W8A8_SQ_PER_CHANNEL, ")
    folder = tmp_path / "decoder-tensorrt-llm"
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == found.shape.vocab and config["rotary_base"] == found.shape.rope_theta
    # 64 sequences of 64 visual and 256 prompt tokens.
    assert "--max_multimodal_len=20480" in (folder / "build.sh").read_text(encoding="utf-8")
    assert kit_module._write_checkpoints(replace(build, decoder="tensorrt"), found, tmp_path, QUIET) == {}


def test_finish_builds_a_package_that_verifies(tmp_path: Path, kit: Path) -> None:
    needs_tensorrt_rtx()
    out = tmp_path / "engine"
    done = finish(kit, "--out", str(out), "--compiler", "tensorrt_rtx")
    assert done.returncode == 0, done.stderr
    assert "NOT CHECKED" in done.stdout
    manifest = verify_package(out)
    assert manifest.compiler.name == "tensorrt_rtx" and not [key for key in manifest.parity if "device" in key]
    assert manifest.precision["decoder"] == "int8"


def test_finish_falls_back_to_the_older_form(tmp_path: Path, kit: Path) -> None:
    needs_tensorrt_rtx()
    copy = tmp_path / "kit"
    shutil.copytree(kit, copy)
    # What an older parser does with opset 24: it refuses the file.
    (copy / "graphs" / "decoder.in_place.onnx").write_bytes(b"not for this parser")
    content = json.loads((copy / "kit.json").read_text(encoding="utf-8"))
    name = "graphs/decoder.in_place.onnx"
    content["files"][name] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    (copy / "kit.json").write_text(json.dumps(content), encoding="utf-8")
    done = finish(copy, "--out", str(tmp_path / "engine"), "--compiler", "tensorrt_rtx")
    assert done.returncode == 0, done.stderr
    assert "(handed_on)" in done.stdout
    manifest = verify_package(tmp_path / "engine")
    assert "attention_mask" in {tensor.name for tensor in manifest.graphs["decoder"].inputs}


def test_a_gpu_that_the_compiler_does_not_know_is_refused_before_anything_is_built(tmp_path: Path, kit: Path) -> None:
    needs_tensorrt_rtx()
    copy = tmp_path / "kit"
    shutil.copytree(kit, copy)
    content = json.loads((copy / "kit.json").read_text(encoding="utf-8"))
    content["target"]["compute_capability"] = "8.7"
    (copy / "kit.json").write_text(json.dumps(content), encoding="utf-8")
    done = finish(copy, "--out", str(tmp_path / "engine"), "--compiler", "tensorrt_rtx")
    assert done.returncode == 1 and not (tmp_path / "engine").exists()
    assert "does not build for SM87, only for SM" in done.stderr and "on the device" in done.stderr


def test_a_damaged_kit_is_refused_before_anything_is_built(tmp_path: Path, kit: Path) -> None:
    copy = tmp_path / "kit"
    shutil.copytree(kit, copy)
    with (copy / "golden" / "fusion.fused.out.bin").open("ab") as file:
        file.write(b"x")
    done = finish(copy, "--out", str(tmp_path / "engine"))
    assert done.returncode == 1
    assert "fusion.fused.out.bin is missing or damaged" in done.stderr and "Copy the whole kit" in done.stderr
    assert not (tmp_path / "engine").exists()


def test_finish_never_replaces_what_is_no_engine(tmp_path: Path, kit: Path) -> None:
    needs_tensorrt_rtx()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine", encoding="utf-8")
    done = finish(kit, "--out", str(tmp_path / "photos"), "--compiler", "tensorrt_rtx")
    assert done.returncode == 1 and "no engine package" in done.stderr
    assert (tmp_path / "photos" / "a.txt").read_text(encoding="utf-8") == "mine"
