"""The inspection server in this process, over real sockets, with an inspector whose timing the tests control."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from service_harness import RunningServer, StatisticsInspector, encoded, frame, running_server

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import AsyncInspectionClient, FrameInput, InspectionClient, RetryPolicy
from auroraedge.errors import (
    DeadlineExceededError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidRequestError,
    QueueFullError,
    RecipeNotFoundError,
    RecipeVersionError,
    ReferenceRequiredError,
    ServerUnavailableError,
    UnknownLabelError,
)
from auroraedge.inspection.recipe import list_recipes, load_recipe
from auroraedge.inspection.results import Box, RequestInfo, Verdict
from service.config import ServiceConfig

RECIPE = "magnetic_tile"
NO_RETRY = RetryPolicy(attempts=1)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[InspectionClient]:
    with InspectionClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server: RunningServer) -> Iterator[InspectionServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield InspectionServiceStub(channel)


def health(address: str, service: str = "") -> str:
    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=20, wait_for_ready=True
        )
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


# --- one frame -------------------------------------------------------------------------------------------------------


def test_verdict_defects_and_origin_come_back(client: InspectionClient) -> None:
    request = RequestInfo(
        request_id="r1", part_id="P-7", lot="L", line="1", station="S", camera="C", job="J", exposure_us=12.5,
        captured_at=datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
    )  # fmt: skip
    result = client.inspect(encoded(frame()), RECIPE, request=request, image_name="part.png")
    recipe = load_recipe(RECIPE)
    assert result.verdict is Verdict.OK
    assert result.request == request
    assert [(d.label, d.box) for d in result.defects] == [("blowhole", Box(x1=10, y1=8, x2=20, y2=18))]
    assert (result.recipe_id, result.recipe_version) == (recipe.id, recipe.version)
    assert (result.recipe_sha256, result.thresholds) == (recipe.sha256, recipe.thresholds)
    assert (result.model_id, result.engine_sha256) == ("statistics", "5" * 64)
    assert (result.image_name, result.image_width, result.image_height) == ("part.png", 64, 48)
    assert client.inspect(encoded(frame(bright=True)), RECIPE).verdict is Verdict.NG


def test_path_bytes_and_arrays_are_the_same_frame(client: InspectionClient, tmp_path: Path) -> None:
    pixels = frame()
    pixels[:, :, 0] += 3  # the channels differ, so an exchanged order would show
    path = tmp_path / "part 1.png"
    path.write_bytes(encoded(pixels))
    results = [
        client.inspect(path, RECIPE),
        client.inspect(str(path), RECIPE),
        client.inspect(encoded(pixels), RECIPE),
        client.inspect(pixels, RECIPE),
        client.inspect(pixels[:, :, ::-1], RECIPE, pixel_format="bgr8"),
    ]
    assert len({result.image_sha256 for result in results}) == 1
    assert [result.image_name for result in results] == ["part 1.png", "part 1.png", "", "", ""]
    assert client.inspect(pixels[:, :, ::-1], RECIPE).image_sha256 != results[0].image_sha256


def test_golden_sample_is_passed_on(client: InspectionClient) -> None:
    with pytest.raises(ReferenceRequiredError, match="golden"):
        client.inspect(frame(), "pcb")
    assert client.inspect(frame(), "pcb", reference=frame()).reference_used


def test_prompt_is_answered(client: InspectionClient) -> None:
    request = RequestInfo(part_id="p")
    answer = client.ask(frame(), "is there a crack?", RECIPE, request=request)
    assert (answer.kind, answer.prompt, answer.request) == ("exists", "is there: crack?", request)


def test_free_prompt_is_answered_token_by_token(client: InspectionClient) -> None:
    tokens = list(client.generate(frame(), "what is that dark spot", RECIPE, max_new_tokens=3))
    assert [token.text for token in tokens] == ["what ", "is ", "that "]
    assert [token.index for token in tokens] == [0, 1, 2]
    assert [token.done for token in tokens] == [False, False, True]


def test_recipes_and_server_info(client: InspectionClient) -> None:
    assert client.recipes() == list_recipes()
    info = client.server_info()
    assert (info.model_id, info.target, info.precision) == ("statistics", "test", {"vision": "none"})
    assert info.limits.max_message_bytes == 64 * 2**20
    assert info.limits.queue_frames == ServiceConfig().queue_frames
    assert info.start_seconds > 0


# --- refusals: each with its status, its reason and its field --------------------------------------------------------


def request(**changes: Any) -> pb.InspectRequest:
    return pb.InspectRequest(**({"recipe_id": RECIPE, "frame": pb.Frame(encoded=encoded(frame()))} | changes))


@pytest.mark.parametrize(
    ("message", "code", "reason", "field"),
    [
        (request(recipe_id=""), "INVALID_ARGUMENT", "INVALID_REQUEST", "recipe_id"),
        (request(recipe_id="nothing"), "NOT_FOUND", "RECIPE_NOT_FOUND", "recipe_id"),
        (request(recipe_version=99), "FAILED_PRECONDITION", "RECIPE_VERSION_MISMATCH", "recipe_version"),
        (request(frame=None), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
        (request(reference=pb.Frame()), "INVALID_ARGUMENT", "INVALID_IMAGE", "reference"),
        (request(prompt="count rust"), "INVALID_ARGUMENT", "UNKNOWN_LABEL", "label"),
        (request(prompt="x" * 2001), "INVALID_ARGUMENT", "INVALID_REQUEST", "prompt"),
        (request(image_name="x" * 1025), "INVALID_ARGUMENT", "INVALID_REQUEST", "image_name"),
        (request(info=pb.RequestInfo(lot="x" * 257)), "INVALID_ARGUMENT", "INVALID_REQUEST", "info.lot"),
    ],
)
def test_status_carries_one_error_info(
    stub: InspectionServiceStub, client: InspectionClient, message: Any, code: str, reason: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Inspect(message, timeout=20)
    assert caught.value.code().name == code
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["field"]) == ("auroraedge", reason, field)
    assert info.metadata["message"] and info.metadata["remedy"]
    assert caught.value.details() == status.message
    fields = [detail for detail in status.details if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
    assert len(fields) == (code == "INVALID_ARGUMENT")
    assert client.inspect(frame(), RECIPE).verdict is Verdict.OK, "the server still serves"


def test_client_raises_the_error_of_the_server(client: InspectionClient) -> None:
    for error, call in (
        (RecipeNotFoundError, lambda: client.inspect(frame(), "nothing")),
        (RecipeVersionError, lambda: client.inspect(frame(), RECIPE, recipe_version=2)),
        (UnknownLabelError, lambda: client.ask(frame(), "locate rust", RECIPE)),
        (InvalidImageError, lambda: client.inspect(b"no image", RECIPE)),
        (InvalidRequestError, lambda: list(client.generate(frame(), "hm", RECIPE, max_new_tokens=10_000))),
        (InvalidRequestError, lambda: list(client.generate(frame(), "  ", RECIPE))),
    ):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert caught.value.remedy


def test_message_over_the_limit_names_the_remedy() -> None:
    with running_server(max_message_mb=1) as running, InspectionClient(running.address) as client:
        with pytest.raises(ImageTooLargeError, match="max_message_mb"):
            client.inspect(frame(700, 700), RECIPE)
        assert client.inspect(frame(500, 500), RECIPE).verdict is Verdict.OK


def test_nobody_answers() -> None:
    with (
        InspectionClient("127.0.0.1:9", retry=RetryPolicy(attempts=2, first_delay_s=0.01)) as client,
        pytest.raises(ServerUnavailableError, match="python -m service"),
    ):
        client.server_info()


# --- queue, deadline, cancellation, drain ----------------------------------------------------------------------------


def wait_until(condition: Any) -> None:
    """The tests' only clock: a generous limit, for a condition that comes or does not."""
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, "the condition did not come"
        time.sleep(0.005)


