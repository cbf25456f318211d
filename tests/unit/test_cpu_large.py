"""A 2b-shaped engine for a CPU, reduced: written weight by weight in INT8 and INT4, close to torch, run as any."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from rich.console import Console  # noqa: E402

from auroraedge.config import ModelPreset  # noqa: E402
from auroraedge.errors import EngineError, EngineNotFoundError  # noqa: E402
from auroraedge.inspection.recipe import Tiling, load_recipe  # noqa: E402
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.runtime import Inspector, tables  # noqa: E402
from auroraedge.runtime.engine import EnginePackage  # noqa: E402
from auroraedge.runtime.huge_pages import filled_areas, huge_pages  # noqa: E402
from engine_build import cpu_large  # noqa: E402
from engine_build.build import main  # noqa: E402
from engine_build.cpu_network import CpuNetwork, CpuPrecisions, quantise_blocks, quantise_rows  # noqa: E402
from engine_build.parity import torch_outputs  # noqa: E402
from engine_build.streamed import streamed_model  # noqa: E402
from engine_build.targets import load_target  # noqa: E402
from engine_build.weight_source import WeightSource, folder_source, random_source  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "models" / "nano" / "tokenizer.json"
# Least cosine to torch in float32, with weights of a standard deviation of 0.06: random layers damp no noise.
LEAST_COSINE = {"int8-dynamic": 0.99, "int4": 0.9}
SMALL_2B = ModelPreset(
    name="2b",
    vision_hidden=144,
    vision_layers=2,
    vision_heads=2,
    vision_intermediate=272,
    text_hidden=384,
    text_layers=2,
    text_heads=6,
    text_kv_heads=1,
    text_head_dim=64,
    text_intermediate=1120,  # not a multiple of the block
    vocab_size=1024,
    rope_theta=1_000_000.0,
)


@dataclass(frozen=True)
class Built:
    model: AuroraEdgeForConditionalGeneration
    source: WeightSource
    packages: dict[str, Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Weights in several files, as large models have them."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(5)
    model = AuroraEdgeForConditionalGeneration(AuroraEdgeConfig.from_preset(SMALL_2B)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    model.save_pretrained(folder / "model", max_shard_size="4MB")
    assert not (folder / "model" / "model.safetensors").exists()
    (folder / "model" / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    source = folder_source(str(folder / "model"))
    packages = {}
    for precision in LEAST_COSINE:
        packages[precision] = folder / precision
        build(source, packages[precision], folder / "work", precision=precision)
    return Built(model=model, source=source, packages=packages)


def build(source: WeightSource, out: Path, workspace: Path, *, precision: str, resume: bool = False) -> None:
    cpu_large.build_large_engine(
        load_target("cpu"),
        source,
        out,
        precision=precision,
        workspace=workspace,
        places=160,
        resume=resume,
        parity_views=1,
        console=Console(quiet=True),
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_the_runtime_answers_close_to_torch(built: Built, precision: str) -> None:
    """Through the product's own path: tables, encoder, connectors, decoder with its cache in place."""
    package, model = EnginePackage(built.packages[precision], threads=1), built.model
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (1, 256, 768), dtype=np.uint8)
    ids = rng.integers(0, 600, 9)
    with torch.no_grad():
        visual, compressed, mask = model.encode(torch.from_numpy(patches).float() / 127.5 - 1)
        prompt = torch.from_numpy(ids)[None]
        fused = model.fuse(prompt, torch.ones_like(prompt), visual, mask)
        inputs = model.decoder_inputs(compressed, fused, torch.ones_like(prompt))
        logits = model.language_model(**inputs, logits_to_keep=1).logits[:, -1]
    encoded = package.encode(patches)
    ours = package.fuse(ids, encoded.visual)
    cache = package.decoder.start(1)
    prefix = np.concatenate([encoded.compressed, ours], axis=1)
    found = cache.feed(prefix, np.ones(prefix.shape[:2], np.float32))
    cache.close()
    assert cosine(encoded.visual, visual.numpy()) > LEAST_COSINE["int8-dynamic"]
    assert cosine(encoded.compressed, compressed.numpy()) > LEAST_COSINE["int8-dynamic"]
    assert cosine(ours, fused.numpy()) > LEAST_COSINE[precision]
    assert cosine(found, logits.numpy()) > LEAST_COSINE[precision]
    assert package.manifest.parity["engine/logits"]["cosine"] > LEAST_COSINE[precision]


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_steps_and_company_change_nothing(built: Built, precision: str) -> None:
    """Three rows of different lengths, fed in parts of several and of single places, against each row alone at once.

    Not to the last bit: where attention sums in another order, an 8-bit activation now and then rounds to its
    neighbour. The last assertion shows that a place too few would not pass for that.
    """
    package = EnginePackage(built.packages[precision], threads=1)
    width = package.manifest.decoder.hidden
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(length, width)).astype(np.float32) for length in (12, 9, 4)]

    def alone(row: np.ndarray) -> np.ndarray:
        return package.decoder.start(1).feed(row[None], np.ones((1, len(row)), np.float32))[0]

    embeds, real = np.zeros((3, 12, width), np.float32), np.zeros((3, 12), np.float32)
    for i, row in enumerate(rows):
        embeds[i, 12 - len(row) :], real[i, 12 - len(row) :] = row, 1.0
    cache = package.decoder.start(3)
    for first, last in ((0, 9), (9, 11), (11, 12)):
        together = cache.feed(embeds[:, first:last], real[:, first:last])
    for row, logits in zip(rows, together, strict=True):
        assert np.abs(logits - alone(row)).max() < 0.04 * np.abs(logits).max()
    missing = alone(rows[0][1:])
    assert np.abs(together[0] - missing).max() > 0.1 * np.abs(missing).max()
    cache.keep([2, 0])
    more = rng.normal(size=(2, 1, width)).astype(np.float32)
    kept = cache.feed(more, np.ones((2, 1), np.float32))
    for logits, row, new in zip(kept, (rows[2], rows[0]), more, strict=True):
        assert np.abs(logits - alone(np.concatenate([row, new]))).max() < 0.04 * np.abs(logits).max()


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_a_frame_gets_an_answer_that_parses(built: Built, precision: str) -> None:
    recipe = load_recipe("magnetic_tile").model_copy(update={"tiling": Tiling()})
    image = np.random.default_rng(2).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    with Inspector.open(built.packages[precision], threads=1) as inspector:
        result = inspector.inspect(image, recipe)
        again = inspector.inspect_many(image, [], reference=None)
        answers = inspector.ask_all(image, ["locate crack", "count crack", "inspect"], recipe)
    assert result.verdict is not None and 0 <= result.ng_probability <= 1
    assert {defect.label for defect in result.defects} <= set(recipe.label_names)
    assert again == [] and len(answers) == 3


