"""Clients that do everything wrong: the status says what, and the server goes on serving everybody else."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor
from google.rpc import status_pb2
from service_harness import RunningServer, StatisticsInspector, encoded, frame, running_server

from auroraedge._proto.inspection.v1 import admin_pb2, results_pb2
from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import InspectionClient
from auroraedge.inspection.results import Verdict

RECIPE = "magnetic_tile"
SERVICE = "/auroraedge.inspection.v1"
# What a malformed request may be told. INTERNAL and UNKNOWN are faults of ours; RESOURCE_EXHAUSTED: a message too long.
RIGHT = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
COUNT = int(os.environ.get("AURORAEDGE_FUZZ", "1000"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("state")
    with running_server(store=str(folder), max_message_mb=1, max_megapixels=1, keep_images="none") as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def still_serves(server: RunningServer) -> None:
    with InspectionClient(server.address) as client:
        assert client.inspect(frame(), RECIPE).verdict is Verdict.OK


def call(channel: grpc.Channel, method: str, data: bytes) -> grpc.RpcError | bytes:
    """One unary call of these very bytes."""
    try:
        return channel.unary_unary(f"{SERVICE}.{method}")(data, timeout=20)
    except grpc.RpcError as error:
        return error


# --- a thousand malformed requests -----------------------------------------------------------------------------------


def _number(rng: random.Random, kind: int) -> Any:
    d = descriptor.FieldDescriptor
    if kind in (d.TYPE_DOUBLE, d.TYPE_FLOAT):
        return rng.choice([0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 5e-324, rng.random()])
    signed = kind in (d.TYPE_INT32, d.TYPE_INT64, d.TYPE_SINT32, d.TYPE_SINT64)
    bits = 31 if kind in (d.TYPE_INT32, d.TYPE_SINT32) else 32 if kind == d.TYPE_UINT32 else 63
    values = [0, 1, 2, 255, 2**bits - 1, rng.randrange(2**16)]
    return rng.choice([*values, -1, -(2**bits)] if signed else values)


def wild(rng: random.Random, message: Any, depth: int = 0) -> Any:
    """Fills a message with values that nobody expects."""
    d = descriptor.FieldDescriptor
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        repeated = field.is_repeated
        for _ in range(rng.choice([1, 1, 2, 70]) if repeated else 1):
            if field.type == d.TYPE_MESSAGE:
                if field.message_type.GetOptions().map_entry or depth > 3:
                    continue
                wild(rng, getattr(message, field.name).add() if repeated else getattr(message, field.name), depth + 1)
                continue
            if field.type == d.TYPE_STRING:
                value: Any = rng.choice(
                    ["", RECIPE, "x" * 5000, "../../etc/passwd", "\0", "\u202e", "'; DROP TABLE results; --", "a"]
                )
            elif field.type == d.TYPE_BYTES:
                value = hostile_image(rng)
            elif field.type == d.TYPE_BOOL:
                value = rng.random() < 0.5
            elif field.type == d.TYPE_ENUM:
                value = rng.choice([0, 1, 2, 99, -1, 2**31 - 1])
            else:
                value = _number(rng, field.type)
            if repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def _png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def hostile_image(rng: random.Random) -> bytes:
    kind = rng.randrange(9)
    good = encoded(frame(), rng.choice(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]))
    match kind:
        case 0:
            return b""
        case 1:
            return rng.randbytes(rng.randrange(1, 2000))
        case 2:
            return good[: rng.randrange(1, len(good))]
        case 3:
            damaged = bytearray(good)
            for _ in range(rng.randrange(1, 30)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            return bytes(damaged)
        case 4:  # a bomb: few bytes, and pixels beyond every limit
            return _png(60000, 60000, b"")
        case 5:
            return _png(rng.choice([0, 1, 2**31 - 1]), rng.choice([0, 1, 2**31 - 1]), b"\0" * 10)
        case 6:
            return b"\x89PNG\r\n\x1a\n" + rng.randbytes(200)
        case 7:
            return b"GIF89a" + rng.randbytes(100)
        case _:
            return _png(64, 64, b"\0" * 10, rng.choice([1, 3, 16, 200]), rng.choice([0, 3, 7]))


UNARY = {
    "InspectionService/Inspect": pb.InspectRequest,
    "InspectionService/InspectMany": pb.InspectManyRequest,
    "InspectionService/RenewSharedMemory": pb.RenewSharedMemoryRequest,
    "InspectionService/ReleaseSharedMemory": pb.ReleaseSharedMemoryRequest,
    "ResultsService/GetResult": results_pb2.GetResultRequest,
    "ResultsService/ListResults": results_pb2.ListResultsRequest,
    "ResultsService/GetImage": results_pb2.GetImageRequest,
    "AdminService/SwapEngine": admin_pb2.SwapEngineRequest,
    "AdminService/PutRecipe": admin_pb2.PutRecipeRequest,
}


def malformed(rng: random.Random) -> tuple[str, bytes]:
    """A method, and the bytes of its request."""
    method = rng.choice(list(UNARY)) if rng.random() < 0.5 else "InspectionService/Inspect"
    kind = rng.randrange(5)
    if kind == 0:
        return method, rng.randbytes(rng.randrange(0, 400))
    if kind == 1:
        whole = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=encoded(frame()))).SerializeToString()
        return method, whole[: rng.randrange(len(whole))]
    if kind == 2:
        message = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=hostile_image(rng)))
        return "InspectionService/Inspect", message.SerializeToString()
    if kind == 3:
        raw = wild(rng, pb.RawImage())
        message = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(raw=raw))
        return "InspectionService/Inspect", message.SerializeToString()
    return method, wild(rng, UNARY[method]()).SerializeToString()


def test_a_thousand_malformed_requests_get_the_right_status(server: RunningServer, channel: grpc.Channel) -> None:
    rng = random.Random(int(os.environ.get("AURORAEDGE_FUZZ_SEED", "20260304")))
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        method, data = malformed(rng)
        answer = call(channel, method, data)
        code = answer.code() if isinstance(answer, grpc.RpcError) else grpc.StatusCode.OK
        seen[code.name] += 1
        assert code in RIGHT, (number, method, code, answer)
        ours = isinstance(answer, grpc.RpcError) and "grpc-status-details-bin" in dict(answer.trailing_metadata() or ())
        # Nothing here is too long or unknown to gRPC: each refusal is our own, with its reason.
        assert ours or isinstance(answer, bytes), (number, method, answer)
        if isinstance(answer, grpc.RpcError) and ours:
            status = status_pb2.Status.FromString(dict(answer.trailing_metadata())["grpc-status-details-bin"])
            assert len(status.details) >= 1
        elif method.endswith("/Inspect") and isinstance(answer, bytes):
            # Whatever was sent, an answer names a verdict; hostile pixels that decode are pixels.
            response = pb.InspectResponse.FromString(answer)
            assert response.result.verdict or response.HasField("answer")
        if number % 200 == 199:
            still_serves(server)
    still_serves(server)
    assert seen["INVALID_ARGUMENT"] > COUNT // 4, seen
    with InspectionClient(server.address) as client:
        assert client.status().state == "serving"
        assert client.status().rss_bytes < 2**31


def test_malformed_sessions_and_streams(server: RunningServer, channel: grpc.Channel) -> None:
    rng = random.Random(7)
    session = channel.stream_stream(f"{SERVICE}.InspectionService/InspectStream")
    generate = channel.unary_stream(f"{SERVICE}.InspectionService/Generate")
    early = channel.unary_stream(f"{SERVICE}.InspectionService/InspectProgressive")
    opening = pb.InspectStreamRequest(session=pb.StreamSession(recipe_id=RECIPE)).SerializeToString()
    for number in range(100):
        kind = number % 4
        if kind == 0:
            messages = [opening, *(wild(rng, pb.InspectStreamRequest()).SerializeToString() for _ in range(3))]
            answers = session(iter(messages), timeout=20)
        elif kind == 1:
            answers = session(iter([rng.randbytes(50), opening]), timeout=20)
        elif kind == 2:
            answers = generate(wild(rng, pb.GenerateRequest()).SerializeToString(), timeout=20)
        else:
            answers = early(wild(rng, pb.InspectProgressiveRequest()).SerializeToString(), timeout=20)
        code = grpc.StatusCode.OK
        try:
            for _ in answers:
                pass
        except grpc.RpcError as error:
            code = error.code()
        assert code in RIGHT, (number, code)
    still_serves(server)


# --- rude clients ----------------------------------------------------------------------------------------------------


def test_message_over_the_limit_is_refused(server: RunningServer, channel: grpc.Channel) -> None:
    answer = call(channel, "InspectionService/Inspect", bytes(2 * 2**20))
    assert isinstance(answer, grpc.RpcError) and answer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    still_serves(server)


def test_deadline_of_zero_gets_its_status(server: RunningServer, channel: grpc.Channel) -> None:
    stub = InspectionServiceStub(channel)
    for timeout in (0, -5):
        message = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=encoded(frame())), image_name="zero")
        with pytest.raises(grpc.RpcError) as caught:
            stub.Inspect(message, timeout=timeout)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # gRPC sends at least a millisecond along, in which an idle server may begin; what waits longer is never computed
    # (test_service_scheduler).
    still_serves(server)


def test_half_open_connections_and_nonsense_on_the_socket(server: RunningServer) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    sockets = []
    for number in range(60):
        peer = socket.create_connection(("127.0.0.1", server.server.port), timeout=5)
        sockets.append(peer)
        peer.sendall([b"", preface, b"GET / HTTP/1.1\r\n\r\n", preface + b"\0\0\xff\x01"][number % 4])
    still_serves(server)
    for number, peer in enumerate(sockets):
        if number % 2:
            # A reset instead of an end, as when a cable is pulled and the client restarts.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    still_serves(server)


def test_client_that_opens_a_call_and_sends_nothing_holds_nobody_up(server: RunningServer) -> None:
    never = threading.Event()

    def silence() -> Iterator[pb.InspectStreamRequest]:
        never.wait(20)
        yield from ()

    channels = [grpc.insecure_channel(server.address) for _ in range(20)]
    calls = [InspectionServiceStub(each).InspectStream(silence()) for each in channels]
    still_serves(server)
    for one in calls:
        one.cancel()
    never.set()
    for each in channels:
        each.close()
    still_serves(server)


def test_slow_reader_keeps_its_own_frames_waiting_and_nobody_elses() -> None:
    inspector = StatisticsInspector()
    # A window of HTTP/2 that does not grow: else all the answers might fit into it.
    fixed_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024)]
    with (
        running_server(inspector, stream_window=2, queue_frames=4) as running,
        grpc.insecure_channel(running.address, fixed_window) as channel,
    ):
        request = pb.InspectRequest(frame=pb.Frame(encoded=encoded(frame())), image_name="s" * 1024)

        def messages() -> Iterator[pb.InspectStreamRequest]:
            yield pb.InspectStreamRequest(session=pb.StreamSession(recipe_id=RECIPE))
            for number in range(600):
                yield pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=number, request=request))

        responses = InspectionServiceStub(channel).InspectStream(messages())
        next(responses)
        began = time.monotonic()
        with InspectionClient(running.address) as client:
            for _ in range(20):
                assert client.inspect(frame(), RECIPE).verdict is Verdict.OK
        assert time.monotonic() - began < 10
        # Flow control closes: the server does not inspect what nobody fetches.
        time.sleep(0.5)
        seen = len(inspector.names)
        time.sleep(0.5)
        assert len(inspector.names) == seen < 200
        assert sum(response.HasField("result") for response in responses) == 600


def test_cancelling_many_calls_leaves_no_work_behind(server: RunningServer) -> None:
    message = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=encoded(frame())))
    with grpc.insecure_channel(server.address) as channel:
        stub = InspectionServiceStub(channel)
        for _ in range(20):
            calls = [stub.Inspect.future(message) for _ in range(10)]
            for one in calls:
                one.cancel()
    scheduler = server.server.scheduler
    assert scheduler is not None
    limit = time.monotonic() + 10
    while scheduler.waiting and time.monotonic() < limit:
        time.sleep(0.01)
    assert scheduler.waiting == 0 and scheduler.waiting_bytes == 0
    still_serves(server)
