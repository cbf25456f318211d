"""Clients of the inspection service: InspectionClient (blocking) and AsyncInspectionClient."""

from __future__ import annotations

from auroraedge.client.asynchronous import AsyncInspectionClient
from auroraedge.client.models import (
    FrameInput,
    ItemInput,
    RawPixels,
    ResultQuery,
    ServerInfo,
    ServerLimits,
    ServerStatus,
    StoredResult,
    StreamStatus,
)
from auroraedge.client.retry import RetryPolicy
from auroraedge.client.shared_memory import SharedFrame, SharedMemory
from auroraedge.client.synchronous import InspectionClient

__all__ = [
    "AsyncInspectionClient",
    "FrameInput",
    "InspectionClient",
    "ItemInput",
    "RawPixels",
    "ResultQuery",
    "RetryPolicy",
    "ServerInfo",
    "ServerLimits",
    "ServerStatus",
    "SharedFrame",
    "SharedMemory",
    "StoredResult",
    "StreamStatus",
]
