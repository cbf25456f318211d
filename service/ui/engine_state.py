"""The state of the gRPC server, asked over gRPC with short deadlines; not reachable is an answer, not an error."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from auroraedge._proto.inspection.v1 import admin_pb2, inspection_pb2, service_pb2_grpc
from auroraedge.client import convert
from auroraedge.client.models import ServerInfo

_TIMEOUT_S = 1.5
_FRESH_S = 1.0


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """health: SERVING, NOT_SERVING, UNREACHABLE. status: fields of GetStatusResponse where the server has that call.
    problem: why something is missing. recipes: versions that the server uses, by id."""

    address: str
    health: str
    info: ServerInfo | None = None
    status: dict[str, Any] = field(default_factory=dict)
    recipes: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    asked_ms: float = 0.0


class EngineProbe:
    """Thread-safe. Answers are kept for a second, so that many pages ask once."""

    def __init__(self, address: str, *, ca: Path | None = None, token: Path | None = None) -> None:
        self._address, self._token = address, token
        if ca is not None:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()))
        else:
            self._channel = grpc.insecure_channel(address)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._service = service_pb2_grpc.InspectionServiceStub(self._channel)
        self._admin = service_pb2_grpc.AdminServiceStub(self._channel)
        self._lock = threading.Lock()
        self._state: EngineState | None = None
        self._at = 0.0

    def close(self) -> None:
        self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self._token is None:
            return ()
        return (("authorization", f"Bearer {self._token.read_text(encoding='utf-8').strip()}"),)

    def read(self) -> EngineState:
        with self._lock:
            if self._state is None or time.monotonic() - self._at > _FRESH_S:
                self._state = self._ask()
                self._at = time.monotonic()
            return self._state

    def _ask(self) -> EngineState:
        began = time.perf_counter()
        try:
            metadata = self._metadata()
            reply = self._health.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S, metadata=metadata)
        except (grpc.RpcError, OSError) as error:
            return EngineState(address=self._address, health="UNREACHABLE", problem=_reason(error))
        asked_ms = (time.perf_counter() - began) * 1000
        health = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        info: ServerInfo | None = None
        status: dict[str, Any] = {}
        recipes: dict[str, int] = {}
        problem = ""
        try:
            options: dict[str, Any] = {"timeout": _TIMEOUT_S, "metadata": metadata}
            info = convert.server_info_from_proto(
                self._service.GetServerInfo(inspection_pb2.GetServerInfoRequest(), **options)
            )
            listed = self._service.ListRecipes(inspection_pb2.ListRecipesRequest(), **options)
            recipes = {recipe.id: recipe.version for recipe in listed.recipes}
            status = json_format.MessageToDict(
                self._admin.GetStatus(admin_pb2.GetStatusRequest(), **options),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        except grpc.RpcError as error:
            problem = _reason(error)
        return EngineState(
            address=self._address,
            health=health,
            info=info,
            status=status,
            recipes=recipes,
            problem=problem,
            asked_ms=asked_ms,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"[:300]
    return str(error)[:300]