def waiting(running: RunningServer) -> int:
    return running.server.scheduler.waiting


@pytest.fixture
def held() -> Iterator[tuple[RunningServer, InspectionClient, StatisticsInspector, ThreadPoolExecutor]]:
    """A server with two places in the queue whose worker stands in front of the frame named "first"."""
    inspector = StatisticsInspector()
    settings: dict[str, Any] = {"queue_frames": 2, "max_batch": 1, "stream_window": 3}
    with (
        ThreadPoolExecutor(8) as pool,
        running_server(inspector, **settings) as running,
        InspectionClient(running.address, retry=NO_RETRY) as client,
    ):
        inspector.names.clear()
        while inspector.entered.acquire(blocking=False):
            pass  # the warm-up
        inspector.gate.clear()
        pool.submit(client.inspect, frame(), RECIPE, image_name="first")
        assert inspector.entered.acquire(timeout=30)
        yield running, client, inspector, pool
        inspector.gate.set()


def test_full_queue_is_refused_with_a_delay_and_a_patient_client_gets_through(held: Any) -> None:
    running, client, inspector, pool = held
    futures = [pool.submit(client.inspect, frame(), RECIPE, image_name=name) for name in "ab"]
    wait_until(lambda: waiting(running) == 2)
    with pytest.raises(QueueFullError) as caught:
        client.inspect(frame(), RECIPE, image_name="refused")
    assert caught.value.retry_after_s and caught.value.retry_after_s > 0
    with InspectionClient(running.address, retry=RetryPolicy(attempts=50, first_delay_s=0.02, factor=1)) as patient:
        futures.append(pool.submit(patient.inspect, frame(), RECIPE, image_name="patient"))
        inspector.gate.set()
        assert [future.result(30).verdict for future in futures] == [Verdict.OK] * 3
    assert "refused" not in inspector.names
    assert "patient" in inspector.names


