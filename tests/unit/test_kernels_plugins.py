"""TensorRT plug-ins: the plain layers mean what the kernels compute and compile; registration follows the API."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from requires import lacks

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from auroraedge.errors import EngineDamagedError  # noqa: E402
from auroraedge.manifest import EngineDescription, KernelChoice  # noqa: E402
from kernels.plugins import (  # noqa: E402
    Packs,
    choose,
    choose_together,
    evaluate,
    plain,
    plugin_ops,
    register,
    with_functions,
    with_plugins,
)

B, N, T, D, M, C, HEADS = 2, 256, 9, 256, 256, 64, 4
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


def _case(op: str, dtype: type) -> tuple[dict[str, np.ndarray], list[str], dict[str, object]]:
    """(inputs, outputs, attributes) of one op in the size of nano. Weights are inputs too."""
    rng = np.random.default_rng()

    def values(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(dtype)

    mask = (np.arange(N)[None] < rng.integers(20, N + 1, (B, 1))).astype(np.float32)
    code = TYPES[np.dtype(dtype)]
    if op == "compress":
        visual = values(B, N, D, scale=3)
        parts = np.square(visual.astype(np.float32)).reshape(B, N, 2, -1).sum(-1)
        inputs = {"visual": visual, "squares": parts, "mask": mask, "norm": values(D), "w1": values(M, N, scale=1 / 16)}
        inputs |= {"b1": values(M), "w2": values(C, M, scale=1 / 16), "b2": values(C)}
        return inputs, ["out"], {"eps": 1e-6, "width": float(D), "dtype": code}
    if op == "cross_attention":
        inputs = {"text": values(B, T, D, scale=2), "key": values(B, N, D), "value": values(B, N, D), "mask": mask}
        inputs |= {"norm": values(D), "wq": values(D, D, scale=1 / 16), "bq": values(D)}
        return inputs, ["out"], {"eps": 1e-6, "heads": HEADS, "scale": (D // HEADS) ** -0.5, "dtype": code}
    if op == "bias_squares":
        return {"product": values(B, N, D), "bias": values(D)}, ["y", "squares"], {}
    assert op == "add_rms_norm"
    inputs = {"x": values(B, T, D), "residual": values(B, T, D), "gain": values(D)}
    return inputs, ["y", "sum"], {"eps": 1e-6, "dtype": code}


def _model(
    op: str, inputs: dict[str, np.ndarray], outputs: list[str], attributes: dict[str, object]
) -> onnx.ModelProto:
    results = [result.numpy() for result in _torch_result(op, inputs)]
    arrays = {**inputs, **dict(zip(outputs, results, strict=True))}
    info = {name: helper.make_tensor_value_info(name, TYPES[a.dtype], a.shape) for name, a in arrays.items()}
    node = helper.make_node(op, list(inputs), outputs, domain="auroraedge", **attributes)
    graph = helper.make_graph([node], op, [info[name] for name in inputs], [info[name] for name in outputs])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("auroraedge", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _torch_result(op: str, inputs: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """What the kernel's op computes, by its reference in the model's code."""
    from auroraedge.ops import compress_reference
    from kernels.fusion_attention.op import cross_attention_reference
    from kernels.rms_norm.op import rms_norm_reference

    t = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if op == "compress":
        weights = (t["w1"], t["b1"], t["w2"], t["b2"])
        return [compress_reference(t["visual"], t["mask"], t["norm"], 1e-6, *weights)]
    if op == "cross_attention":
        key, value = (t[name].unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("key", "value"))
        return [cross_attention_reference(t["text"], key, value, t["mask"], t["norm"], 1e-6, t["wq"], t["bq"])]
    if op == "bias_squares":
        y = t["product"] + t["bias"]
        return [y, y.float().pow(2).unflatten(-1, (-1, 128)).sum(-1)]
    return list(rms_norm_reference(t["x"], t["residual"], t["gain"], 1e-6))


@pytest.mark.parametrize("op", list(plugin_ops()))
@pytest.mark.parametrize("form", [with_functions, plain])
def test_plain_layers_mean_what_the_kernel_computes(op: str, form: object) -> None:
    inputs, outputs, attributes = _case(op, np.float32)
    model = form(_model(op, inputs, outputs, attributes))  # type: ignore[operator]
    onnx.checker.check_model(model)
    if form is plain:
        assert {node.domain for node in model.graph.node} == {""} and not model.functions
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for ours, theirs in zip(session.run(outputs, inputs), _torch_result(op, inputs), strict=True):
        assert ours.shape == tuple(theirs.shape)
        scale = max(1.0, float(theirs.abs().max()))
        assert np.abs(ours - theirs.numpy()).max() <= 3e-6 * scale


@pytest.mark.parametrize("capability", ["8.6", "8.9"])
@pytest.mark.parametrize("op", list(plugin_ops()))
def test_plain_layers_compile_with_tensorrt_rtx(tmp_path: Path, op: str, capability: str) -> None:
    try:
        import tensorrt_rtx  # noqa: F401
    except (ImportError, OSError) as error:
        lacks(f"tensorrt_rtx cannot be loaded: {error}")
    from engine_build.tensorrt_compiler import CompileSettings, compile_graph

    inputs, outputs, attributes = _case(op, np.float16)
    onnx.save(plain(_model(op, inputs, outputs, attributes)), tmp_path / "op.onnx")
    settings = CompileSettings(compute_capability=capability)
    made = compile_graph("tensorrt_rtx", tmp_path / "op.onnx", tmp_path / "op.plan", {}, settings)
    assert made.plan_bytes > 1000
    assert [tensor.name for tensor in made.outputs] == outputs


# --- a stand-in for tensorrt.plugin, by its documentation ------------------------------------------------------------


class Expression(int):
    """ShapeExpr of a constant."""

    def constant_value(self) -> int:
        return int(self)

    def __mul__(self, other: int) -> Expression:
        return Expression(int(self) * int(other))


class TensorDesc:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape_expr = [Expression(size) for size in shape]

    def like(self) -> TensorDesc:
        return TensorDesc(tuple(self.shape_expr))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The documented surface of tensorrt.plugin that the plug-ins use; keeps what is declared."""
    plugin = types.ModuleType("tensorrt.plugin")
    plugin.declared = {}
    plugin.TensorDesc = TensorDesc

    def declare(kind: str):  # type: ignore[no-untyped-def]
        def of(name: str):  # type: ignore[no-untyped-def]
            def keep(function):  # type: ignore[no-untyped-def]
                hints = function.__annotations__
                assert not any(isinstance(hint, str) for hint in hints.values()), "tensorrt.plugin reads annotations"
                plugin.declared.setdefault(name, {})[kind] = function
                return function

            return keep

        return of

    plugin.register, plugin.autotune, plugin.aot_impl = map(declare, ("register", "autotune", "aot_impl"))

    class AutoTuneCombination:
        def __init__(self, types: str, layouts: str) -> None:
            self.types, self.layouts, self.chosen = types.split(", "), layouts, []

        def tactics(self, tactics: list[int]) -> None:
            self.chosen = tactics

    plugin.AutoTuneCombination = AutoTuneCombination
    plugin.KernelLaunchParams = type("KernelLaunchParams", (), {"grid_x": 1, "grid_y": 1, "grid_z": 1})
    plugin.SymInt32 = int
    plugin.SymIntExprs = type("SymIntExprs", (), {"from_tuple": staticmethod(list)})
    plugin.ShapeExprs = type("ShapeExprs", (), {"from_tuple": staticmethod(tuple)})
    plugin.from_shape_expr = lambda shape, dtype: TensorDesc(shape)
    plugin.cdiv = lambda a, b: Expression(-(-a // b))
    tensorrt = types.ModuleType("tensorrt")
    tensorrt.float32, tensorrt.plugin = "float32", plugin
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    return plugin


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    """The packs that the plug-ins use, for Orin; compiled for real."""
    pytest.importorskip("triton")
    from kernels import compile as compiler
    from kernels.variants import variants_for

    out = tmp_path_factory.mktemp("packs")
    wanted = ("compressor-fp16-float", "attention_q-nano-fp16-float", "epilogue-fc2", "rms_norm")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TRITON_CACHE_DIR", str(out / "cache")), ("TRITON_DEFAULT_FP_FUSION", "1")):
            patch.setenv(name, value)
        for variant in variants_for(87):
            if variant.name.startswith(wanted):
                made = compiler.compile_variant(variant, 87)
                compiler.write_pack(out / "sm_87" / variant.name, *made)
    return Packs.load(out, 87)


@pytest.mark.parametrize("op", list(plugin_ops()))
def test_registration_gives_tensorrt_what_the_kernel_needs(
    op: str, packs: Packs, stand_in: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types, tactics, entry, PTX, grid and scalars, for every tile that TensorRT may try."""
    monkeypatch.setattr("kernels.plugins._registered", set())
    register(packs)
    declared = stand_in.declared[f"auroraedge::{op}"]
    assert set(declared) == {"register", "autotune", "aot_impl"}
    inputs, outputs, attributes = _case(op, np.float16)
    descriptions = [TensorDesc(array.shape) for array in inputs.values()]
    made = declared["register"](*descriptions, **attributes)
    made = made if isinstance(made, tuple) else (made,)
    shapes = [tuple(result.shape) for result in _torch_result(op, inputs)]
    assert [tuple(description.shape_expr) for description in made] == shapes
    extra = {"heads": HEADS} if op == "cross_attention" else {}
    (combination,) = declared["autotune"](*descriptions, **extra, outputs=made)
    names = {np.dtype(np.float16): "FP16", np.dtype(np.float32): "FP32"}
    results = _torch_result(op, inputs)
    assert combination.types == [names[a.dtype] for a in inputs.values()] + [names[r.numpy().dtype] for r in results]
    assert combination.layouts == "LINEAR" and combination.chosen
    fitting = packs.fitting(plugin_ops()[op].entry)
    for tactic in combination.chosen:
        entry, ptx, parameters, scalars = declared["aot_impl"](*descriptions, **extra, outputs=made, tactic=tactic)
        (pack,) = [p for p in fitting if p.ptx().encode() == ptx]
        content = pack.content
        assert entry.decode() == content["entry"] and f".entry {content['entry']}".encode() in ptx
        pointers = [a for a in content["arguments"] if a["type"].startswith("*")]
        assert len(pointers) == len(inputs) + len(outputs), "one pointer for every tensor, in the same order"
        assert len(scalars) == len(content["arguments"]) - len(pointers)
        assert parameters.shared_mem == content["shared_bytes"] and parameters.block_x == content["block"][0]
        blocks = content["constexprs"]
        by_op = {
            "compress": lambda b=blocks: (-(-D // b["BLOCK_D"]), B, 1),
            "cross_attention": lambda b=blocks: (-(-T // b["BLOCK_T"]), HEADS, B),
            "bias_squares": lambda b=blocks: (-(-B * N // b["BLOCK_R"]), -(-D // b["BLOCK_O"]), 1),
            "add_rms_norm": lambda b=blocks: (-(-B * T // b["BLOCK_R"]), 1, 1),
        }
        assert (parameters.grid_x, parameters.grid_y, parameters.grid_z) == by_op[op]()
        named = dict(zip([a["name"] for a in content["arguments"] if a not in pointers], scalars, strict=True))
        for name in content["divisible_by_16"]:
            assert named[name] % 16 == 0, name


def test_nodes_for_tensorrts_parser_are_marked() -> None:
    case = _case("compress", np.float16)
    (node,) = with_plugins(_model("compress", *case)).graph.node
    marks = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert node.op_type == "compress" and marks["plugin_namespace"] == b"auroraedge" and marks["aot"] == 1


def test_the_choice_and_its_reason(packs: Packs, stand_in: types.ModuleType) -> None:
    chosen = {choice.op: choice for choice in choose("tensorrt", packs)}
    assert all(choice.how == "plugin" and choice.packs for choice in chosen.values())
    assert chosen["compress"].packs.keys() == {p.name for p in packs.fitting("compress_kernel")}
    assert {c.how for c in choose("tensorrt", None)} == {"plain"}
    del stand_in.aot_impl
    assert {(c.how, c.reason) for c in choose("tensorrt", packs)} == {
        ("plain", "tensorrt has plug-ins, but not ahead of time")
    }
    for choice in choose("no_such_compiler", packs):
        assert choice.how == "plain" and "no ahead-of-time" in choice.reason and not choice.packs


def test_one_op_without_a_pack_makes_all_plain(packs: Packs, stand_in: types.ModuleType) -> None:
    ops = ("compress", "cross_attention")
    assert {c.how for c in choose_together("tensorrt", packs, ops)} == {"plugin"}
    fewer = Packs(sm=87, packs=tuple(p for p in packs.packs if p.content["entry"] != "compress_kernel"))
    assert {(c.how, c.packs == {}) for c in choose_together("tensorrt", fewer, ops)} == {("plain", True)}


def _nano_graph(graph: str, path: Path, dtype: str, kernels: str) -> None:
    from engine_build.gpu_graphs import GraphOptions, ModelShape, write_fusion, write_vision
    from engine_build.network import Precisions
    from engine_build.steps import load_model

    model = load_model(Path(__file__).resolve().parents[2] / "models" / "nano")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write = {"vision": write_vision, "fusion": write_fusion}[graph]
    options = GraphOptions(dtype=dtype, kernels=kernels)
    write(path, ModelShape.of(model.config), lambda name: state[name], Precisions(name="fp16"), options)


@pytest.mark.parametrize("graph", ["vision", "fusion"])
def test_engine_graphs_with_kernel_nodes_mean_the_same_and_compile_in_their_plain_form(
    tmp_path: Path, graph: str
) -> None:
    """nano's real graphs: nodes with functions against the plain ones in ONNX Runtime; marked nodes for TensorRT."""
    rng = np.random.default_rng()
    mask = np.ones((2, 256), np.float32)
    mask[1, 150:] = 0
    feeds = {
        "vision": {
            "patches": rng.integers(0, 256, (2, 256, 768), dtype=np.uint8),
            "position": rng.standard_normal((2, 256, 384), np.float32),
            "patch_mask": mask,
        },
        "fusion": {
            "text": rng.standard_normal((2, 7, 256), np.float32),
            "visual": rng.standard_normal((2, 256, 256), np.float32),
            "patch_mask": mask,
            "text_mask": np.ones((2, 7), np.float32),
        },
    }[graph]
    results = {}
    for kernels in ("", "nodes"):
        path = tmp_path / f"{graph}-{kernels}.onnx"
        _nano_graph(graph, path, "float32", kernels)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        results[kernels] = dict(zip(names, session.run(names, feeds), strict=True))
    assert list(results[""]) == list(results["nodes"])
    for name, theirs in results[""].items():
        assert np.abs(results["nodes"][name] - theirs).max() <= 2e-5 * max(1.0, float(np.abs(theirs).max())), name
    _nano_graph(graph, tmp_path / "marked.onnx", "float16", "plugins")
    marked = onnx.load(tmp_path / "marked.onnx")
    wanted = {"vision": ["bias_squares", "compress"], "fusion": ["cross_attention"]}[graph]
    nodes = [node for node in marked.graph.node if node.domain == "auroraedge"]
    assert [node.op_type for node in nodes] == wanted and not marked.functions
    assert all({"plugin_namespace", "aot"} <= {a.name for a in node.attribute} for node in nodes)
    standard = {node.op_type for node in plain(marked).graph.node}
    assert not standard & set(wanted)


def test_a_damaged_pack_is_not_embedded(packs: Packs) -> None:
    pack = packs.packs[0]
    text = (pack.folder / "kernel.ptx").read_text()
    (pack.folder / "kernel.ptx").write_text(text + "// changed\n")
    with pytest.raises(EngineDamagedError, match=r"kernels\.pack --sm 87"):
        pack.ptx()
    (pack.folder / "kernel.ptx").write_text(text)


def test_grid_expressions() -> None:
    dims = {"rows": 130, "outputs": 64}
    assert evaluate("cdiv(rows, 64) * cdiv(outputs, 32)", dims, None) == 6
    assert (evaluate("rows", dims, None), evaluate("1", dims, None)) == (130, 1)
    with pytest.raises(ValueError, match="no grid expression"):
        evaluate("rows + 1", dims, None)


def test_the_manifest_holds_the_choice_and_older_ones_lack_it() -> None:
    choice = KernelChoice(op="compress", how="plugin", packs={"compressor-fp16-float-d64": "0" * 64})
    content = EngineDescription.model_fields["kernels"]
    assert content.default == ()
    assert json.loads(choice.model_dump_json()) == {
        "op": "compress",
        "how": "plugin",
        "reason": "",
        "packs": {"compressor-fp16-float-d64": "0" * 64},
    }
