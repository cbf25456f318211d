"""Engines on a GPU: torch on CUDA, and TensorRT plans in both cache forms, against the same model on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from auroraedge.inspection.recipe import load_recipe  # noqa: E402
from auroraedge.runtime import EnginePackage, Inspector  # noqa: E402
from auroraedge.runtime.decoding import Cache, HandedOnDecoder, decoder_of  # noqa: E402
from auroraedge.runtime.in_place import InPlaceDecoder  # noqa: E402
from auroraedge.runtime.torch_engine import TorchEngine  # noqa: E402
from benchmarks import engine_runtime  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TILE = load_recipe("magnetic_tile")


@pytest.fixture(scope="module", params=engine_runtime.COMPILERS)
def compiler(request: pytest.FixtureRequest) -> str:
    reason = engine_runtime.available(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def engine(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_runtime.build_here(compiler, tmp_path_factory.mktemp(compiler))


@pytest.fixture(scope="module")
def reference() -> TorchEngine:
    return TorchEngine(ROOT / "models" / "nano", device="cpu")


def _near(ours: np.ndarray, theirs: np.ndarray, share: float = 0.03) -> None:
    """Within a share of the reference's range: 16 bits through all layers."""
    assert np.abs(ours - theirs).max() <= share * np.abs(theirs).max()


def _drive(ours: Cache, theirs: Cache, width: int) -> None:
    """Prompts, single tokens, rows that leave, forks."""
    rng = np.random.default_rng(0)

    def step(first: Cache, second: Cache, rows: int, length: int) -> None:
        real = (np.arange(length)[None] >= rng.integers(0, max(1, length), size=(rows, 1))).astype(np.float32)
        embeds = rng.normal(size=(rows, length, width)).astype(np.float32) * real[..., None]
        _near(first.feed(embeds, real), second.feed(embeds, real))

    step(ours, theirs, 5, 70)
    twin, other = ours.fork([4, 0, 0, 2]), theirs.fork([4, 0, 0, 2])
    for rows, length in (([4, 1, 0, 3], 1), ([0, 1, 2, 3], 1), ([0, 1, 2, 3], 1), ([3, 1], 3), ([1], 1), ([0], 1)):
        ours.keep(rows)
        theirs.keep(rows)
        step(ours, theirs, len(rows), length)
    for _ in range(3):
        step(twin, other, 4, 1)
    ours.close()
    twin.close()


def test_torch_on_cuda(reference: TorchEngine) -> None:
    ours = TorchEngine(ROOT / "models" / "nano", device="cuda")
    assert ours.info.target == "torch-cuda" and ours.kernels
    patches = np.random.default_rng(1).integers(0, 256, (3, 256, 768), dtype=np.uint8)
    mine, theirs = ours.encode(patches), reference.encode(patches)
    for name in ("visual", "compressed", "evidence", "presence"):
        _near(getattr(mine, name), getattr(theirs, name))
    width = reference.manifest.decoder.hidden
    _drive(decoder_of(ours.decoder, ours.manifest.decoder).start(5), reference.decoder.start(5), width)


def test_vision_and_fusion(engine: Path, reference: TorchEngine) -> None:
    ours = EnginePackage(engine)
    patches = np.random.default_rng(2).integers(0, 256, (40, 256, 768), dtype=np.uint8)  # more than a plan takes
    mine, theirs = ours.encode(patches), reference.encode(patches)
    for name in ("visual", "compressed", "evidence", "presence"):
        _near(getattr(mine, name), getattr(theirs, name))
    ids = np.array(reference.tokenizer.encode("count: crack"))
    _near(ours.fuse(ids, theirs.visual), reference.fuse(ids, theirs.visual))
    ours.close()


@pytest.mark.parametrize("graphs", [True, False])
def test_the_cache_in_place(engine: Path, reference: TorchEngine, graphs: bool) -> None:
    ours = EnginePackage(engine)
    assert isinstance(ours.decoder, InPlaceDecoder)
    ours.decoder.graph._graphs = graphs  # type: ignore[attr-defined]
    _drive(ours.decoder.start(5), reference.decoder.start(5), reference.manifest.decoder.hidden)
    note = ours.decoder.graph.graph_note  # type: ignore[attr-defined]
    assert not note or "pycuda" in note
    ours.close()


def test_the_cache_handed_on(compiler: str, reference: TorchEngine, tmp_path: Path) -> None:
    ours = EnginePackage(engine_runtime.build_here(compiler, tmp_path, cache="handed_on"))
    decoder = decoder_of(ours.decoder, ours.manifest.decoder)
    assert isinstance(decoder, HandedOnDecoder)
    _drive(decoder.start(5), reference.decoder.start(5), reference.manifest.decoder.hidden)
    ours.close()


def test_frames_of_several_users_at_once(engine: Path) -> None:
    """Each gets what it would get alone."""
    parts = engine_runtime.frames(6)
    with Inspector.open(engine) as inspector, Inspector.open() as cpu:
        alone = [inspector.inspect(part, TILE).ng_probability for part in parts]
        found: list[float | None] = [None] * len(parts)

        def work(index: int) -> None:
            found[index] = inspector.inspect(parts[index], TILE).ng_probability

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = [cpu.inspect(part, TILE).ng_probability for part in parts]
        answers = inspector.ask_all(parts[0], ["inspect", "count crack", "describe"], TILE)
    assert found == pytest.approx(alone, abs=2e-3)
    assert found == pytest.approx(expected, abs=0.1)  # the CPU's engine is INT8
    assert len(answers) == 3
