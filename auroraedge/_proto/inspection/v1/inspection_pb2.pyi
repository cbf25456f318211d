import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PixelFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIXEL_FORMAT_UNSPECIFIED: _ClassVar[PixelFormat]
    PIXEL_FORMAT_MONO8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGB8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BGR8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_MONO10: _ClassVar[PixelFormat]
    PIXEL_FORMAT_MONO12: _ClassVar[PixelFormat]
    PIXEL_FORMAT_MONO16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_MONO10P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_MONO12P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_RG8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GB8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GR8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_BG8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_RG10: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GB10: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GR10: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_BG10: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_RG12: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GB12: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GR12: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_BG12: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_RG16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GB16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GR16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_BG16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_RG10P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GB10P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GR10P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_BG10P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_RG12P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GB12P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_GR12P: _ClassVar[PixelFormat]
    PIXEL_FORMAT_BAYER_BG12P: _ClassVar[PixelFormat]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class StreamPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_POLICY_UNSPECIFIED: _ClassVar[StreamPolicy]
    STREAM_POLICY_EVERY_FRAME: _ClassVar[StreamPolicy]
    STREAM_POLICY_LATEST_FRAME: _ClassVar[StreamPolicy]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_OK: _ClassVar[Verdict]
    VERDICT_NG: _ClassVar[Verdict]
    VERDICT_REVIEW: _ClassVar[Verdict]
    VERDICT_ERROR: _ClassVar[Verdict]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_CRITICAL: _ClassVar[Severity]
    SEVERITY_MAJOR: _ClassVar[Severity]
    SEVERITY_MINOR: _ClassVar[Severity]

class PromptKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_KIND_UNSPECIFIED: _ClassVar[PromptKind]
    PROMPT_KIND_INSPECT: _ClassVar[PromptKind]
    PROMPT_KIND_CLASSIFY: _ClassVar[PromptKind]
    PROMPT_KIND_EXISTS: _ClassVar[PromptKind]
    PROMPT_KIND_COUNT: _ClassVar[PromptKind]
    PROMPT_KIND_LOCATE: _ClassVar[PromptKind]
    PROMPT_KIND_DESCRIBE: _ClassVar[PromptKind]
    PROMPT_KIND_FREE: _ClassVar[PromptKind]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_INSPECT: _ClassVar[Task]
    TASK_CLASSIFY: _ClassVar[Task]

