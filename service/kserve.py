"""The Open Inference Protocol (KServe v2) on the same port: each ModelInfer becomes an Inspect.

So it has the same queue, recipes, limits, login, store and idempotency. A model is a recipe, its version the recipe's;
the model "auroraedge" takes the recipe as the parameter recipe_id. docs/operations.md lists tensors and parameters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from auroraedge import __version__
from auroraedge._proto.inference import open_inference_pb2 as oip
from auroraedge._proto.inference.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import InvalidRequestError, RecipeNotFoundError
from service.observation import seen
from service.recipes import RecipeBook
from service.reporting import reports_errors

ANY_RECIPE = "auroraedge"
_INFO = ("request_id", "part_id", "lot", "line", "station", "camera", "job", "trigger_id")
_PARAMETERS = frozenset(
    (*_INFO, "recipe_id", "recipe_version", "prompt", "image_name", "priority", "exposure_us", "timeout")
)
_PRIORITIES = {"low": pb.PRIORITY_LOW, "normal": pb.PRIORITY_NORMAL, "high": pb.PRIORITY_HIGH}

_INPUTS = (("image", "BYTES", (1,)), ("pixels", "UINT8", (-1, -1, 3)), ("reference", "BYTES", (1,)))
_OUTPUTS = (
    ("verdict", "BYTES", (1,)),
    ("ng_probability", "FP32", (1,)),
    ("boxes", "FP32", (-1, 4)),
    ("labels", "BYTES", (-1,)),
    ("scores", "FP32", (-1,)),
    ("text", "BYTES", (1,)),
    ("result_json", "BYTES", (1,)),
)


def _value(parameter: oip.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _parameters(request: oip.ModelInferRequest) -> dict[str, Any]:
    values = {name: _value(parameter) for name, parameter in request.parameters.items()}
    unknown = sorted(values.keys() - _PARAMETERS)
    if unknown:
        raise InvalidRequestError(
            f"There is no parameter '{unknown[0][:64]}'.",
            field=f"parameters.{unknown[0][:64]}",
            remedy=f"Known: {', '.join(sorted(_PARAMETERS))}.",
        )
    return {name: value for name, value in values.items() if value is not None}


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequestError("It must be a text.", field=f"parameters.{name}")
    return value


def _number(values: dict[str, Any], name: str) -> int:
    """A whole number that is not negative, sent as such or as text."""
    value = values.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InvalidRequestError("It must be a whole number, 0 or more.", field=f"parameters.{name}")
    return value


def _priority(values: dict[str, Any]) -> Any:
    """low, normal or high; or a number as inference servers have it: 1 is the highest, 0 the usual one."""
    value = values.get("priority", 0)
    if isinstance(value, str) and value.lower() in _PRIORITIES:
        return _PRIORITIES[value.lower()]
    number = _number(values, "priority")
    levels = (pb.PRIORITY_UNSPECIFIED, pb.PRIORITY_HIGH, pb.PRIORITY_NORMAL, pb.PRIORITY_LOW)
    return levels[min(number, 3)]


def _tensor_bytes(tensor: oip.ModelInferRequest.InferInputTensor, raw: bytes | None) -> bytes:
    """The bytes of a UINT8 tensor, or those of the one element of a BYTES tensor."""
    name = tensor.name
    if tensor.datatype == "BYTES":
        if math.prod(tensor.shape) != 1:
            raise InvalidRequestError(
                f"The shape is {list(tensor.shape)}; one image goes in at a time.",
                field=f"inputs.{name}",
                remedy="Send shape [1].",
            )
        if raw is None:
            elements = tensor.contents.bytes_contents
            if len(elements) != 1:
                raise InvalidRequestError(
                    f"There are {len(elements)} elements; the shape says 1.", field=f"inputs.{name}"
                )
            return elements[0]
        if len(raw) < 4 or struct.unpack_from("<I", raw)[0] != len(raw) - 4:
            raise InvalidRequestError(
                "The bytes are not one element: its length in 4 bytes, little endian, and as many bytes.",
                field=f"inputs.{name}",
            )
        return raw[4:]
    if raw is not None:
        return raw
    try:
        return bytes(tensor.contents.uint_contents)
    except ValueError as error:
        raise InvalidRequestError("An element is above 255.", field=f"inputs.{name}") from error


def _frame(tensor: oip.ModelInferRequest.InferInputTensor, raw: bytes | None) -> pb.Frame:
    name, shape = tensor.name, list(tensor.shape)
    if "shared_memory_region" in tensor.parameters:
        # Its names are paths, and a path in a request is not opened here.
        raise InvalidRequestError(
            "Shared memory of this protocol is not supported.",
            field=f"inputs.{name}",
            remedy="Send the bytes, or use AcquireSharedMemory of auroraedge.inspection.v1.",
        )
    if tensor.datatype == "BYTES":
        return pb.Frame(encoded=_tensor_bytes(tensor, raw))
    if tensor.datatype != "UINT8":
        raise InvalidRequestError(
            f"The data type is {tensor.datatype[:32] or 'missing'}.",
            field=f"inputs.{name}",
            remedy="Send BYTES (an image file) or UINT8 (RGB pixels).",
        )
    if len(shape) == 4 and shape[0] == 1:  # a batch of one
        shape = shape[1:]
    colours = 1 if len(shape) == 2 else shape[2] if len(shape) == 3 else 0
    if colours not in (1, 3) or not all(0 < size < 2**31 for size in shape[:2]):
        raise InvalidRequestError(
            f"The shape is {list(tensor.shape)}.",
            field=f"inputs.{name}",
            remedy="Send [height, width, 3] or [height, width].",
        )
    height, width = shape[0], shape[1]
    pixels = _tensor_bytes(tensor, raw)
    if len(pixels) != height * width * colours:
        raise InvalidRequestError(
            f"There are {len(pixels)} bytes; the shape {list(tensor.shape)} has {height * width * colours}.",
            field=f"inputs.{name}",
        )
    layout = pb.PIXEL_FORMAT_RGB8 if colours == 3 else pb.PIXEL_FORMAT_MONO8
    return pb.Frame(raw=pb.RawImage(width=width, height=height, pixel_format=layout, pixels=pixels))


def _inputs(request: oip.ModelInferRequest) -> dict[str, pb.Frame]:
    raw = request.raw_input_contents
    if raw and (len(raw) != len(request.inputs) or any(tensor.HasField("contents") for tensor in request.inputs)):
        raise InvalidRequestError(
            f"There are {len(raw)} raw contents and {len(request.inputs)} inputs.",
            field="raw_input_contents",
            remedy="Send one for each input, and no `contents`; or none at all.",
        )
    frames: dict[str, pb.Frame] = {}
    for place, tensor in enumerate(request.inputs):
        # Raw pixels may go by either name.
        name = "image" if tensor.name == "pixels" else tensor.name
        if name not in ("image", "reference") or name in frames:
            known = "image or pixels, and reference"
            raise InvalidRequestError(
                f"The input '{tensor.name[:64]}' is unknown or there twice.", field="inputs", remedy=f"Send {known}."
            )
        frames[name] = _frame(tensor, raw[place] if raw else None)
    if "image" not in frames:
        raise InvalidRequestError("There is no image.", field="inputs", remedy="Send the input 'image' or 'pixels'.")
    return frames


def inspect_request(request: oip.ModelInferRequest) -> pb.InspectRequest:
    """The Inspect that a ModelInfer means. Raises InvalidRequestError."""
    values = _parameters(request)
    recipe_id, version = _text(values, "recipe_id"), _number(values, "recipe_version")
    if request.model_name != ANY_RECIPE:
        if recipe_id not in ("", request.model_name):
            raise InvalidRequestError(
                f"The model is '{request.model_name[:64]}' and the recipe '{recipe_id[:64]}'.",
                field="parameters.recipe_id",
                remedy=f"Leave one out, or call the model '{ANY_RECIPE}'.",
            )
        recipe_id = request.model_name
        version = version or _number({"recipe_version": request.model_version or 0}, "recipe_version")
    frames = _inputs(request)
    info = pb.RequestInfo()
    for name in _INFO:
        setattr(info, name, _text(values, name))
    exposure = values.get("exposure_us")
    if exposure is not None:
        if isinstance(exposure, bool) or not isinstance(exposure, int | float):
            raise InvalidRequestError("It must be a number.", field="parameters.exposure_us")
        info.exposure_us = exposure
    return pb.InspectRequest(
        info=info,
        recipe_id=recipe_id,
        recipe_version=version,
        frame=frames["image"],
        reference=frames.get("reference"),
        prompt=_text(values, "prompt"),
        image_name=_text(values, "image_name"),
        priority=_priority(values),
    )


def _elements(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def _outputs(outcome: pb.InspectionResult | pb.Answer) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape and bytes of every output."""
    verdict = pb.Verdict.Name(outcome.verdict).removeprefix("VERDICT_") if outcome.verdict else ""
    probability = outcome.ng_probability if outcome.HasField("ng_probability") else math.nan
    defects = outcome.defects
    boxes = np.full((len(defects), 4), np.nan, "<f4")
    for row, defect in zip(boxes, defects, strict=True):
        if defect.HasField("box"):
            row[:] = defect.box.x1, defect.box.y1, defect.box.x2, defect.box.y2
    scores = np.array([defect.confidence for defect in defects], "<f4")
    model = (
        convert.result_from_proto(outcome)
        if isinstance(outcome, pb.InspectionResult)
        else convert.answer_from_proto(outcome)
    )
    return {
        "verdict": ((1,), _elements([verdict])),
        "ng_probability": ((1,), np.array([probability], "<f4").tobytes()),
        "boxes": (boxes.shape, boxes.tobytes()),
        "labels": ((len(defects),), _elements([defect.label for defect in defects])),
        "scores": (scores.shape, scores.tobytes()),
        "text": ((1,), _elements([outcome.text])),
        "result_json": ((1,), _elements([model.model_dump_json()])),
    }


