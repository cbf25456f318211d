import datetime

from auroraedge._proto.inspection.v1 import inspection_pb2 as _inspection_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecipeChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECIPE_CHANGE_KIND_UNSPECIFIED: _ClassVar[RecipeChangeKind]
    RECIPE_CHANGE_KIND_ADDED: _ClassVar[RecipeChangeKind]
    RECIPE_CHANGE_KIND_CHANGED: _ClassVar[RecipeChangeKind]
    RECIPE_CHANGE_KIND_REMOVED: _ClassVar[RecipeChangeKind]

class ServerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SERVER_STATE_UNSPECIFIED: _ClassVar[ServerState]
    SERVER_STATE_STARTING: _ClassVar[ServerState]
    SERVER_STATE_SERVING: _ClassVar[ServerState]
    SERVER_STATE_DRAINING: _ClassVar[ServerState]

class StoreState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORE_STATE_UNSPECIFIED: _ClassVar[StoreState]
    STORE_STATE_NONE: _ClassVar[StoreState]
    STORE_STATE_WRITING: _ClassVar[StoreState]
    STORE_STATE_FAILING: _ClassVar[StoreState]
RECIPE_CHANGE_KIND_UNSPECIFIED: RecipeChangeKind
RECIPE_CHANGE_KIND_ADDED: RecipeChangeKind
RECIPE_CHANGE_KIND_CHANGED: RecipeChangeKind
RECIPE_CHANGE_KIND_REMOVED: RecipeChangeKind
SERVER_STATE_UNSPECIFIED: ServerState
SERVER_STATE_STARTING: ServerState
SERVER_STATE_SERVING: ServerState
SERVER_STATE_DRAINING: ServerState
STORE_STATE_UNSPECIFIED: StoreState
STORE_STATE_NONE: StoreState
STORE_STATE_WRITING: StoreState
STORE_STATE_FAILING: StoreState

class RecipeChange(_message.Message):
    __slots__ = ("recipe_id", "kind", "old_version", "new_version", "old_sha256", "new_sha256")
    RECIPE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OLD_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEW_VERSION_FIELD_NUMBER: _ClassVar[int]
    OLD_SHA256_FIELD_NUMBER: _ClassVar[int]
    NEW_SHA256_FIELD_NUMBER: _ClassVar[int]
    recipe_id: str
    kind: RecipeChangeKind
    old_version: int
    new_version: int
    old_sha256: str
    new_sha256: str
    def __init__(self, recipe_id: _Optional[str] = ..., kind: _Optional[_Union[RecipeChangeKind, str]] = ..., old_version: _Optional[int] = ..., new_version: _Optional[int] = ..., old_sha256: _Optional[str] = ..., new_sha256: _Optional[str] = ...) -> None: ...

class ReloadRecipesRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ReloadRecipesResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[RecipeChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[RecipeChange, _Mapping]]] = ...) -> None: ...

class PutRecipeRequest(_message.Message):
    __slots__ = ("recipe", "replaces_version", "reason")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    REPLACES_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    recipe: _inspection_pb2.Recipe
    replaces_version: int
    reason: str
    def __init__(self, recipe: _Optional[_Union[_inspection_pb2.Recipe, _Mapping]] = ..., replaces_version: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PutRecipeResponse(_message.Message):
    __slots__ = ("recipe",)
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    recipe: _inspection_pb2.Recipe
    def __init__(self, recipe: _Optional[_Union[_inspection_pb2.Recipe, _Mapping]] = ...) -> None: ...

class SwapEngineRequest(_message.Message):
    __slots__ = ("engine", "engine_sha256", "reason")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    engine: str
    engine_sha256: str
    reason: str
    def __init__(self, engine: _Optional[str] = ..., engine_sha256: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SwapEngineResponse(_message.Message):
    __slots__ = ("old_engine_sha256", "new_engine_sha256", "model_id", "load_ms")
    OLD_ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    NEW_ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    old_engine_sha256: str
    new_engine_sha256: str
    model_id: str
    load_ms: float
    def __init__(self, old_engine_sha256: _Optional[str] = ..., new_engine_sha256: _Optional[str] = ..., model_id: _Optional[str] = ..., load_ms: _Optional[float] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("state", "started_at", "server_version", "model_id", "engine_sha256", "queue_frames", "queue_bytes", "computing", "streams", "verdicts", "refused", "dropped", "replayed", "store", "store_error", "last_seq", "shared_memory_leases", "shared_memory_bytes", "rss_bytes")
    class VerdictsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SHA256_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTING_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    STORE_ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_LEASES_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    state: ServerState
    started_at: _timestamp_pb2.Timestamp
    server_version: str
    model_id: str
    engine_sha256: str
    queue_frames: int
    queue_bytes: int
    computing: int
    streams: int
    verdicts: _containers.ScalarMap[str, int]
    refused: _containers.ScalarMap[str, int]
    dropped: int
    replayed: int
    store: StoreState
    store_error: str
    last_seq: int
    shared_memory_leases: int
    shared_memory_bytes: int
    rss_bytes: int
    def __init__(self, state: _Optional[_Union[ServerState, str]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., server_version: _Optional[str] = ..., model_id: _Optional[str] = ..., engine_sha256: _Optional[str] = ..., queue_frames: _Optional[int] = ..., queue_bytes: _Optional[int] = ..., computing: _Optional[int] = ..., streams: _Optional[int] = ..., verdicts: _Optional[_Mapping[str, int]] = ..., refused: _Optional[_Mapping[str, int]] = ..., dropped: _Optional[int] = ..., replayed: _Optional[int] = ..., store: _Optional[_Union[StoreState, str]] = ..., store_error: _Optional[str] = ..., last_seq: _Optional[int] = ..., shared_memory_leases: _Optional[int] = ..., shared_memory_bytes: _Optional[int] = ..., rss_bytes: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_seconds", "reason")
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: float
    reason: str
    def __init__(self, timeout_seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("remaining",)
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    remaining: int
    def __init__(self, remaining: _Optional[int] = ...) -> None: ...
