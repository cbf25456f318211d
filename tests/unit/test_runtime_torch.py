"""A model folder as an engine, run by torch on the CPU, against the engine package of the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from auroraedge.data.synthetic import generate_board, generate_ground_surface, generate_rolled_surface  # noqa: E402
from auroraedge.errors import EngineError, EngineIncompatibleError, MissingDependencyError  # noqa: E402
from auroraedge.inspection.grammar import AnswerGrammar  # noqa: E402
from auroraedge.inspection.prompts import PromptKind, build_prompt  # noqa: E402
from auroraedge.inspection.recipe import load_recipe  # noqa: E402
from auroraedge.runtime import EnginePackage, Inspector, opening  # noqa: E402
from auroraedge.runtime.generation import Row, generate, share_prefix  # noqa: E402
from auroraedge.runtime.torch_engine import TorchEngine  # noqa: E402

PCB, TILE, STRIP = load_recipe("pcb"), load_recipe("magnetic_tile"), load_recipe("steel_strip")


@pytest.fixture(scope="module")
def ours(tiny_forms) -> TorchEngine:
    return TorchEngine(tiny_forms.model, device="cpu", threads=1)


@pytest.fixture(scope="module")
def package(tiny_forms) -> EnginePackage:
    return EnginePackage(tiny_forms.handed_on, threads=1)


def test_the_parts_are_those_of_the_package(ours: TorchEngine, package: EnginePackage) -> None:
    assert ours.info.target == "torch-cpu" and set(ours.info.precision.values()) == {"fp32"}
    assert ours.info.weights_sha256 == package.info.weights_sha256
    assert ours.processor == package.processor
    assert ours.manifest.decoder == package.manifest.decoder
    # A package stores the table in float16.
    assert np.array_equal(ours.token_embedding.astype(np.float16), package.token_embedding.astype(np.float16))
    patches = np.random.default_rng(0).integers(0, 256, (3, 256, 768), dtype=np.uint8)
    mine, theirs = ours.encode(patches), package.encode(patches)
    for name in ("visual", "compressed", "evidence", "presence"):
        assert np.allclose(getattr(mine, name), getattr(theirs, name), atol=2e-4), name


def test_several_prompts_on_a_view_token_by_token(
    ours: TorchEngine, package: EnginePackage, tokenizer, monkeypatch
) -> None:
    """With the package's own embedding table: every token is the same."""
    monkeypatch.setattr(ours, "token_embedding", package.token_embedding)
    patches = np.random.default_rng(1).integers(0, 256, (2, 256, 768), dtype=np.uint8)
    labels = PCB.label_names
    prompts = [build_prompt(kind, labels, labels[0]) for kind in PromptKind if kind is not PromptKind.FREE]
    found = []
    for engine in (ours, package):
        encoded = engine.encode(patches)
        rows = [
            Row(prefix=text, grammar=AnswerGrammar(tokenizer, prompt, max_items=3), shared=i, max_new_tokens=16)
            for prompt in prompts
            for i, text in enumerate(engine.fuse(np.array(tokenizer.encode(prompt.text)), encoded.visual))
        ]
        shared = share_prefix(engine, encoded.compressed)
        generate(engine, rows, shared=shared)
        shared.close()
        found.append(rows)
    for mine, theirs in zip(*found, strict=True):
        assert mine.ids == theirs.ids
        assert np.allclose(mine.probabilities, theirs.probabilities, atol=1e-4)


def test_inspections_are_the_same(tiny_forms) -> None:
    rng = np.random.default_rng(2)
    board, tile, strip = (
        generate_board(rng, size=416, n_defects=4),
        *(generate(rng) for generate in (generate_ground_surface, generate_rolled_surface)),
    )
    found = []
    for folder in (tiny_forms.model, tiny_forms.handed_on):
        with Inspector.open(folder, threads=1) as inspector:
            found.append(
                [
                    inspector.inspect(board.image, PCB, reference=board.reference),
                    inspector.inspect(tile.image, TILE),
                    inspector.inspect(strip.image, STRIP),
                ]
            )
    for mine, theirs in zip(*found, strict=True):
        assert (mine.verdict, mine.predicted_class) == (theirs.verdict, theirs.predicted_class)
        # Float16 of the package's embedding table is the difference.
        assert mine.ng_probability == pytest.approx(theirs.ng_probability, abs=2e-3)
        assert [d.label for d in mine.defects] == [d.label for d in theirs.defects]


def test_what_is_missing_is_said(tiny_forms, tmp_path: Path, monkeypatch) -> None:
    copy = Path(shutil.copytree(tiny_forms.model, tmp_path / "model"))
    with pytest.raises(EngineIncompatibleError, match="not 000000000000"):
        opening.open_engine(copy, weights_sha256="0" * 64)
    monkeypatch.setenv(opening.DTYPE, "int3")
    with pytest.raises(EngineIncompatibleError, match="float16") as caught:
        opening.open_engine(copy)
    monkeypatch.delenv(opening.DTYPE)
    assert caught.value.field == "dtype"
    if not torch.cuda.is_available():
        monkeypatch.setenv(opening.DEVICE, "cuda")
        with pytest.raises(EngineIncompatibleError, match="no CUDA device"):
            opening.open_engine(copy)
        monkeypatch.delenv(opening.DEVICE)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"lacks tokenizer\.json"):
        opening.open_engine(copy)
    (copy / "model.safetensors").write_bytes(b"broken")
    (copy / "tokenizer.json").write_bytes((tiny_forms.model / "tokenizer.json").read_bytes())
    with pytest.raises(EngineError, match="cannot be loaded"):
        opening.open_engine(copy)

    def without_torch(name: str) -> object:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(opening.importlib, "import_module", without_torch)
    with pytest.raises(MissingDependencyError, match="torch") as missing:
        opening.open_engine(copy)
    assert "auroraedge[gpu]" in missing.value.remedy