class GoldenReference(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GOLDEN_REFERENCE_UNSPECIFIED: _ClassVar[GoldenReference]
    GOLDEN_REFERENCE_NONE: _ClassVar[GoldenReference]
    GOLDEN_REFERENCE_OPTIONAL: _ClassVar[GoldenReference]
    GOLDEN_REFERENCE_REQUIRED: _ClassVar[GoldenReference]

class TilingMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TILING_MODE_UNSPECIFIED: _ClassVar[TilingMode]
    TILING_MODE_WHOLE: _ClassVar[TilingMode]
    TILING_MODE_SQUARE: _ClassVar[TilingMode]
PIXEL_FORMAT_UNSPECIFIED: PixelFormat
PIXEL_FORMAT_MONO8: PixelFormat
PIXEL_FORMAT_RGB8: PixelFormat
PIXEL_FORMAT_BGR8: PixelFormat
PIXEL_FORMAT_MONO10: PixelFormat
PIXEL_FORMAT_MONO12: PixelFormat
PIXEL_FORMAT_MONO16: PixelFormat
PIXEL_FORMAT_MONO10P: PixelFormat
PIXEL_FORMAT_MONO12P: PixelFormat
PIXEL_FORMAT_BAYER_RG8: PixelFormat
PIXEL_FORMAT_BAYER_GB8: PixelFormat
PIXEL_FORMAT_BAYER_GR8: PixelFormat
PIXEL_FORMAT_BAYER_BG8: PixelFormat
PIXEL_FORMAT_BAYER_RG10: PixelFormat
PIXEL_FORMAT_BAYER_GB10: PixelFormat
PIXEL_FORMAT_BAYER_GR10: PixelFormat
PIXEL_FORMAT_BAYER_BG10: PixelFormat
PIXEL_FORMAT_BAYER_RG12: PixelFormat
PIXEL_FORMAT_BAYER_GB12: PixelFormat
PIXEL_FORMAT_BAYER_GR12: PixelFormat
PIXEL_FORMAT_BAYER_BG12: PixelFormat
PIXEL_FORMAT_BAYER_RG16: PixelFormat
PIXEL_FORMAT_BAYER_GB16: PixelFormat
PIXEL_FORMAT_BAYER_GR16: PixelFormat
PIXEL_FORMAT_BAYER_BG16: PixelFormat
PIXEL_FORMAT_BAYER_RG10P: PixelFormat
PIXEL_FORMAT_BAYER_GB10P: PixelFormat
PIXEL_FORMAT_BAYER_GR10P: PixelFormat
PIXEL_FORMAT_BAYER_BG10P: PixelFormat
PIXEL_FORMAT_BAYER_RG12P: PixelFormat
PIXEL_FORMAT_BAYER_GB12P: PixelFormat
PIXEL_FORMAT_BAYER_GR12P: PixelFormat
PIXEL_FORMAT_BAYER_BG12P: PixelFormat
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
STREAM_POLICY_UNSPECIFIED: StreamPolicy
STREAM_POLICY_EVERY_FRAME: StreamPolicy
STREAM_POLICY_LATEST_FRAME: StreamPolicy
VERDICT_UNSPECIFIED: Verdict
VERDICT_OK: Verdict
VERDICT_NG: Verdict
VERDICT_REVIEW: Verdict
VERDICT_ERROR: Verdict
SEVERITY_UNSPECIFIED: Severity
SEVERITY_CRITICAL: Severity
SEVERITY_MAJOR: Severity
SEVERITY_MINOR: Severity
PROMPT_KIND_UNSPECIFIED: PromptKind
PROMPT_KIND_INSPECT: PromptKind
PROMPT_KIND_CLASSIFY: PromptKind
PROMPT_KIND_EXISTS: PromptKind
PROMPT_KIND_COUNT: PromptKind
PROMPT_KIND_LOCATE: PromptKind
PROMPT_KIND_DESCRIBE: PromptKind
PROMPT_KIND_FREE: PromptKind
TASK_UNSPECIFIED: Task
TASK_INSPECT: Task
TASK_CLASSIFY: Task
GOLDEN_REFERENCE_UNSPECIFIED: GoldenReference
GOLDEN_REFERENCE_NONE: GoldenReference
GOLDEN_REFERENCE_OPTIONAL: GoldenReference
GOLDEN_REFERENCE_REQUIRED: GoldenReference
TILING_MODE_UNSPECIFIED: TilingMode
TILING_MODE_WHOLE: TilingMode
TILING_MODE_SQUARE: TilingMode

class RawImage(_message.Message):
    __slots__ = ("width", "height", "stride", "pixel_format", "pixels")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    stride: int
    pixel_format: PixelFormat
    pixels: bytes
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., stride: _Optional[int] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ..., pixels: _Optional[bytes] = ...) -> None: ...

class PixelLayout(_message.Message):
    __slots__ = ("width", "height", "stride", "pixel_format")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    stride: int
    pixel_format: PixelFormat
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., stride: _Optional[int] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ...) -> None: ...