def test_expired_frame_is_never_computed(held: Any) -> None:
    running, client, inspector, pool = held
    late = pool.submit(client.inspect, frame(), RECIPE, image_name="late", timeout_s=0.2)
    with pytest.raises(DeadlineExceededError):
        late.result(30)
    wait_until(lambda: waiting(running) == 0)
    inspector.gate.set()
    assert client.inspect(frame(), RECIPE, image_name="after").verdict is Verdict.OK
    assert inspector.names == ["first", "after"]


def test_cancelled_call_frees_its_place(held: Any) -> None:
    running, client, inspector, _ = held
    with grpc.insecure_channel(running.address) as channel:
        calls = [InspectionServiceStub(channel).Inspect.future(request(image_name="gone")) for _ in range(2)]
        wait_until(lambda: waiting(running) == 2)
        for call in calls:
            call.cancel()
        wait_until(lambda: waiting(running) == 0)
    inspector.gate.set()
    assert client.inspect(frame(), RECIPE, image_name="after").verdict is Verdict.OK
    assert inspector.names == ["first", "after"]


def test_cancelled_generation_stops_between_tokens(held: Any) -> None:
    _, client, inspector, _ = held
    inspector.gate.set()
    inspector.pause_s = 0.02
    tokens = client.generate(frame(), " ".join(f"w{i}" for i in range(250)), RECIPE, max_new_tokens=250)
    assert next(tokens).text == "w0 "
    tokens.close()
    assert client.inspect(frame(), RECIPE).verdict is Verdict.OK
    assert "w0" in inspector.names and "w249" not in inspector.names


