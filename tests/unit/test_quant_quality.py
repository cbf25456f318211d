"""Scores of quantised engines against the FP32 form, and the count of quantisers in other tools' files."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from auroraedge.errors import EngineError
from benchmarks.quant_quality import AGREEMENTS, TENSORS, changed_verdicts, points, table, verdict
from engine_build.modelopt import METHODS, quantise_onnx, quantised_layers, submodule

GOOD = dict.fromkeys((*TENSORS, *AGREEMENTS), 1.0)


def test_points_are_of_the_same_metrics() -> None:
    assert points({"a": 0.905, "b": 0.5}, {"a": 0.9, "b": 0.5}) == pytest.approx({"a": 0.5, "b": 0.0})
    with pytest.raises(EngineError, match="'b'"):
        points({"a": 0.9}, {"a": 0.9, "b": 0.1})


def test_every_target_that_is_missed_is_named() -> None:
    rows = {"deeppcb": {"detection.map50": -0.6, "roc_auc": 0.1}}
    assert verdict("int8", rows, GOOD) == ["deeppcb detection.map50 -0.60 points"]
    assert verdict("int4", rows, GOOD) == []
    # Better than the reference by more than the target is a difference too.
    assert len(verdict("int8", {"deeppcb": {"roc_auc": 0.7}}, GOOD)) == 1
    worse = {**GOOD, "visual": 0.9985, "decoder": 0.98}
    assert verdict("int8", {}, worse) == ["visual cosine 0.99850", "decoder's tokens 98.0%"]
    assert verdict("fp8", {}, worse) == []


def test_the_table_shows_the_largest_difference() -> None:
    engine = {"points": {"a": {"roc_auc": 0.1, "detection.map50": -0.4}}, "parity": GOOD, "missed": []}
    engine["verdicts"] = {"a": {"samples": 7, "changed": 1, "ok_and_ng": 0}}
    content = {
        "sets": ["a"],
        "images": {"a": 7},
        "split": "val",
        "environment": {"date": "2026-11-30T01:00:00"},
        "engines": {"int8": engine},
    }
    text = table(content)
    assert "| int8 | -0.40 (map50), 1 of 7 | 1.00000 / 1.00000 / 1.00000 | 100.0% / 100.0% / 100.0% | holds |" in text
    assert "samples: a 7. 2026-11-30." in text


def test_verdicts_that_changed_are_counted(tmp_path: Path) -> None:
    def write(name: str, **verdicts: str) -> Path:
        lines = [json.dumps({"auroraedge_predictions": 1})]
        for key, said in verdicts.items():
            lines.append(json.dumps({"prediction": {"sample": {"key": key}, "result": {"verdict": said}}}))
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    found = write("found", a="OK", b="NG", c="REVIEW", only_here="NG")
    reference = write("reference", a="NG", b="NG", c="OK", only_there="OK")
    assert changed_verdicts(found, reference) == {"samples": 3, "changed": 2, "ok_and_ng": 1}


def _graph(quantised: tuple[str, ...]) -> onnx.ModelProto:
    """Three products with weights of two submodules, some behind a DequantizeLinear, and one of two activations."""
    nodes, constants = [], []
    for name in ("layers.0.qkv.weight", "layers.0.mlp.weight", "projector.fc1.weight"):
        factor = name
        if name in quantised:
            constants.append(helper.make_tensor(f"{name}.scale", TensorProto.FLOAT, [1], [0.1]))
            constants.append(helper.make_tensor(name, TensorProto.INT8, [2, 2], [1, 2, 3, 4]))
            nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [f"{name}.dq"]))
            nodes.append(helper.make_node("Transpose", [f"{name}.dq"], [f"{name}.t"]))
            factor = f"{name}.t"
        else:
            constants.append(helper.make_tensor(name, TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0]))
        nodes.append(helper.make_node("MatMul", ["x", factor], [f"{name}.out"]))
    nodes.append(helper.make_node("MatMul", ["x", "projector.fc1.weight.out"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants))


def test_quantisers_are_counted_by_submodule() -> None:
    assert submodule("layers.12.mlp.fc1.weight") == "layers.12" and submodule("projector.fc1.weight") == "projector"
    found = quantised_layers(_graph(("layers.0.qkv.weight", "projector.fc1.weight")))
    assert found == {"layers.0": (1, 2), "projector": (1, 1)}


def test_a_submodule_that_was_skipped_is_refused(tmp_path) -> None:
    source, destination = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(_graph(()), source)

    class Skips:
        """Stands for the environment; its tool quantises the layers and skips the projector, as defaults do."""

        python = "python"

        def run(self, command: list, *, log=None) -> str:
            onnx.save(_graph(("layers.0.qkv.weight", "layers.0.mlp.weight")), command[4])
            return ""

    with pytest.raises(EngineError, match="'projector' unquantised"):
        quantise_onnx(source, destination, {}, "int8", METHODS["int8"][0], Skips())
    with pytest.raises(EngineError, match="not asked for"):
        quantise_onnx(source, destination, {}, "int2", "max", Skips())
