"""What can be known of the TensorRT runtime without a GPU: refusals, choices, and that its libraries have its calls.

tests/gpu runs it where there is a GPU; the bookkeeping of the decoder is in test_runtime_in_place.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from types import SimpleNamespace

import pytest

from auroraedge.errors import EngineError, EngineIncompatibleError, MissingDependencyError
from auroraedge.manifest import CompilerInfo
from auroraedge.runtime import cuda_memory, tensorrt_decoder, tensorrt_session
from auroraedge.runtime.tensorrt_session import TARGET_BY_CAPABILITY, Plan, TensorRt


def _manifest(compiler: str = "tensorrt_rtx", version: str = "1.7.1") -> SimpleNamespace:
    return SimpleNamespace(
        target="rtx-ampere",
        model_id="auroraedge-nano",
        compute_capability="8.6",
        weights_sha256="a" * 64,
        compiler=CompilerInfo(name=compiler, version=version),
    )


def test_without_a_driver_the_cpu_engine_is_offered(monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_session, "driver_is_here", lambda: False)
    with pytest.raises(EngineIncompatibleError, match=r"rtx-ampere \(compute capability 8\.6\)") as caught:
        TensorRt.open(_manifest())
    assert "--target cpu" in caught.value.remedy


def test_without_the_library_its_installation_is_named(monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_session, "driver_is_here", lambda: True)

    def absent(name: str) -> object:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(tensorrt_session.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match="tensorrt") as caught:
        TensorRt.open(_manifest("tensorrt"))
    assert "python3-libnvinfer" in caught.value.remedy
    with pytest.raises(MissingDependencyError, match="cuda-bindings or pycuda") as caught:
        cuda_memory.open_gpu()
    assert "auroraedge[tensorrt]" in caught.value.remedy


@pytest.mark.parametrize(
    ("capability", "version", "field", "command"),
    [
        ("8.9", "1.7.1", "compute_capability", "--target rtx-ada"),
        ("7.0", "1.7.1", "compute_capability", "--target cpu"),
        ("8.6", "1.8.0", "compiler.version", "--target rtx-ampere"),
    ],
)
def test_another_gpu_or_version_is_refused_with_the_command(monkeypatch, capability, version, field, command) -> None:
    """What is asked of library and GPU here is a version and a capability: they are compared before anything else."""
    monkeypatch.setattr(tensorrt_session, "driver_is_here", lambda: True)
    library = SimpleNamespace(__version__=version)
    monkeypatch.setattr(tensorrt_session.importlib, "import_module", lambda name: library)
    gpu = SimpleNamespace(capability=capability, name="a GPU")
    monkeypatch.setattr(tensorrt_session, "open_gpu", lambda: gpu)
    with pytest.raises(EngineIncompatibleError) as caught:
        TensorRt.open(_manifest())
    assert caught.value.field == field and command in caught.value.remedy


def test_the_targets_that_are_offered_have_the_capability() -> None:
    pytest.importorskip("yaml")
    targets = importlib.import_module("engine_build.targets")
    known = {targets.load_target(name).compute_capability for name in targets.list_targets()} - {None}
    assert set(TARGET_BY_CAPABILITY) == known
    for capability, name in TARGET_BY_CAPABILITY.items():
        assert targets.load_target(name).compute_capability == capability


def test_the_first_profile_that_fits_is_taken() -> None:
    plan = Plan.__new__(Plan)
    plan.name = "decoder.plan"
    plan.profiles = [
        {"x": [(1, 1, 8), (1, 1, 8), (4, 1, 8)]},
        {"x": [(1, 1, 8), (2, 64, 8), (4, 320, 8)]},
    ]
    assert plan.profile_for({"x": (2, 1, 8)}) == 0
    assert plan.profile_for({"x": (2, 30, 8)}) == 1
    with pytest.raises(EngineError, match=r"x has shape \[2, 400, 8\]; the plan takes \[1, 1, 8\] to \[4, 320, 8\]"):
        plan.profile_for({"x": (2, 400, 8)})


def _attributes(module: object, *roots: str) -> set[str]:
    """Names that are read from variables called `roots` in the source of a module."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id in roots)
            or (isinstance(node.value, ast.Attribute) and node.value.attr in roots)
        )
    }


def test_tensorrt_rtx_has_what_is_called() -> None:
    """The names in our source are looked up in the real library; the bindings of `tensorrt` are made from the same."""
    trt = pytest.importorskip("tensorrt_rtx")
    asked = _attributes(tensorrt_session, "trt") - {"__name__", "__version__"}
    assert {"Runtime", "ILogger", "TensorIOMode", "nptype"} <= asked
    assert not {name for name in asked if not hasattr(trt, name)}
    engine = _attributes(tensorrt_session, "engine") | _attributes(tensorrt_decoder, "engine")
    assert {"get_tensor_profile_shape", "create_execution_context"} <= engine
    engine -= {"device_memory_size"}  # of versions before device_memory_size_v2
    assert not {name for name in engine if not hasattr(trt.ICudaEngine, name)}
    context = _attributes(tensorrt_session, "context") | _attributes(tensorrt_decoder, "context")
    assert {"execute_async_v3", "set_tensor_address", "infer_shapes"} <= context
    assert not {name for name in context if not hasattr(trt.IExecutionContext, name)}
    config = _attributes(tensorrt_session, "config")
    assert {"cuda_graph_strategy"} <= config
    assert not {name for name in config if not hasattr(trt.IRuntimeConfig, name)}


def test_cuda_bindings_has_what_is_called() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    source = inspect.getsource(cuda_memory)
    called = {
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "call"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert len(called) > 15 and all(hasattr(driver, name) for name in called)
    asked = _attributes(cuda_memory, "driver")
    asked -= {
        "Device",
        "Memcpy2D",
        "Stream",
        "init",
        "Error",
        "mem_alloc",
        "memset_d8",
        "pagelocked_empty",
    }  # of pycuda
    assert not {name for name in asked if not hasattr(driver, name)}
    assert all(hasattr(driver.CUDA_MEMCPY2D(), name) for name in _attributes(cuda_memory, "about") if name[0].isupper())
    kinds = (driver.CUstreamCaptureMode, driver.CUstream_flags, driver.CUmemorytype)
    constants = _attributes(cuda_memory, "mode", "CUstream_flags", "CUmemorytype")
    assert len(constants) == 3 and all(any(hasattr(kind, name) for kind in kinds) for name in constants)
    assert int(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) == 75
    if not cuda_memory.driver_is_here():
        with pytest.raises(EngineIncompatibleError, match="no GPU that CUDA can use"):
            cuda_memory.open_gpu()
