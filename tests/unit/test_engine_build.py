"""The engine build: every graph equals its torch part, INT8 is really INT8, nothing half-written is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import onnx  # noqa: E402

from auroraedge.errors import EngineError  # noqa: E402
from auroraedge.manifest import load_manifest, verify_package  # noqa: E402
from auroraedge.runtime.engine import EnginePackage  # noqa: E402
from engine_build import steps  # noqa: E402
from engine_build.build import main  # noqa: E402
from engine_build.decoder_source import wide_layers  # noqa: E402
from engine_build.parity import compare  # noqa: E402
from engine_build.plan import model_size, plan_build  # noqa: E402
from engine_build.targets import Target, list_targets, load_target  # noqa: E402


def test_manifest_describes_the_package(tiny_engine) -> None:
    manifest = verify_package(tiny_engine.int8)
    assert manifest.precision == {"vision": "int8", "fusion": "int8-weights", "decoder": "int8-weights"}
    assert manifest.parity["onnx_fp32/logits"]["cosine"] > 0.99999
    assert manifest.parity["engine/evidence"]["cosine"] > 0.98
    assert manifest.calibration_set_sha256
    inputs = {tensor.name: tensor.dtype for tensor in manifest.graphs["vision"].inputs}
    assert inputs == {"patches": "uint8", "position": "float32", "patch_mask": "float32"}
    assert not (tiny_engine.int8 / "work").exists()


def test_graphs_equal_torch_on_padded_patches_and_prompts(tiny_engine) -> None:
    """Beyond the parity report, which knows full views only: masks of patches and of left-padded prompts."""
    package, model = EnginePackage(tiny_engine.fp32), tiny_engine.model
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (2, 256, 768), dtype=np.uint8)
    mask = np.ones((2, 256), np.float32)
    mask[1, 200:] = 0
    position = np.repeat(package.position_table[None], 2, 0)
    got = package.vision.run({"patches": patches, "position": position, "patch_mask": mask})
    ids = torch.randint(0, 300, (2, 6))
    text_mask = torch.ones(2, 6)
    text_mask[1, :2] = 0
    with torch.no_grad():
        visual, compressed, _ = model.encode(
            torch.from_numpy(patches).float() / 127.5 - 1, torch.from_numpy(mask), torch.full((2, 2), 16)
        )
        fused = model.fuse(ids, text_mask, visual, torch.from_numpy(mask))
        evidence, presence = model.grounding(visual, torch.from_numpy(mask))
    assert np.allclose(got["visual"][:, :200], visual[:, :200], atol=1e-3)
    assert np.allclose(got["compressed"], compressed, atol=1e-3)
    assert np.allclose(got["evidence"][:, :200], evidence[:, :200], atol=1e-3)
    assert np.allclose(got["presence"], presence, atol=1e-3)
    out = package.fusion.run(
        {
            "text": package.embed(ids.numpy()),
            "visual": visual.numpy(),
            "patch_mask": mask,
            "text_mask": text_mask.numpy(),
        }
    )["fused"]
    assert np.allclose(out[0], fused[0], atol=2e-3)
    assert np.allclose(out[1, 2:], fused[1, 2:], atol=2e-3)


def test_cached_steps_equal_one_pass(tiny_engine) -> None:
    package = EnginePackage(tiny_engine.fp32)
    d = package.manifest.decoder
    rng = np.random.default_rng(1)
    embeds = rng.normal(size=(2, 9, d.hidden)).astype(np.float32)

    def run(part: np.ndarray, cache: dict[str, np.ndarray], total: int) -> dict[str, np.ndarray]:
        length = part.shape[1]
        positions = np.repeat(np.arange(total - length, total)[None], 2, 0)
        mask = np.ones((2, total), np.float32)
        feeds = {"inputs_embeds": part, "attention_mask": mask, "position_ids": positions}
        return package.decoder.run({**feeds, **cache})

    empty = np.zeros((2, d.kv_heads, 0, d.head_dim), np.float32)
    cache = {f"past.{i}.{kind}": empty for i in range(d.layers) for kind in ("key", "value")}
    whole = run(embeds, cache, 9)["logits"]
    for first, last in ((0, 5), (5, 6), (6, 9)):
        out = run(embeds[:, first:last], cache, last)
        cache = {name: out[name.replace("past", "present", 1)] for name in cache}
    assert np.allclose(out["logits"], whole, atol=1e-4)


def test_int8_layers_are_stored_as_int8(tiny_engine) -> None:
    for name in ("vision", "fusion", "decoder"):
        stored = onnx.load(tiny_engine.int8 / f"{name}.onnx").graph.initializer
        small = sum(np.prod(t.dims) for t in stored if t.data_type == onnx.TensorProto.INT8)
        large = sum(np.prod(t.dims) for t in stored if t.data_type == onnx.TensorProto.FLOAT)
        assert small > 8 * large, name
        assert {n.domain for n in onnx.load(tiny_engine.int8 / f"{name}.onnx").graph.node} <= {"", "ai.onnx"}


def test_a_failed_build_leaves_the_earlier_package(
    tiny_engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    out = tmp_path / "engine"
    shutil.copytree(tiny_engine.int8, out)
    before = load_manifest(out).engine_sha256
    for failure in (KeyboardInterrupt, EngineError("no")):

        def fail(*_: object, failure: BaseException | type[BaseException] = failure) -> None:
            raise failure

        monkeypatch.setattr(steps, "export_graph", fail)
        code = main(["--model", str(tiny_engine.model_folder), "--out", str(out), "--views", "3"])
        assert code == (130 if failure is KeyboardInterrupt else 1)
        assert verify_package(out).engine_sha256 == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["engine"]


def test_targets_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cpu" in list_targets()
    target = load_target("cpu")
    assert target.precision(None) == target.precisions[target.default_precision]
    with pytest.raises(EngineError, match="no precision"):
        target.precision("fp8")
    with pytest.raises(EngineError, match="no target"):
        load_target("abacus")
    assert main(["--list"]) == 0
    assert main(["--target", "abacus"]) == 1
    assert main(["--model", "no-such-model"]) == 1


def test_compare_figures() -> None:
    a = np.array([1.0, 2.0, 3.0])
    assert compare(a, a)["cosine"] == pytest.approx(1)
    assert compare(a, -a)["cosine"] == pytest.approx(-1)
    assert compare(a * 1.1, a)["snr_db"] == pytest.approx(20)


# -- targets and plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_targets())
def test_targets_are_consistent(name: str) -> None:
    target = load_target(name)
    for precision in target.precisions:
        assert set(target.precision(precision)) == {"vision", "fusion", "decoder"}
    capability = float(target.compute_capability or 0)
    assert ("fp8" in target.precisions) <= (capability >= 8.9)


def test_fp8_on_orin_is_refused_with_reason_and_alternative() -> None:
    with pytest.raises(EngineError, match=r"no FP8 tensor cores.*int8") as caught:
        load_target("orin").precision("fp8")
    assert caught.value.field == "--precision"


def test_a_target_that_claims_fp8_on_ampere_is_invalid() -> None:
    content = load_target("orin").model_dump(mode="json")
    content["precisions"]["fp8"] = {"vision": "fp8", "fusion": "fp16", "decoder": "fp8"}
    content["refused"] = {}
    with pytest.raises(ValueError, match=r"8\.7 has no FP8"):
        Target.model_validate(content)


def test_unknown_target_names_the_likely_ones() -> None:
    with pytest.raises(EngineError, match=r"rtx-ada or rtx-ampere"):
        load_target("rtx")


def test_plan_counts_every_parameter() -> None:
    from auroraedge.model.summary import preset_counts

    size, counts = model_size("2b"), preset_counts("2b")
    graphs = sum(g.linear + g.other for g in size.graphs.values())
    assert graphs + size.embedding == counts["total"]


def test_plan_counts_the_layers_that_stay_wide() -> None:
    size, decoder = model_size("nano"), steps.load_model(steps.model_folder("nano")).language_model
    wide = wide_layers("int8", decoder.config.num_hidden_layers)
    counted = sum(decoder.get_submodule(name).weight.numel() for name in wide)
    assert size.graphs["decoder"].wide + size.graphs["decoder"].lm_head == counted


def test_the_full_size_fits_an_orin_nano_in_int4_only_with_vision_in_int8() -> None:
    target, size = load_target("orin-nano"), model_size("2b")
    plan = plan_build(target, size)
    assert {g.graph: g.precision for g in plan.graphs} == {"vision": "int8", "fusion": "fp16", "decoder": "int4"}
    assert plan.fits and plan.builds_on_target
    weights = sum(g.weights for g in plan.graphs)
    assert 1.2e9 < weights < 1.6e9
    assert not plan_build(target, size, "int8").builds_on_target


def test_plan_prints_and_returns_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "orin", "--plan", "--json"]) == 0
    assert '"fits": true' in capsys.readouterr().out
    assert main(["--target", "cpu", "--model", "2b", "--precision", "fp32", "--plan"]) == 1
    assert "does not fit" in capsys.readouterr().out
