"""The Open Inference Protocol: with the real tritonclient, and by hand for what it would never send."""

from __future__ import annotations

import json
import math
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from requires import lacks
from service_harness import RunningServer, encoded, frame, running_server

from auroraedge._proto.inference import open_inference_pb2 as oip
from auroraedge._proto.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from auroraedge.client.transport import error_from_rpc
from auroraedge.inspection.results import InspectionResult
from service.security import METHOD_SCOPES

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "magnetic_tile"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def stub(server: RunningServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def test_tritonclient_works_unmodified(server: RunningServer, tmp_path: Path) -> None:
    python = ROOT / ".venv-triton" / "bin" / "python"
    if not python.exists():
        lacks("tritonclient is not installed: make .venv-triton/.installed")
    image = tmp_path / "part.png"
    image.write_bytes(encoded(frame()))
    command = [str(python), str(Path(__file__).parent / "triton_client.py"), server.address, str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin"}, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["live"] and report["ready"] and report["model_ready"] == [True, True, False]
    assert report["server"]["name"] == "auroraedge" and "model_repository" in report["server"]["extensions"]
    assert {tensor["name"] for tensor in report["model"]["inputs"]} == {"image", "pixels", "reference"}
    index = {model["name"]: model["state"] for model in report["index"]["models"]}
    assert index["pcb"] == index["auroraedge"] == "READY"

    found = report["encoded"]
    result = InspectionResult.model_validate_json(found["result_json"][0])
    assert (found["verdict"], found["labels"], found["boxes"]) == (["OK"], ["blowhole"], [[10.0, 8.0, 20.0, 18.0]])
    assert found["ng_probability"] == [pytest.approx(result.ng_probability)]
    assert found["scores"] == [1.0]
    assert result.recipe_id == RECIPE and report["id"] == "7"
    assert result.request.request_id == "", "the protocol's id is an echo, and often used again"
    assert report["raw"] == {"verdict": ["OK"], "boxes": [[10.0, 8.0, 20.0, 18.0]]}
    assert InspectionResult.model_validate_json(report["reference"]["result_json"][0]).reference_used
    assert report["prompt"]["text"] == ["yes"]
    codes = [code for code, _ in report["errors"]]
    expected = ["NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "INVALID_ARGUMENT"]
    assert codes == [f"StatusCode.{name}" for name in expected]
    assert "recipe_id" in report["errors"][2][1] and "recipy" in report["errors"][4][1]


# --- by hand ---------------------------------------------------------------------------------------------------------


def tensor(name: str = "image", datatype: str = "BYTES", shape: tuple[int, ...] = (1,), **contents: Any) -> Any:
    made = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(oip.InferTensorContents(**contents))
    return made


def infer(
    *inputs: Any, raw: list[bytes] | None = None, model: str = RECIPE, **parameters: Any
) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw or ())
    for name, value in parameters.items():
        kind = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def result_of(response: oip.ModelInferResponse) -> InspectionResult:
    place = [output.name for output in response.outputs].index("result_json")
    return InspectionResult.model_validate_json(response.raw_output_contents[place][4:])


PNG = encoded(frame())
PIXELS = frame()
ELEMENT = struct.pack("<I", len(PNG)) + PNG


def test_typed_and_raw_contents_are_the_same(stub: GRPCInferenceServiceStub) -> None:
    requests = [
        infer(tensor(bytes_contents=[PNG])),
        infer(tensor(), raw=[ELEMENT]),
        infer(tensor("pixels", "UINT8", PIXELS.shape), raw=[PIXELS.tobytes()]),
        infer(tensor("image", "UINT8", (1, *PIXELS.shape)), raw=[PIXELS.tobytes()]),
        infer(tensor("pixels", "UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist())),
    ]
    results = [result_of(stub.ModelInfer(request, timeout=10)) for request in requests]
    assert len({result.image_sha256 for result in results}) == 1
    grey = result_of(stub.ModelInfer(infer(tensor("pixels", "UINT8", (48, 64)), raw=[PIXELS[:, :, 0].tobytes()])))
    assert (grey.image_width, grey.image_height) == (64, 48)


def test_parameters_reach_the_result(stub: GRPCInferenceServiceStub) -> None:
    request = infer(
        tensor(bytes_contents=[PNG]), model="auroraedge", recipe_id=RECIPE, request_id="r", part_id="P", lot="L",
        line="1", station="S", camera="C", job="J", trigger_id="T", exposure_us=12, image_name="n.png", priority="high",
        recipe_version="1",
    )  # fmt: skip
    result = result_of(stub.ModelInfer(request, timeout=10))
    assert result.request.model_dump(exclude_none=True) == {
        "request_id": "r", "part_id": "P", "lot": "L", "line": "1", "station": "S", "camera": "C", "job": "J",
        "trigger_id": "T", "exposure_us": 12.0,
    }  # fmt: skip
    assert result.image_name == "n.png"


def test_a_clean_part_has_empty_tensors(stub: GRPCInferenceServiceStub) -> None:
    dark = np.full((20, 20, 3), 5, np.uint8)
    response = stub.ModelInfer(infer(tensor("pixels", "UINT8", dark.shape), raw=[dark.tobytes()]), timeout=10)
    shapes = {output.name: list(output.shape) for output in response.outputs}
    assert (shapes["boxes"], shapes["labels"], shapes["scores"]) == ([0, 4], [0], [0])
    assert len(response.raw_output_contents) == len(response.outputs)


def test_answers_without_a_probability_are_not_a_number(stub: GRPCInferenceServiceStub) -> None:
    response = stub.ModelInfer(infer(tensor(bytes_contents=[PNG]), prompt="count crack"), timeout=10)
    place = [output.name for output in response.outputs].index("ng_probability")
    assert math.isnan(struct.unpack("<f", response.raw_output_contents[place])[0])


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (infer(), "inputs"),
        (infer(tensor("picture", bytes_contents=[PNG])), "inputs"),
        (infer(tensor(bytes_contents=[PNG]), tensor("pixels", "UINT8", (1, 1, 3)), raw=None), "inputs"),
        (infer(tensor(bytes_contents=[PNG, PNG])), "inputs.image"),
        (infer(tensor(shape=(2,), bytes_contents=[PNG, PNG])), "inputs.image"),
        (infer(tensor(bytes_contents=[PNG]), raw=[ELEMENT]), "raw_input_contents"),
        (infer(tensor(), raw=[ELEMENT, ELEMENT]), "raw_input_contents"),
        (infer(tensor(), raw=[PNG]), "inputs.image"),
        (infer(tensor(), raw=[b"\xff\xff\xff\xff"]), "inputs.image"),
        (infer(tensor(datatype="FP32")), "inputs.image"),
        (infer(tensor("pixels", "UINT8", (48, 64, 3)), raw=[b"short"]), "inputs.pixels"),
        (infer(tensor("pixels", "UINT8", (48, 64, 4)), raw=[b"short"]), "inputs.pixels"),
        (infer(tensor("pixels", "UINT8", (2**40, 64, 3)), raw=[b"short"]), "inputs.pixels"),
        (infer(tensor("pixels", "UINT8", (-1, -1, 3)), raw=[b"abc"]), "inputs.pixels"),
        (infer(tensor("pixels", "UINT8", (1, 1, 3), uint_contents=[1, 2, 256])), "inputs.pixels"),
        (infer(tensor(bytes_contents=[PNG]), recipy="x"), "parameters.recipy"),
        (infer(tensor(bytes_contents=[PNG]), recipe_id="pcb"), "parameters.recipe_id"),
        (infer(tensor(bytes_contents=[PNG]), part_id=7), "parameters.part_id"),
        (infer(tensor(bytes_contents=[PNG]), recipe_version=-1), "parameters.recipe_version"),
        (infer(tensor(bytes_contents=[PNG]), priority="urgent"), "parameters.priority"),
        (infer(tensor(bytes_contents=[PNG]), exposure_us="long"), "parameters.exposure_us"),
    ],
)
def test_faulty_requests_are_refused_with_their_field(
    stub: GRPCInferenceServiceStub, request_: oip.ModelInferRequest, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_, timeout=10)
    error = error_from_rpc(caught.value)
    assert (error.reason, error.field) == ("INVALID_REQUEST", field)


def test_paths_of_shared_memory_are_not_opened(stub: GRPCInferenceServiceStub) -> None:
    request = infer(tensor())
    request.inputs[0].parameters["shared_memory_region"].string_param = "/etc/passwd"
    with pytest.raises(grpc.RpcError, match="not supported") as caught:
        stub.ModelInfer(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_unknown_outputs_are_refused(stub: GRPCInferenceServiceStub) -> None:
    request = infer(tensor(bytes_contents=[PNG]))
    request.outputs.add(name="heatmap")
    with pytest.raises(grpc.RpcError, match="heatmap"):
        stub.ModelInfer(request, timeout=10)
    request.outputs[0].name = "verdict"
    request.outputs[0].parameters["classification"].int64_param = 3
    with pytest.raises(grpc.RpcError, match="parameters"):
        stub.ModelInfer(request, timeout=10)


def test_it_can_be_switched_off_and_has_scopes() -> None:
    service = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {f"/{service.full_name}/{method.name}" for method in service.methods} <= METHOD_SCOPES.keys()
    with running_server(kserve=False) as running, grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            GRPCInferenceServiceStub(channel).ServerLive(oip.ServerLiveRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