def test_drain_finishes_running_calls_and_refuses_new_ones(held: Any) -> None:
    running, client, inspector, pool = held
    queued = pool.submit(client.inspect, frame(), RECIPE, image_name="queued")
    wait_until(lambda: waiting(running) == 1)
    draining = pool.submit(running.run, running.server.drain())
    wait_until(lambda: running.server.draining)
    with (
        InspectionClient(running.address, retry=NO_RETRY) as late,
        pytest.raises(ServerUnavailableError),
    ):
        late.inspect(frame(), RECIPE, image_name="late")
    inspector.gate.set()
    assert queued.result(30).verdict is Verdict.OK
    draining.result(30)
    assert inspector.names == ["first", "queued"]
    assert inspector.closed


def test_drain_ends_a_session_after_its_frames(held: Any) -> None:
    running, client, inspector, pool = held
    more = threading.Event()

    def frames() -> Iterator[FrameInput]:
        yield FrameInput(image=frame(), image_name="s0")
        more.wait(30)

    results: list[Any] = []

    def collect() -> None:
        for result in client.inspect_stream(frames(), RECIPE):
            results.append(result)

    session = pool.submit(collect)
    wait_until(lambda: waiting(running) == 1)
    draining = pool.submit(running.run, running.server.drain())
    inspector.gate.set()
    with pytest.raises(ServerUnavailableError, match="shutting down"):
        session.result(30)
    assert [result.image_name for result in results] == ["s0"]
    more.set()
    draining.result(30)


# --- health, reflection, address -------------------------------------------------------------------------------------


def test_health_is_serving_only_after_warm_up() -> None:
    inspector = StatisticsInspector()
    inspector.gate.clear()  # the warm-up stops here
    running = RunningServer(inspector, ServiceConfig(port=0))
    starting = asyncio.run_coroutine_threadsafe(running.server.start(), running.loop)
    try:
        assert inspector.entered.acquire(timeout=30)
        assert health(running.address) == "NOT_SERVING"
        with InspectionClient(running.address, retry=NO_RETRY) as client:
            for call in (client.server_info, lambda: client.inspect(frame(), RECIPE)):
                with pytest.raises(ServerUnavailableError, match="warming up") as caught:
                    call()
                assert caught.value.retry_after_s
        inspector.gate.set()
        starting.result(30)
        assert health(running.address) == "SERVING"
        assert health(running.address, "auroraedge.inspection.v1.InspectionService") == "SERVING"
    finally:
        inspector.gate.set()
        running.stop()


def test_reflection_describes_the_service(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "auroraedge.inspection.v1.InspectionService" in names
    assert "grpc.health.v1.Health" in names


def test_a_port_in_use_is_an_error(server: RunningServer) -> None:
    second = RunningServer(StatisticsInspector(), ServiceConfig(port=server.server.port))
    try:
        with pytest.raises(InvalidRequestError, match="cannot be bound"):
            second.run(second.server.start())
    finally:
        second.stop()


# --- the asynchronous client -----------------------------------------------------------------------------------------


def test_asynchronous_client_does_the_same(server: RunningServer) -> None:
    async def main() -> None:
        async with AsyncInspectionClient(server.address, retry=NO_RETRY) as client:
            results = await asyncio.gather(*(client.inspect(frame(bright=i % 2 == 1), RECIPE) for i in range(6)))
            assert [result.verdict for result in results] == [Verdict.OK, Verdict.NG] * 3
            with pytest.raises(RecipeNotFoundError):
                await client.inspect(frame(), "nothing")
            assert (await client.ask(frame(), "describe", RECIPE)).kind == "describe"
            assert [token.text async for token in client.generate(frame(), "a b", RECIPE)] == ["a ", "b "]
            assert await client.recipes() == list_recipes()
            assert (await client.server_info()).model_id == "statistics"
            stream = client.inspect_stream([frame(), b"bad", frame(bright=True)], RECIPE)
            assert [r.verdict async for r in stream] == [Verdict.OK, Verdict.ERROR, Verdict.NG]

    asyncio.run(main())