class SharedMemoryFrame(_message.Message):
    __slots__ = ("lease_id", "slot", "generation", "offset", "size", "layout")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    slot: int
    generation: int
    offset: int
    size: int
    layout: PixelLayout
    def __init__(self, lease_id: _Optional[str] = ..., slot: _Optional[int] = ..., generation: _Optional[int] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ..., layout: _Optional[_Union[PixelLayout, _Mapping]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("encoded", "raw", "shared_memory")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    shared_memory: SharedMemoryFrame
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ..., shared_memory: _Optional[_Union[SharedMemoryFrame, _Mapping]] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("name", "x", "y", "width", "height")
    NAME_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    x: int
    y: int
    width: int
    height: int
    def __init__(self, name: _Optional[str] = ..., x: _Optional[int] = ..., y: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class RequestInfo(_message.Message):
    __slots__ = ("request_id", "part_id", "lot", "line", "station", "camera", "job", "exposure_us", "captured_at", "trigger_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PART_ID_FIELD_NUMBER: _ClassVar[int]
    LOT_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    STATION_FIELD_NUMBER: _ClassVar[int]
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_US_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_AT_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    part_id: str
    lot: str
    line: str
    station: str
    camera: str
    job: str
    exposure_us: float
    captured_at: _timestamp_pb2.Timestamp
    trigger_id: str
    def __init__(self, request_id: _Optional[str] = ..., part_id: _Optional[str] = ..., lot: _Optional[str] = ..., line: _Optional[str] = ..., station: _Optional[str] = ..., camera: _Optional[str] = ..., job: _Optional[str] = ..., exposure_us: _Optional[float] = ..., captured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., trigger_id: _Optional[str] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("info", "recipe_id", "recipe_version", "frame", "reference", "prompt", "image_name", "priority", "regions")
    INFO_FIELD_NUMBER: _ClassVar[int]
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    info: RequestInfo
    recipe_id: str
    recipe_version: int
    frame: Frame
    reference: Frame
    prompt: str
    image_name: str
    priority: Priority
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    def __init__(self, info: _Optional[_Union[RequestInfo, _Mapping]] = ..., recipe_id: _Optional[str] = ..., recipe_version: _Optional[int] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., reference: _Optional[_Union[Frame, _Mapping]] = ..., prompt: _Optional[str] = ..., image_name: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("result", "answer")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    result: InspectionResult
    answer: Answer
    def __init__(self, result: _Optional[_Union[InspectionResult, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class InspectProgressiveRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: InspectRequest
    def __init__(self, request: _Optional[_Union[InspectRequest, _Mapping]] = ...) -> None: ...

class InspectProgressiveResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: InspectionResult
    def __init__(self, result: _Optional[_Union[InspectionResult, _Mapping]] = ...) -> None: ...

class InspectItem(_message.Message):
    __slots__ = ("recipe_id", "recipe_version", "prompt", "regions", "request_id")
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    recipe_id: str
    recipe_version: int
    prompt: str
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    request_id: str
    def __init__(self, recipe_id: _Optional[str] = ..., recipe_version: _Optional[int] = ..., prompt: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class InspectManyRequest(_message.Message):
    __slots__ = ("info", "frame", "reference", "image_name", "items", "regions", "priority")
    INFO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_NAME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    info: RequestInfo
    frame: Frame
    reference: Frame
    image_name: str
    items: _containers.RepeatedCompositeFieldContainer[InspectItem]
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    priority: Priority
    def __init__(self, info: _Optional[_Union[RequestInfo, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., reference: _Optional[_Union[Frame, _Mapping]] = ..., image_name: _Optional[str] = ..., items: _Optional[_Iterable[_Union[InspectItem, _Mapping]]] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class InspectOutcome(_message.Message):
    __slots__ = ("result", "answer", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: InspectionResult
    answer: Answer
    error: ErrorDetail
    def __init__(self, result: _Optional[_Union[InspectionResult, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., error: _Optional[_Union[ErrorDetail, _Mapping]] = ...) -> None: ...

class InspectManyResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[InspectOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[InspectOutcome, _Mapping]]] = ...) -> None: ...

class StreamSession(_message.Message):
    __slots__ = ("info", "recipe_id", "recipe_version", "reference", "early_verdict", "policy", "priority", "regions")
    INFO_FIELD_NUMBER: _ClassVar[int]
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    EARLY_VERDICT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    info: RequestInfo
    recipe_id: str
    recipe_version: int
    reference: Frame
    early_verdict: bool
    policy: StreamPolicy
    priority: Priority
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    def __init__(self, info: _Optional[_Union[RequestInfo, _Mapping]] = ..., recipe_id: _Optional[str] = ..., recipe_version: _Optional[int] = ..., reference: _Optional[_Union[Frame, _Mapping]] = ..., early_verdict: _Optional[bool] = ..., policy: _Optional[_Union[StreamPolicy, str]] = ..., priority: _Optional[_Union[Priority, str]] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ...) -> None: ...

class StreamFrame(_message.Message):
    __slots__ = ("sequence", "request")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: InspectRequest
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[InspectRequest, _Mapping]] = ...) -> None: ...

class InspectStreamRequest(_message.Message):
    __slots__ = ("session", "frame")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    session: StreamSession
    frame: StreamFrame
    def __init__(self, session: _Optional[_Union[StreamSession, _Mapping]] = ..., frame: _Optional[_Union[StreamFrame, _Mapping]] = ...) -> None: ...

class StreamStatus(_message.Message):
    __slots__ = ("credits", "received", "answered", "dropped")
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    credits: int
    received: int
    answered: int
    dropped: int
    def __init__(self, credits: _Optional[int] = ..., received: _Optional[int] = ..., answered: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class InspectStreamResponse(_message.Message):
    __slots__ = ("sequence", "result", "status", "dropped_sequences")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    result: InspectionResult
    status: StreamStatus
    dropped_sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[int] = ..., result: _Optional[_Union[InspectionResult, _Mapping]] = ..., status: _Optional[_Union[StreamStatus, _Mapping]] = ..., dropped_sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("info", "recipe_id", "recipe_version", "frame", "reference", "prompt", "max_new_tokens", "priority")
    INFO_FIELD_NUMBER: _ClassVar[int]
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    info: RequestInfo
    recipe_id: str
    recipe_version: int
    frame: Frame
    reference: Frame
    prompt: str
    max_new_tokens: int
    priority: Priority
    def __init__(self, info: _Optional[_Union[RequestInfo, _Mapping]] = ..., recipe_id: _Optional[str] = ..., recipe_version: _Optional[int] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., reference: _Optional[_Union[Frame, _Mapping]] = ..., prompt: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "token_id", "index", "done")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_id: int
    index: int
    done: bool
    def __init__(self, text: _Optional[str] = ..., token_id: _Optional[int] = ..., index: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x1", "y1", "x2", "y2")
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    X2_FIELD_NUMBER: _ClassVar[int]
    Y2_FIELD_NUMBER: _ClassVar[int]
    x1: float
    y1: float
    x2: float
    y2: float
    def __init__(self, x1: _Optional[float] = ..., y1: _Optional[float] = ..., x2: _Optional[float] = ..., y2: _Optional[float] = ...) -> None: ...

class Defect(_message.Message):
    __slots__ = ("label", "severity", "box", "confidence", "region")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    label: str
    severity: Severity
    box: Box
    confidence: float
    region: str
    def __init__(self, label: _Optional[str] = ..., severity: _Optional[_Union[Severity, str]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., confidence: _Optional[float] = ..., region: _Optional[str] = ...) -> None: ...

class Thresholds(_message.Message):
    __slots__ = ("ok_below", "ng_above", "defect_confidence")
    OK_BELOW_FIELD_NUMBER: _ClassVar[int]
    NG_ABOVE_FIELD_NUMBER: _ClassVar[int]
    DEFECT_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ok_below: float
    ng_above: float
    defect_confidence: float
    def __init__(self, ok_below: _Optional[float] = ..., ng_above: _Optional[float] = ..., defect_confidence: _Optional[float] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("decode_ms", "preprocess_ms", "vision_ms", "prefill_ms", "verdict_ms", "generate_ms", "total_ms", "queue_ms", "store_ms", "service_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    VISION_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_MS_FIELD_NUMBER: _ClassVar[int]
    GENERATE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    STORE_MS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    verdict_ms: float
    generate_ms: float
    total_ms: float
    queue_ms: float
    store_ms: float
    service_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., preprocess_ms: _Optional[float] = ..., vision_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., verdict_ms: _Optional[float] = ..., generate_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., store_ms: _Optional[float] = ..., service_ms: _Optional[float] = ...) -> None: ...

class RegionVerdict(_message.Message):
    __slots__ = ("region", "verdict", "ng_probability", "views")
    REGION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    region: Region
    verdict: Verdict
    ng_probability: float
    views: int
    def __init__(self, region: _Optional[_Union[Region, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., ng_probability: _Optional[float] = ..., views: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("stored", "seq", "stored_at", "replayed")
    STORED_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STORED_AT_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    seq: int
    stored_at: _timestamp_pb2.Timestamp
    replayed: bool
    def __init__(self, stored: _Optional[bool] = ..., seq: _Optional[int] = ..., stored_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., replayed: _Optional[bool] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "message", "remedy", "field")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    remedy: str
    field: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., remedy: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class InspectionResult(_message.Message):
    __slots__ = ("result_id", "created_at", "request", "verdict", "ng_probability", "thresholds", "defects", "predicted_class", "class_probability", "text", "answer_text", "is_partial", "is_simulated", "error", "recipe_id", "recipe_version", "recipe_sha256", "model_id", "engine_sha256", "image_sha256", "image_width", "image_height", "image_name", "reference_used", "views", "timings", "warnings", "regions", "receipt")
    RESULT_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    DEFECTS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CLASS_FIELD_NUMBER: _ClassVar[int]
    CLASS_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TEXT_FIELD_NUMBER: _ClassVar[int]
    IS_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    IS_SIMULATED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_NAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_USED_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    result_id: str
    created_at: _timestamp_pb2.Timestamp
    request: RequestInfo
    verdict: Verdict
    ng_probability: float
    thresholds: Thresholds
    defects: _containers.RepeatedCompositeFieldContainer[Defect]
    predicted_class: str
    class_probability: float
    text: str
    answer_text: str
    is_partial: bool
    is_simulated: bool
    error: ErrorDetail
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    model_id: str
    engine_sha256: str
    image_sha256: str
    image_width: int
    image_height: int
    image_name: str
    reference_used: bool
    views: int
    timings: StageTimings
    warnings: _containers.RepeatedScalarFieldContainer[str]
    regions: _containers.RepeatedCompositeFieldContainer[RegionVerdict]
    receipt: Receipt
    def __init__(self, result_id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request: _Optional[_Union[RequestInfo, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., ng_probability: _Optional[float] = ..., thresholds: _Optional[_Union[Thresholds, _Mapping]] = ..., defects: _Optional[_Iterable[_Union[Defect, _Mapping]]] = ..., predicted_class: _Optional[str] = ..., class_probability: _Optional[float] = ..., text: _Optional[str] = ..., answer_text: _Optional[str] = ..., is_partial: _Optional[bool] = ..., is_simulated: _Optional[bool] = ..., error: _Optional[_Union[ErrorDetail, _Mapping]] = ..., recipe_id: _Optional[str] = ..., recipe_version: _Optional[int] = ..., recipe_sha256: _Optional[str] = ..., model_id: _Optional[str] = ..., engine_sha256: _Optional[str] = ..., image_sha256: _Optional[str] = ..., image_width: _Optional[int] = ..., image_height: _Optional[int] = ..., image_name: _Optional[str] = ..., reference_used: _Optional[bool] = ..., views: _Optional[int] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., regions: _Optional[_Iterable[_Union[RegionVerdict, _Mapping]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("kind", "prompt", "text", "verdict", "ng_probability", "defects", "count", "predicted_class", "timings", "request", "recipe_id", "recipe_version", "recipe_sha256", "model_id", "engine_sha256", "image_sha256", "image_width", "image_height")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    DEFECTS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CLASS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    kind: PromptKind
    prompt: str
    text: str
    verdict: Verdict
    ng_probability: float
    defects: _containers.RepeatedCompositeFieldContainer[Defect]
    count: int
    predicted_class: str
    timings: StageTimings
    request: RequestInfo
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    model_id: str
    engine_sha256: str
    image_sha256: str
    image_width: int
    image_height: int
    def __init__(self, kind: _Optional[_Union[PromptKind, str]] = ..., prompt: _Optional[str] = ..., text: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., ng_probability: _Optional[float] = ..., defects: _Optional[_Iterable[_Union[Defect, _Mapping]]] = ..., count: _Optional[int] = ..., predicted_class: _Optional[str] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ..., request: _Optional[_Union[RequestInfo, _Mapping]] = ..., recipe_id: _Optional[str] = ..., recipe_version: _Optional[int] = ..., recipe_sha256: _Optional[str] = ..., model_id: _Optional[str] = ..., engine_sha256: _Optional[str] = ..., image_sha256: _Optional[str] = ..., image_width: _Optional[int] = ..., image_height: _Optional[int] = ...) -> None: ...

class Tiling(_message.Message):
    __slots__ = ("mode", "size_px", "overlap_px", "max_views", "mirrored")
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_PX_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_PX_FIELD_NUMBER: _ClassVar[int]
    MAX_VIEWS_FIELD_NUMBER: _ClassVar[int]
    MIRRORED_FIELD_NUMBER: _ClassVar[int]
    mode: TilingMode
    size_px: int
    overlap_px: int
    max_views: int
    mirrored: bool
    def __init__(self, mode: _Optional[_Union[TilingMode, str]] = ..., size_px: _Optional[int] = ..., overlap_px: _Optional[int] = ..., max_views: _Optional[int] = ..., mirrored: _Optional[bool] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("name", "severity", "title", "min_confidence")
    class TitleEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    MIN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    severity: Severity
    title: _containers.ScalarMap[str, str]
    min_confidence: float
    def __init__(self, name: _Optional[str] = ..., severity: _Optional[_Union[Severity, str]] = ..., title: _Optional[_Mapping[str, str]] = ..., min_confidence: _Optional[float] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("id", "version", "sha256", "title", "task", "labels", "thresholds", "golden_reference", "tiling", "max_defects_per_view", "merge_iou", "reference_shift_px")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    MAX_DEFECTS_PER_VIEW_FIELD_NUMBER: _ClassVar[int]
    MERGE_IOU_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SHIFT_PX_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    sha256: str
    title: str
    task: Task
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    thresholds: Thresholds
    golden_reference: GoldenReference
    tiling: Tiling
    max_defects_per_view: int
    merge_iou: float
    reference_shift_px: int
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., sha256: _Optional[str] = ..., title: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ..., thresholds: _Optional[_Union[Thresholds, _Mapping]] = ..., golden_reference: _Optional[_Union[GoldenReference, str]] = ..., tiling: _Optional[_Union[Tiling, _Mapping]] = ..., max_defects_per_view: _Optional[int] = ..., merge_iou: _Optional[float] = ..., reference_shift_px: _Optional[int] = ...) -> None: ...

class ListRecipesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRecipesResponse(_message.Message):
    __slots__ = ("recipes",)
    RECIPES_FIELD_NUMBER: _ClassVar[int]
    recipes: _containers.RepeatedCompositeFieldContainer[Recipe]
    def __init__(self, recipes: _Optional[_Iterable[_Union[Recipe, _Mapping]]] = ...) -> None: ...

class AcquireSharedMemoryRequest(_message.Message):
    __slots__ = ("slot_bytes", "slots")
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    slot_bytes: int
    slots: int
    def __init__(self, slot_bytes: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...

class AcquireSharedMemoryResponse(_message.Message):
    __slots__ = ("lease_id", "socket_path", "segment_bytes", "data_offset", "slot_bytes", "slots", "idle_seconds")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    socket_path: str
    segment_bytes: int
    data_offset: int
    slot_bytes: int
    slots: int
    idle_seconds: float
    def __init__(self, lease_id: _Optional[str] = ..., socket_path: _Optional[str] = ..., segment_bytes: _Optional[int] = ..., data_offset: _Optional[int] = ..., slot_bytes: _Optional[int] = ..., slots: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class RenewSharedMemoryRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class RenewSharedMemoryResponse(_message.Message):
    __slots__ = ("idle_seconds",)
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    idle_seconds: float
    def __init__(self, idle_seconds: _Optional[float] = ...) -> None: ...

class ReleaseSharedMemoryRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class ReleaseSharedMemoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerLimits(_message.Message):
    __slots__ = ("max_message_bytes", "max_pixels", "queue_frames", "queue_bytes", "max_batch", "stream_window", "max_new_tokens", "max_regions", "max_items", "shared_memory_bytes", "shared_memory_client_bytes")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_REGIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_CLIENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_pixels: int
    queue_frames: int
    queue_bytes: int
    max_batch: int
    stream_window: int
    max_new_tokens: int
    max_regions: int
    max_items: int
    shared_memory_bytes: int
    shared_memory_client_bytes: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ..., queue_frames: _Optional[int] = ..., queue_bytes: _Optional[int] = ..., max_batch: _Optional[int] = ..., stream_window: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., max_regions: _Optional[int] = ..., max_items: _Optional[int] = ..., shared_memory_bytes: _Optional[int] = ..., shared_memory_client_bytes: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server_version", "model_id", "engine_sha256", "target", "precision", "ready_at", "start_seconds", "limits")
    class PrecisionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    READY_AT_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    model_id: str
    engine_sha256: str
    target: str
    precision: _containers.ScalarMap[str, str]
    ready_at: _timestamp_pb2.Timestamp
    start_seconds: float
    limits: ServerLimits
    def __init__(self, server_version: _Optional[str] = ..., model_id: _Optional[str] = ..., engine_sha256: _Optional[str] = ..., target: _Optional[str] = ..., precision: _Optional[_Mapping[str, str]] = ..., ready_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_seconds: _Optional[float] = ..., limits: _Optional[_Union[ServerLimits, _Mapping]] = ...) -> None: ...
