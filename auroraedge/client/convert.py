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
from auroraedge.client.models import ImageInput, RawPixels, ServerInfo, ServerLimits
from auroraedge.client.shared_memory import SharedFrame
from auroraedge.errors import InvalidImageError, InvalidRequestError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.raw import PIXEL_FORMATS
from auroraedge.inspection.recipe import LabelSpec, Recipe, Severity, Thresholds, Tiling
from auroraedge.inspection.results import (
    Answer,
    Box,
    Defect,
    ErrorDetail,
    GeneratedToken,
    InspectionResult,
    Receipt,
    Region,
    RegionVerdict,
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


def enum_name(wrapper: Any, prefix: str, number: int) -> str:
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


def timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(stamp: Timestamp, where: str) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError("The timestamp is outside the years 1 to 9999.", field=where) from error


# --- requests --------------------------------------------------------------------------------------------------------


def request_info_to_proto(info: RequestInfo) -> pb.RequestInfo:
    values = info.model_dump(exclude={"captured_at"}, exclude_none=True)
    message = pb.RequestInfo(**values)
    if info.captured_at is not None:
        message.captured_at.CopyFrom(timestamp(info.captured_at))
    return message


def request_info_from_proto(message: pb.RequestInfo) -> RequestInfo:
    """Raises InvalidRequestError for an overlong text, a negative exposure or a timestamp that is none."""
    names = ("request_id", "part_id", "lot", "line", "station", "camera", "job", "trigger_id")
    captured_at = moment(message.captured_at, "info.captured_at") if message.HasField("captured_at") else None
    return _build(
        RequestInfo,
        "info",
        **{name: getattr(message, name) for name in names},
        exposure_us=_optional(message, "exposure_us"),
        captured_at=captured_at,
    )


def region_to_proto(region: Region) -> pb.Region:
    return pb.Region(**region.model_dump())


def region_from_proto(message: pb.Region, where: str = "regions") -> Region:
    """Raises InvalidRequestError for an empty region or an overlong name."""
    return _flat(Region, message, where)


def _pixel_format(name: str, field: str) -> Any:
    if name.upper() not in PIXEL_FORMATS:
        known = ", ".join(PIXEL_FORMATS).lower()
        raise InvalidImageError(
            f"There is no pixel format {name!r}.", field=f"{field}.pixel_format", remedy=f"Use one of {known}."
        )
    return pb.PixelFormat.Value(f"PIXEL_FORMAT_{name.upper()}")


def array_layout(shape: tuple[int, ...], dtype: np.dtype[Any], pixel_format: str, field: str) -> pb.PixelLayout:
    """How an array of pixels lies in memory. Raises InvalidImageError for one that is no frame of that format."""
    colour = len(shape) == 3 and shape[2] == 3
    name = pixel_format.lower()
    number = _pixel_format(name, field)
    size = dtype.itemsize if dtype.kind == "u" else 0
    if len(shape) == 2 and size == 1 and name in ("rgb8", "bgr8"):
        name, number = "mono8", pb.PIXEL_FORMAT_MONO8
    wanted = 1 if name.endswith("8") else 2
    fits = colour if name in ("rgb8", "bgr8") else len(shape) == 2 and not name.endswith("p")
    if size != wanted or min(shape, default=0) < 1 or not fits:
        raise InvalidImageError(
            f"An array of dtype {dtype} and shape {shape} is not a frame of {pixel_format}.",
            field=field,
            remedy="Pass uint8 [H, W] or [H, W, 3]; uint16 [H, W] with its format, such as pixel_format='mono12'; or "
            "RawPixels for packed formats.",
        )
    return pb.PixelLayout(width=shape[1], height=shape[0], pixel_format=number)


def frame_to_proto(image: ImageInput, *, pixel_format: str = "rgb8", field: str = "frame") -> pb.Frame:
    """`fill_frame` of a new Frame."""
    message = pb.Frame()
    fill_frame(message, image, pixel_format=pixel_format, field=field)
    return message


def fill_frame(message: pb.Frame, image: ImageInput, *, pixel_format: str = "rgb8", field: str = "frame") -> None:
    """A file, the bytes of one, an array of pixels, raw pixels, or a frame in shared memory.

    In place, because a message that is given to another one's constructor is copied slowly: 25 ms for 15 MB of pixels,
    at every level. Raises InvalidImageError for a file that cannot be read or an array of another dtype or shape.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        message.encoded = bytes(image)
    elif isinstance(image, SharedFrame):
        message.CopyFrom(image.to_proto())
    elif isinstance(image, RawPixels):
        raw = message.raw
        raw.pixel_format = _pixel_format(image.pixel_format, field)
        try:
            raw.width, raw.height, raw.stride = image.width, image.height, image.stride
        except ValueError as error:
            raise InvalidImageError(f"{error}.", field=field, remedy="Give sizes from 0 to 4294967295.") from error
        raw.pixels = image.data.tobytes() if isinstance(image.data, np.ndarray) else bytes(image.data)
    elif isinstance(image, np.ndarray):
        layout = array_layout(image.shape, image.dtype, pixel_format, field)
        raw = message.raw
        raw.width, raw.height, raw.pixel_format = layout.width, layout.height, layout.pixel_format
        raw.pixels = (image if image.dtype == np.uint8 else image.astype("<u2", copy=False)).tobytes()
    else:
        try:
            message.encoded = Path(image).read_bytes()
        except OSError as error:
            raise InvalidImageError(f"{image} cannot be read: {error.strerror}.", field=field) from error


def verdict_to_proto(verdict: Verdict) -> Any:
    return _number(pb.Verdict, "VERDICT", verdict.name)


def verdict_from_proto(number: int) -> Verdict:
    """Raises InvalidRequestError for an unset or unknown verdict."""
    return Verdict[enum_name(pb.Verdict, "VERDICT", number)]


# --- results ---------------------------------------------------------------------------------------------------------


def defect_to_proto(defect: Defect) -> pb.Defect:
    return pb.Defect(
        label=defect.label,
        severity=_number(pb.Severity, "SEVERITY", defect.severity.name),
        box=None if defect.box is None else pb.Box(**defect.box.model_dump()),
        confidence=defect.confidence,
        region=defect.region,
    )


def defect_from_proto(message: pb.Defect) -> Defect:
    box = message.box
    return _build(
        Defect,
        "defects",
        label=message.label,
        severity=Severity[enum_name(pb.Severity, "SEVERITY", message.severity)],
        box=Box(x1=box.x1, y1=box.y1, x2=box.x2, y2=box.y2) if message.HasField("box") else None,
        confidence=message.confidence,
        region=message.region,
    )


def _receipt_to_proto(receipt: Receipt) -> pb.Receipt:
    message = pb.Receipt(**receipt.model_dump(exclude={"stored_at"}))
    if receipt.stored_at is not None:
        message.stored_at.CopyFrom(timestamp(receipt.stored_at))
    return message


def _receipt_from_proto(message: pb.Receipt) -> Receipt:
    stored_at = moment(message.stored_at, "receipt.stored_at") if message.HasField("stored_at") else None
    return Receipt(stored=message.stored, seq=message.seq, stored_at=stored_at, replayed=message.replayed)


def _region_verdict_to_proto(found: RegionVerdict) -> pb.RegionVerdict:
    return pb.RegionVerdict(
        region=region_to_proto(found.region),
        verdict=verdict_to_proto(found.verdict),
        ng_probability=found.ng_probability,
        views=found.views,
    )


def _region_verdict_from_proto(message: pb.RegionVerdict) -> RegionVerdict:
    return _build(
        RegionVerdict,
        "regions",
        region=region_from_proto(message.region),
        verdict=verdict_from_proto(message.verdict),
        ng_probability=message.ng_probability,
        views=message.views,
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
        created_at=timestamp(result.created_at),
        request=request_info_to_proto(result.request),
        verdict=verdict_to_proto(result.verdict),
        thresholds=None if result.thresholds is None else pb.Thresholds(**result.thresholds.model_dump()),
        defects=[defect_to_proto(defect) for defect in result.defects],
        timings=pb.StageTimings(**result.timings.model_dump()),
        warnings=result.warnings,
        error=None if result.error is None else pb.ErrorDetail(**result.error.model_dump()),
        regions=[_region_verdict_to_proto(found) for found in result.regions],
        receipt=None if result.receipt is None else _receipt_to_proto(result.receipt),
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
        created_at=moment(message.created_at, "result.created_at"),
        request=request_info_from_proto(message.request),
        verdict=verdict_from_proto(message.verdict),
        thresholds=_flat(Thresholds, message.thresholds, "thresholds") if message.HasField("thresholds") else None,
        defects=tuple(defect_from_proto(defect) for defect in message.defects),
        timings=_flat(StageTimings, message.timings, "timings"),
        warnings=tuple(message.warnings),
        error=_flat(ErrorDetail, message.error, "error") if message.HasField("error") else None,
        regions=tuple(_region_verdict_from_proto(found) for found in message.regions),
        receipt=_receipt_from_proto(message.receipt) if message.HasField("receipt") else None,
        **{name: getattr(message, name) for name in _RESULT_SAME},
        **{name: _optional(message, name) for name in _RESULT_OPTIONAL},
    )


_ANSWER_SAME = (
    "prompt",
    "text",
    "recipe_id",
    "recipe_version",
    "recipe_sha256",
    "model_id",
    "engine_sha256",
    "image_sha256",
    "image_width",
    "image_height",
)
_ANSWER_OPTIONAL = ("ng_probability", "count", "predicted_class")


def answer_to_proto(answer: Answer) -> pb.Answer:
    message = pb.Answer(
        kind=_number(pb.PromptKind, "PROMPT_KIND", answer.kind.name),
        defects=[defect_to_proto(defect) for defect in answer.defects],
        timings=pb.StageTimings(**answer.timings.model_dump()),
        request=request_info_to_proto(answer.request),
        **{name: getattr(answer, name) for name in _ANSWER_SAME},
    )
    if answer.verdict is not None:
        message.verdict = verdict_to_proto(answer.verdict)
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
        kind=PromptKind[enum_name(pb.PromptKind, "PROMPT_KIND", message.kind)],
        verdict=None if verdict is None else verdict_from_proto(verdict),
        defects=tuple(defect_from_proto(defect) for defect in message.defects),
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
        reference_shift_px=recipe.reference_shift_px,
    )


def recipe_from_proto(message: pb.Recipe) -> Recipe:
    tiling = message.tiling
    return _build(
        Recipe,
        "recipe",
        id=message.id,
        version=message.version,
        title=message.title,
        task=enum_name(pb.Task, "TASK", message.task).lower(),
        labels=tuple(
            _build(
                LabelSpec,
                "labels",
                name=label.name,
                severity=Severity[enum_name(pb.Severity, "SEVERITY", label.severity)],
                title=dict(label.title),
                min_confidence=_optional(label, "min_confidence"),
            )
            for label in message.labels
        ),
        thresholds=_flat(Thresholds, message.thresholds, "thresholds"),
        golden_reference=enum_name(pb.GoldenReference, "GOLDEN_REFERENCE", message.golden_reference).lower(),
        tiling=_build(
            Tiling,
            "tiling",
            mode=enum_name(pb.TilingMode, "TILING_MODE", tiling.mode).lower(),
            size_px=_optional(tiling, "size_px"),
            overlap_px=tiling.overlap_px,
            max_views=tiling.max_views,
            mirrored=tiling.mirrored,
        ),
        max_defects_per_view=message.max_defects_per_view,
        merge_iou=message.merge_iou,
        reference_shift_px=message.reference_shift_px,
    )


def server_info_to_proto(info: ServerInfo) -> pb.GetServerInfoResponse:
    return pb.GetServerInfoResponse(
        ready_at=timestamp(info.ready_at),
        limits=pb.ServerLimits(**info.limits.model_dump()),
        **info.model_dump(exclude={"ready_at", "limits"}),
    )


def server_info_from_proto(message: pb.GetServerInfoResponse) -> ServerInfo:
    same = ("server_version", "model_id", "engine_sha256", "target", "start_seconds")
    return _build(
        ServerInfo,
        "server_info",
        precision=dict(message.precision),
        ready_at=moment(message.ready_at, "ready_at"),
        limits=_flat(ServerLimits, message.limits, "limits"),
        **{name: getattr(message, name) for name in same},
    )
