"""No path from a request is ever opened: every text field of every RPC names a file outside of the server's folders,
and Python's audit events say what the process opens meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from service_harness import RunningServer, encoded, frame, running_server

from auroraedge._proto.inference import open_inference_pb2 as oip
from auroraedge._proto.inspection.v1 import admin_pb2, service_pb2
from auroraedge._proto.inspection.v1.service_pb2_grpc import AdminServiceStub
from auroraedge.client.transport import error_from_rpc

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "auroraedge" / "assets" / "engines" / "nano-cpu"
PNG = encoded(frame())

_events: list[str] | None = None
_EVENTS = (
    "open",
    "os.listdir",
    "os.scandir",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "sqlite3.connect",
    "shutil.copyfile",
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event in _EVENTS:
        _events.extend(os.fsdecode(part) for part in arguments[:2] if isinstance(part, str | bytes | os.PathLike))


@pytest.fixture(scope="module", autouse=True)
def listening() -> None:
    sys.addaudithook(_audit)  # cannot be taken back; it does nothing outside of `recorded`


@contextmanager
def recorded() -> Iterator[list[str]]:
    global _events
    _events = []
    try:
        yield _events
    finally:
        _events = None


def fill(message: Any, text: str, depth: int = 0) -> Any:
    """Sets every text field of a message, and of those inside, to `text`; frames are real, so that work begins."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        repeated = field.is_repeated
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry or depth > 4:
                continue
            inner = getattr(message, field.name)
            if field.message_type.name in ("Timestamp",):
                continue
            fill(inner.add() if repeated else inner, text, depth + 1)
            if not repeated:
                getattr(message, field.name).SetInParent()
        elif field.type == FieldDescriptor.TYPE_STRING:
            getattr(message, field.name).append(text) if repeated else setattr(message, field.name, text)
        elif field.type == FieldDescriptor.TYPE_BYTES and not repeated:
            setattr(message, field.name, PNG)
    return message


def calls() -> list[Any]:
    services = [
        *service_pb2.DESCRIPTOR.services_by_name.values(),
        oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    ]
    return [method for service in services for method in service.methods if method.name != "Drain"]


def call(channel: grpc.Channel, method: Any, message: Any) -> tuple[str, str]:
    """Code and details."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    rpc = getattr(channel, kind)(
        path,
        request_serializer=type(message).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        answer = rpc(iter([message]) if method.client_streaming else message, timeout=10)
        if method.server_streaming:
            list(answer)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server/: what the server may open. outside/: what it may not."""
    root = tmp_path_factory.mktemp("paths")
    for name in ("server/engines", "server/recipes", "outside/engine"):
        (root / name).mkdir(parents=True)
    (root / "outside" / "part.png").write_bytes(PNG)
    (root / "outside" / "gear.yaml").write_text("{id: gear, labels: [{name: chip}]}", encoding="utf-8")
    shutil.copy(PACKAGE / "manifest.json", root / "outside" / "engine" / "manifest.json")
    (root / "server" / "engines" / "link").symlink_to(root / "outside" / "engine")
    return root


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[RunningServer]:
    folder = place / "server"
    with running_server(
        engines=(folder / "engines",), recipes=(folder / "recipes",), store=str(folder / "store.db")
    ) as running:
        yield running


def hostile(place: Path) -> list[str]:
    outside = place / "outside"
    return [
        str(outside / "engine"),
        str(outside / "part.png"),
        "../../outside/engine",
        "../../outside/gear.yaml",
        f"file://{outside}/part.png",
        f"sqlite:///{outside}/other.db",
        f"{outside}/engine\0.png",
        "link",
        "..",
        "~/outside",
        "/dev/shm/x",
        "a" * 300,
    ]


def test_no_text_of_a_request_is_opened(server: RunningServer, place: Path) -> None:
    outside = str(place / "outside")
    with grpc.insecure_channel(server.address) as channel, recorded() as opened:
        for method in calls():
            for text in hostile(place):
                code, details = call(channel, method, fill(GetMessageClass(method.input_type)(), text))
                assert code not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"), (
                    method.name,
                    text,
                    details,
                )
    touched = [path for path in opened if os.path.realpath(path).startswith(outside) or "/dev/shm/x" in path]
    assert touched == []
    assert any("store.db" in path or "recipes" in path for path in opened), "the events are recorded"


def test_the_check_sees_an_open(place: Path) -> None:
    with recorded() as opened:
        (place / "outside" / "part.png").read_bytes()
    assert str(place / "outside" / "part.png") in opened


@pytest.mark.parametrize("name", ["link", "../../outside/engine", "", ".", "..", "/", "no\0thing", "x" * 5000])
def test_engines_come_from_their_folders_only(server: RunningServer, name: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        AdminServiceStub(channel).SwapEngine(admin_pb2.SwapEngineRequest(engine=name, reason="test"), timeout=10)
    assert error_from_rpc(caught.value).reason in ("ENGINE_NOT_FOUND", "INVALID_REQUEST")
