import datetime

from auroraedge._proto.inspection.v1 import inspection_pb2 as _inspection_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Review(_message.Message):
    __slots__ = ("verdict", "reviewer", "reason", "created_at", "defects_corrected", "defects")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    DEFECTS_CORRECTED_FIELD_NUMBER: _ClassVar[int]
    DEFECTS_FIELD_NUMBER: _ClassVar[int]
    verdict: _inspection_pb2.Verdict
    reviewer: str
    reason: str
    created_at: _timestamp_pb2.Timestamp
    defects_corrected: bool
    defects: _containers.RepeatedCompositeFieldContainer[_inspection_pb2.Defect]
    def __init__(self, verdict: _Optional[_Union[_inspection_pb2.Verdict, str]] = ..., reviewer: _Optional[str] = ..., reason: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., defects_corrected: _Optional[bool] = ..., defects: _Optional[_Iterable[_Union[_inspection_pb2.Defect, _Mapping]]] = ...) -> None: ...

class StoredResult(_message.Message):
    __slots__ = ("result", "effective_verdict", "review", "has_image", "reference_sha256", "image_sha256")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_VERDICT_FIELD_NUMBER: _ClassVar[int]
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    HAS_IMAGE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    result: _inspection_pb2.InspectionResult
    effective_verdict: _inspection_pb2.Verdict
    review: Review
    has_image: bool
    reference_sha256: str
    image_sha256: str
    def __init__(self, result: _Optional[_Union[_inspection_pb2.InspectionResult, _Mapping]] = ..., effective_verdict: _Optional[_Union[_inspection_pb2.Verdict, str]] = ..., review: _Optional[_Union[Review, _Mapping]] = ..., has_image: _Optional[bool] = ..., reference_sha256: _Optional[str] = ..., image_sha256: _Optional[str] = ...) -> None: ...

class ResultFilter(_message.Message):
    __slots__ = ("since", "until", "lot", "line", "station", "camera", "job", "part_id", "recipe_id", "engine_sha256", "verdicts", "simulated", "reviewed")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LOT_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    STATION_FIELD_NUMBER: _ClassVar[int]
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    PART_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    REVIEWED_FIELD_NUMBER: _ClassVar[int]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    lot: str
    line: str
    station: str
    camera: str
    job: str
    part_id: str
    recipe_id: str
    engine_sha256: str
    verdicts: _containers.RepeatedScalarFieldContainer[_inspection_pb2.Verdict]
    simulated: bool
    reviewed: bool
    def __init__(self, since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lot: _Optional[str] = ..., line: _Optional[str] = ..., station: _Optional[str] = ..., camera: _Optional[str] = ..., job: _Optional[str] = ..., part_id: _Optional[str] = ..., recipe_id: _Optional[str] = ..., engine_sha256: _Optional[str] = ..., verdicts: _Optional[_Iterable[_Union[_inspection_pb2.Verdict, str]]] = ..., simulated: _Optional[bool] = ..., reviewed: _Optional[bool] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("result_id", "request_id")
    RESULT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    result_id: str
    request_id: str
    def __init__(self, result_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: StoredResult
    def __init__(self, result: _Optional[_Union[StoredResult, _Mapping]] = ...) -> None: ...

class ListResultsRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token", "newest_first", "after_seq", "count")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    filter: ResultFilter
    page_size: int
    page_token: str
    newest_first: bool
    after_seq: int
    count: bool
    def __init__(self, filter: _Optional[_Union[ResultFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., newest_first: _Optional[bool] = ..., after_seq: _Optional[int] = ..., count: _Optional[bool] = ...) -> None: ...

class ListResultsResponse(_message.Message):
    __slots__ = ("results", "next_page_token", "total")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[StoredResult]
    next_page_token: str
    total: int
    def __init__(self, results: _Optional[_Iterable[_Union[StoredResult, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("image_sha256",)
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    image_sha256: str
    def __init__(self, image_sha256: _Optional[str] = ...) -> None: ...

class GetImageResponse(_message.Message):
    __slots__ = ("data", "content_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    content_type: str
    def __init__(self, data: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...
