"""Protobuf messages <-> the typed objects of auroraedge.inspection, shared by server and client.

What comes from outside is checked here: a value that the typed object refuses is an InvalidRequestError naming it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ValidationError

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client.models import ImageInput, PixelFormat, ServerInfo, ServerLimits
from auroraedge.errors import InvalidImageError, InvalidRequestError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import LabelSpec, Recipe, Severity, Thresholds, Tiling
from auroraedge.inspection.results import (
    Answer,
    Box,
    Defect,
    ErrorDetail,
    GeneratedToken,
    InspectionResult,
    RequestInfo,
    StageTimings,
    Verdict,
)

_M = TypeVar("_M", bound=BaseModel)


def _build(cls: type[_M], where: str, **values: Any) -> _M:
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{first['msg']}.", field=f"{where}.{path}" if path else where) from error


def _number(wrapper: Any, prefix: str, name: str) -> Any:
    return wrapper.Value(f"{prefix}_{name.upper()}")


def _name(wrapper: Any, prefix: str, number: int) -> str:
    """The name behind an enum number, without its prefix. An unset or unknown number is an error, never a default."""
    names = {value: name for name, value in wrapper.items() if value}
    if number not in names:
        raise InvalidRequestError(
            f"{prefix} {number} is unknown.",
            field=prefix.lower(),
            remedy="Set it, or bring client and server to the same version of AuroraEdge.",
        )
    return names[number].removeprefix(f"{prefix}_")


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _moment(stamp: Timestamp, where: str) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError("The timestamp is outside the years 1 to 9999.", field=where) from error


# --- requests --------------------------------------------------------------------------------------------------------


def request_info_to_proto(info: RequestInfo) -> pb.RequestInfo:
    values = info.model_dump(exclude={"captured_at"}, exclude_none=True)
    message = pb.RequestInfo(**values)
    if info.captured_at is not None:
        message.captured_at.CopyFrom(_timestamp(info.captured_at))
    return message


def request_info_from_proto(message: pb.RequestInfo) -> RequestInfo:
    """Raises InvalidRequestError for an overlong text, a negative exposure or a timestamp that is none."""
    names = ("request_id", "part_id", "lot", "line", "station", "camera", "job")
    captured_at = _moment(message.captured_at, "info.captured_at") if message.HasField("captured_at") else None
    return _build(
        RequestInfo,
        "info",
        **{name: getattr(message, name) for name in names},
        exposure_us=_optional(message, "exposure_us"),
        captured_at=captured_at,
    )


def frame_to_proto(image: ImageInput, *, pixel_format: PixelFormat = "rgb8", field: str = "frame") -> pb.Frame:
    """A file, the bytes of one, or uint8 pixels [H, W] (grey) or [H, W, 3] as a Frame.

    Raises InvalidImageError for a file that cannot be read or an array of another dtype or shape.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return pb.Frame(encoded=bytes(image))
    if isinstance(image, np.ndarray):
        grey = image.ndim == 2
        if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)) or image.size == 0:
            raise InvalidImageError(
                f"An array of dtype {image.dtype} and shape {image.shape} is not a frame.",
                field=field,
                remedy="Pass a uint8 array of shape [H, W] or [H, W, 3].",
            )
        height, width = image.shape[:2]
        colour = pb.PIXEL_FORMAT_BGR8 if pixel_format == "bgr8" else pb.PIXEL_FORMAT_RGB8
        kind = pb.PIXEL_FORMAT_MONO8 if grey else colour
        return pb.Frame(raw=pb.RawImage(width=width, height=height, pixel_format=kind, pixels=image.tobytes()))
    try:
        return pb.Frame(encoded=Path(image).read_bytes())
    except OSError as error:
        raise InvalidImageError(f"{image} cannot be read: {error.strerror}.", field=field) from error


# --- results ---------------------------------------------------------------------------------------------------------