def _wanted(request: oip.ModelInferRequest) -> list[str]:
    known = [name for name, _, _ in _OUTPUTS]
    wanted = [output.name for output in request.outputs] or known
    for output in request.outputs:
        if output.name not in known or output.parameters:
            raise InvalidRequestError(
                f"The output '{output.name[:64]}' is unknown, or asked for with parameters.",
                field="outputs",
                remedy=f"Known, without parameters: {', '.join(known)}.",
            )
    return wanted


class OpenInferenceServicer(GRPCInferenceServiceServicer):
    def __init__(self, inspections: Any, recipes: RecipeBook, ready: Callable[[], bool]) -> None:
        """`inspections`: the InspectionServicer that does the work; `ready`: whether it takes any."""
        self._inspections, self._recipes, self._ready = inspections, recipes, ready

    def _models(self) -> Iterator[tuple[str, str]]:
        yield ANY_RECIPE, "1"
        for recipe in self._recipes.all:
            yield recipe.id, str(recipe.version)

    def _version(self, name: str, version: str) -> str:
        """The version of a model that there is. Raises RecipeNotFoundError."""
        versions = dict(self._models())
        if name not in versions or version not in ("", versions[name]):
            raise RecipeNotFoundError(
                f"There is no model '{name[:64]}'" + (f" of version {version[:16]}." if version else "."),
                field="name",
                remedy=f"Models: {', '.join(versions)}.",
            )
        return versions[name]

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Any) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Any) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Any) -> oip.ModelReadyResponse:
        try:
            self._version(request.name, request.version)
        except RecipeNotFoundError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._ready())

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Any) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="auroraedge", version=__version__, extensions=["model_repository"])

    @reports_errors
    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Any) -> oip.ModelMetadataResponse:
        version = self._version(request.name, request.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=request.name,
            versions=[version],
            platform="auroraedge",
            inputs=[tensor(name=name, datatype=kind, shape=shape) for name, kind, shape in _INPUTS],
            outputs=[tensor(name=name, datatype=kind, shape=shape) for name, kind, shape in _OUTPUTS],
        )

    async def RepositoryIndex(self, request: oip.RepositoryIndexRequest, context: Any) -> oip.RepositoryIndexResponse:
        ready = self._ready()
        index = oip.RepositoryIndexResponse.ModelIndex
        state, reason = ("READY", "") if ready else ("UNAVAILABLE", "the server is starting or stopping")
        models = [] if request.ready and not ready else list(self._models())
        return oip.RepositoryIndexResponse(
            models=[index(name=name, version=version, state=state, reason=reason) for name, version in models]
        )

    @reports_errors
    async def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        version = self._version(request.model_name, request.model_version)
        wanted = _wanted(request)
        response = await self._inspections.Inspect(inspect_request(request), context)
        outcome = response.result if response.HasField("result") else response.answer
        seen(response)
        outputs = _outputs(outcome)
        kinds = {name: kind for name, kind, _ in _OUTPUTS}
        reply = oip.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
        for name in wanted:
            shape, content = outputs[name]
            reply.outputs.add(name=name, datatype=kinds[name], shape=shape)
            reply.raw_output_contents.append(content)
        parameters = {"recipe_id": outcome.recipe_id, "engine_sha256": outcome.engine_sha256}
        if response.HasField("result"):
            parameters["result_id"] = outcome.result_id
        for key, text in parameters.items():
            reply.parameters[key].string_param = text
        return reply