def test_weights_are_stored_in_their_precision(built: Built) -> None:
    for precision, path in built.packages.items():
        graph = onnx.load(path / "decoder.onnx").graph
        kinds = [node.op_type for node in graph.node]
        packed = kinds.count("MatMulNBits")
        assert packed == (8 if precision == "int4" else 0)
        # Every other linear layer multiplies dequantised INT8 weights; there is no float32 one.
        small = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
        assert kinds.count("MatMul") + packed == 9
        assert sum(name.endswith(".weight") for name in small) == 9 - packed
        assert kinds.count("GroupQueryAttention") == 2
    sizes = {p: (path / "decoder.onnx.data").stat().st_size for p, path in built.packages.items()}
    assert sizes["int4"] < 0.65 * sizes["int8-dynamic"]


@pytest.mark.parametrize(("outputs", "inputs", "block"), [(48, 128, 64), (33, 100, 32)])
def test_four_bits_mean_what_onnxruntime_computes(tmp_path: Path, outputs: int, inputs: int, block: int) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    packed, scale = quantise_blocks(weight, block)
    steps = np.stack([packed & 15, packed >> 4], axis=-1).reshape(outputs, -1, block).astype(np.float32) - 8
    meant = (steps * scale[..., None]).reshape(outputs, -1)[:, :inputs]
    # A step is half a scale away at most, but for values beyond the seventh step on the other side of the largest.
    assert np.abs(meant - weight).max() <= np.abs(scale).max() * 1.001
    net = CpuNetwork("one", dtype="float32", opset=20, precisions=CpuPrecisions(name="int4", block=block))
    x = net.input("x", "float32", ("rows", inputs))
    net.output(net.linear(x, "layer", weight, bias), "y", ("rows", outputs))
    net.save(tmp_path / "one.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    values = rng.normal(size=(5, inputs)).astype(np.float32)
    (found,) = session.run(None, {"x": values})
    wanted = values @ meant.T + bias
    # Activations have 8 bits: a hundredth of the range.
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_rows_have_scales_of_their_own(tmp_path: Path) -> None:
    """A row of large values beside one of small ones costs the small one nothing; a row of zeros stays one."""
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(24, 96)).astype(np.float32)
    net = CpuNetwork("one", dtype="float32", opset=20, precisions=CpuPrecisions(name="int8-dynamic"))
    x = net.input("x", "float32", ("rows", 96))
    net.output(net.linear(x, "layer", weight), "y", ("rows", 24))
    net.save(tmp_path / "one.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    values = rng.normal(size=(3, 96)).astype(np.float32) * np.array([[1e-3], [1e3], [0.0]], np.float32)
    (found,) = session.run(None, {"x": values})
    wanted = values @ weight.T
    for ours, theirs in zip(found[:2], wanted[:2], strict=True):
        assert np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()
    assert not found[2].any()
    stored, scale = quantise_rows(weight)
    assert stored.dtype == np.int8 and np.abs(stored).max() == 64  # 7 bits, for processors without VNNI
    assert np.abs(stored.T * scale[:, None] - weight).max() <= scale.max() / 2 * 1.001


def test_the_streamed_model_is_the_model(built: Built, tokenizer) -> None:
    from calib.frames import calibration_set

    frames = calibration_set(tokenizer, views=1)
    streamed = torch_outputs(streamed_model(built.source), frames)
    for name, wanted in torch_outputs(built.model, frames)[0].items():
        assert np.allclose(streamed[0][name], wanted, atol=1e-5), name


def test_a_large_table_stays_on_the_disk(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built.packages["int4"] / "embeddings.safetensors"
    read, places = tables.read_tables(path)
    monkeypatch.setattr(tables, "_MAPPED_BYTES", 0)
    mapped, same = tables.read_tables(path)
    assert isinstance(mapped, np.memmap) and mapped.dtype == np.float16 and read.dtype == np.float32
    assert np.array_equal(mapped, read) and np.array_equal(places, same)
    package = EnginePackage(built.packages["int4"], threads=1)
    found = package.embed(np.array([[3, 5]]))
    assert found.dtype == np.float32 and np.array_equal(found[0], read[[3, 5]])


def test_an_interrupted_build_goes_on(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def counted(name: str, write: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            written.append(name)
            return write(*arguments)

        return run

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    real = cpu_large.write_decoder
    monkeypatch.setattr(cpu_large, "write_vision", counted("vision", cpu_large.write_vision))
    monkeypatch.setattr(cpu_large, "write_decoder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(built.source, tmp_path / "engine", tmp_path / "work", precision="int4")
    assert not (tmp_path / "engine").exists()
    monkeypatch.setattr(cpu_large, "write_decoder", counted("decoder", real))
    build(built.source, tmp_path / "engine", tmp_path / "work", precision="int4", resume=True)
    assert written == ["vision", "decoder"]
    assert not (tmp_path / "work").exists()
    first, second = (
        json.loads((p / "manifest.json").read_text()) for p in (tmp_path / "engine", built.packages["int4"])
    )
    assert first["files"] == second["files"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match="something else"):
        build(built.source, tmp_path / "engine", tmp_path / "other", precision="int4")
    assert (tmp_path / "other" / "notes.txt").exists()


def test_which_builds_are_written_weight_by_weight(built: Built) -> None:
    target = load_target("cpu")
    assert cpu_large.precision_for(target, None, "nano", random_weights=False) is None
    assert cpu_large.precision_for(target, "int4", "nano", random_weights=False) == "int4"
    assert cpu_large.precision_for(target, "int8", "2b", random_weights=True) == "int8-dynamic"
    with pytest.raises(EngineError, match="not built in fp32"):
        cpu_large.precision_for(target, "fp32", "2b", random_weights=True)
    with pytest.raises(EngineNotFoundError, match="no model 'absent'"):
        cpu_large.precision_for(target, None, "absent", random_weights=False)
    with pytest.raises(EngineError, match="need a preset"):
        random_source("4b")
    assert main(["--model", "2b", "--random-weights", "--precision", "fp32"]) == 1


def test_random_weights_are_distinct_and_repeatable() -> None:
    first, second = random_source(AuroraEdgeConfig.from_preset(SMALL_2B)), random_source("2b")
    name = "language_model.model.layers.{}.mlp.up_proj.weight"
    assert np.array_equal(first.weights(name.format(0)), first.weights(name.format(0)))
    assert not np.array_equal(first.weights(name.format(0)), first.weights(name.format(1)))
    assert first.model_id == "auroraedge-2b-random" and first.sha256 != second.sha256
    tied = (first.weights(f"language_model.{part}.weight") for part in ("lm_head", "model.embed_tokens"))
    assert np.array_equal(*tied)


def test_a_model_that_lacks_weights_is_refused(built: Built, tmp_path: Path) -> None:
    import shutil

    assert built.source.folder is not None
    folder = Path(shutil.copytree(built.source.folder, tmp_path / "model"))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    kept = sorted(set(content["weight_map"].values()))[0]
    content["weight_map"] = {key: kept for key, file in content["weight_map"].items() if file == kept}
    index.write_text(json.dumps(content))
    with pytest.raises(EngineError, match=r"lacks \d+ weights"):
        folder_source(str(folder))
    index.write_text("[]")
    with pytest.raises(EngineError, match="not valid"):
        folder_source(str(folder))


SMAPS = """\
7f0000000000-7f0001000000 rw-p 00000000 00:00 0
Size:              16384 kB
Rss:               16000 kB
7f0002000000-7f0003000000 rw-p 00000000 00:00 0
Rss:                  64 kB
7f0004000000-7f0005000000 r--p 00000000 fe:00 1234   /opt/engine/decoder.onnx.data
Rss:               16384 kB
7f0006000000-7f0006010000 rw-p 00000000 00:00 0
Rss:                  64 kB
560000000000-560001000000 rw-p 00000000 00:00 0      [heap]
Rss:               16384 kB
7ffc00000000-7ffc01000000 rw-p 00000000 00:00 0      [stack]
Rss:               16384 kB
"""


def test_huge_pages_are_for_large_areas_that_are_filled() -> None:
    found = filled_areas(SMAPS.splitlines())
    assert found == {(0x7F0000000000, 0x7F0001000000), (0x560000000000, 0x560001000000)}


def test_huge_pages_change_no_value() -> None:
    with huge_pages(True):
        memory = mmap.mmap(-1, 16 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(bytes(range(256)) * 65536)
    memory.seek(0)
    assert memory.read() == bytes(range(256)) * 65536
    with pytest.raises(ValueError, match="mine"), huge_pages(True):
        raise ValueError("mine")