def _defect_to_proto(defect: Defect) -> pb.Defect:
    return pb.Defect(
        label=defect.label,
        severity=_number(pb.Severity, "SEVERITY", defect.severity.name),
        box=None if defect.box is None else pb.Box(**defect.box.model_dump()),
        confidence=defect.confidence,
    )


def _defect_from_proto(message: pb.Defect) -> Defect:
    box = message.box
    return _build(
        Defect,
        "defects",
        label=message.label,
        severity=Severity[_name(pb.Severity, "SEVERITY", message.severity)],
        box=Box(x1=box.x1, y1=box.y1, x2=box.x2, y2=box.y2) if message.HasField("box") else None,
        confidence=message.confidence,
    )


def _flat(cls: type[_M], message: Any, where: str) -> _M:
    """A model whose fields are those of `message`, all plain."""
    return _build(cls, where, **{name: getattr(message, name) for name in cls.model_fields})


_RESULT_SAME = (
    "result_id",
    "recipe_id",
    "recipe_version",
    "recipe_sha256",
    "answer_text",
    "text",
    "model_id",
    "engine_sha256",
    "image_sha256",
    "image_width",
    "image_height",
    "image_name",
    "reference_used",
    "views",
    "is_partial",
    "is_simulated",
)
_RESULT_OPTIONAL = ("ng_probability", "predicted_class", "class_probability")


def result_to_proto(result: InspectionResult) -> pb.InspectionResult:
    message = pb.InspectionResult(
        created_at=_timestamp(result.created_at),
        request=request_info_to_proto(result.request),
        verdict=_number(pb.Verdict, "VERDICT", result.verdict.name),
        thresholds=None if result.thresholds is None else pb.Thresholds(**result.thresholds.model_dump()),
        defects=[_defect_to_proto(defect) for defect in result.defects],
        timings=pb.StageTimings(**result.timings.model_dump()),
        warnings=result.warnings,
        error=None if result.error is None else pb.ErrorDetail(**result.error.model_dump()),
        **{name: getattr(result, name) for name in _RESULT_SAME},
    )
    for name in _RESULT_OPTIONAL:
        value = getattr(result, name)
        if value is not None:
            setattr(message, name, value)
    return message


def result_from_proto(message: pb.InspectionResult) -> InspectionResult:
    return _build(
        InspectionResult,
        "result",
        created_at=_moment(message.created_at, "result.created_at"),
        request=request_info_from_proto(message.request),
        verdict=Verdict[_name(pb.Verdict, "VERDICT", message.verdict)],
        thresholds=_flat(Thresholds, message.thresholds, "thresholds") if message.HasField("thresholds") else None,
        defects=tuple(_defect_from_proto(defect) for defect in message.defects),
        timings=_flat(StageTimings, message.timings, "timings"),
        warnings=tuple(message.warnings),
        error=_flat(ErrorDetail, message.error, "error") if message.HasField("error") else None,
        **{name: getattr(message, name) for name in _RESULT_SAME},
        **{name: _optional(message, name) for name in _RESULT_OPTIONAL},
    )


_ANSWER_SAME = ("prompt", "text", "recipe_id", "model_id", "engine_sha256")
_ANSWER_OPTIONAL = ("ng_probability", "count", "predicted_class")


def answer_to_proto(answer: Answer) -> pb.Answer:
    message = pb.Answer(
        kind=_number(pb.PromptKind, "PROMPT_KIND", answer.kind.name),
        defects=[_defect_to_proto(defect) for defect in answer.defects],
        timings=pb.StageTimings(**answer.timings.model_dump()),
        request=request_info_to_proto(answer.request),
        **{name: getattr(answer, name) for name in _ANSWER_SAME},
    )
    if answer.verdict is not None:
        message.verdict = _number(pb.Verdict, "VERDICT", answer.verdict.name)
    for name in _ANSWER_OPTIONAL:
        value = getattr(answer, name)
        if value is not None:
            setattr(message, name, value)
    return message


