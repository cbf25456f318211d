"""Clients of the inspection service: InspectionClient (blocking) and AsyncInspectionClient."""

from __future__ import annotations

from auroraedge.client.asynchronous import AsyncInspectionClient
from auroraedge.client.models import FrameInput, ServerInfo, ServerLimits
from auroraedge.client.retry import RetryPolicy
from auroraedge.client.synchronous import InspectionClient

__all__ = [
    "AsyncInspectionClient",
    "FrameInput",
    "InspectionClient",
    "RetryPolicy",
    "ServerInfo",
    "ServerLimits",
]