def answer_from_proto(message: pb.Answer) -> Answer:
    verdict = _optional(message, "verdict")
    return _build(
        Answer,
        "answer",
        kind=PromptKind[_name(pb.PromptKind, "PROMPT_KIND", message.kind)],
        verdict=None if verdict is None else Verdict[_name(pb.Verdict, "VERDICT", verdict)],
        defects=tuple(_defect_from_proto(defect) for defect in message.defects),
        timings=_flat(StageTimings, message.timings, "timings"),
        request=request_info_from_proto(message.request),
        **{name: getattr(message, name) for name in _ANSWER_SAME},
        **{name: _optional(message, name) for name in _ANSWER_OPTIONAL},
    )


def token_to_proto(token: GeneratedToken) -> pb.GenerateResponse:
    return pb.GenerateResponse(**token.model_dump())


def token_from_proto(message: pb.GenerateResponse) -> GeneratedToken:
    return _flat(GeneratedToken, message, "token")


# --- recipes and server ----------------------------------------------------------------------------------------------


def recipe_to_proto(recipe: Recipe) -> pb.Recipe:
    return pb.Recipe(
        id=recipe.id,
        version=recipe.version,
        sha256=recipe.sha256,
        title=recipe.title,
        task=_number(pb.Task, "TASK", recipe.task),
        labels=[
            pb.Label(
                name=label.name,
                severity=_number(pb.Severity, "SEVERITY", label.severity.name),
                title=label.title,
                min_confidence=label.min_confidence,
            )
            for label in recipe.labels
        ],
        thresholds=pb.Thresholds(**recipe.thresholds.model_dump()),
        golden_reference=_number(pb.GoldenReference, "GOLDEN_REFERENCE", recipe.golden_reference),
        tiling=pb.Tiling(
            mode=_number(pb.TilingMode, "TILING_MODE", recipe.tiling.mode),
            **recipe.tiling.model_dump(exclude={"mode"}),
        ),
        max_defects_per_view=recipe.max_defects_per_view,
        merge_iou=recipe.merge_iou,
    )


def recipe_from_proto(message: pb.Recipe) -> Recipe:
    tiling = message.tiling
    return _build(
        Recipe,
        "recipe",
        id=message.id,
        version=message.version,
        title=message.title,
        task=_name(pb.Task, "TASK", message.task).lower(),
        labels=tuple(
            _build(
                LabelSpec,
                "labels",
                name=label.name,
                severity=Severity[_name(pb.Severity, "SEVERITY", label.severity)],
                title=dict(label.title),
                min_confidence=_optional(label, "min_confidence"),
            )
            for label in message.labels
        ),
        thresholds=_flat(Thresholds, message.thresholds, "thresholds"),
        golden_reference=_name(pb.GoldenReference, "GOLDEN_REFERENCE", message.golden_reference).lower(),
        tiling=_build(
            Tiling,
            "tiling",
            mode=_name(pb.TilingMode, "TILING_MODE", tiling.mode).lower(),
            size_px=_optional(tiling, "size_px"),
            overlap_px=tiling.overlap_px,
            max_views=tiling.max_views,
            mirrored=tiling.mirrored,
        ),
        max_defects_per_view=message.max_defects_per_view,
        merge_iou=message.merge_iou,
    )


def server_info_to_proto(info: ServerInfo) -> pb.GetServerInfoResponse:
    return pb.GetServerInfoResponse(
        ready_at=_timestamp(info.ready_at),
        limits=pb.ServerLimits(**info.limits.model_dump()),
        **info.model_dump(exclude={"ready_at", "limits"}),
    )


def server_info_from_proto(message: pb.GetServerInfoResponse) -> ServerInfo:
    same = ("server_version", "model_id", "engine_sha256", "target", "start_seconds")
    return _build(
        ServerInfo,
        "server_info",
        precision=dict(message.precision),
        ready_at=_moment(message.ready_at, "ready_at"),
        limits=_flat(ServerLimits, message.limits, "limits"),
        **{name: getattr(message, name) for name in same},
    )
