"""Frames on every way into the server: raw formats, shared memory, regions, many items, and whatever a fuzzer sends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_harness import RunningServer, encoded, frame, running_server

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1 import service_pb2_grpc
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import (
    AsyncInspectionClient,
    FrameInput,
    InspectionClient,
    ItemInput,
    RawPixels,
    RetryPolicy,
    calls,
)
from auroraedge.client.status import DETAILS_KEY, error_from_status, status_from_error
from auroraedge.errors import (
    AuroraEdgeError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidRequestError,
    ServerUnavailableError,
    SharedMemoryError,
    SharedMemoryExhaustedError,
    SharedMemoryLeaseError,
    SharedMemoryOverwrittenError,
    UnauthenticatedError,
    UnknownLabelError,
)
from auroraedge.inspection.results import Answer, InspectionResult, Region, RequestInfo, Verdict
from auroraedge.serving.tokens import add_token

RECIPE = "magnetic_tile"
SIZE = 64 * 48 * 3


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(shared_memory_mb=4, max_megapixels=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[InspectionClient]:
    with InspectionClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server: RunningServer) -> Iterator[InspectionServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield InspectionServiceStub(channel)


def wait_for_leases(server: RunningServer, count: int) -> None:
    memory = server.server.shared_memory

    async def wait() -> None:
        async with asyncio.timeout(10):
            while memory.leases != count:
                await asyncio.sleep(0.01)

    server.run(wait())


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_of_cameras_give_the_same_verdict(client: InspectionClient) -> None:
    grey = frame(bright=True)[..., 0]
    deep = grey.astype(np.uint16) << 4
    pairs = np.stack([deep[:, ::2], deep[:, 1::2]], axis=-1).astype(np.uint32)
    both = pairs[..., 0] | pairs[..., 1] << 12
    packed = np.stack([both & 255, both >> 8 & 255, both >> 16], axis=-1).astype(np.uint8)
    expected = client.inspect(grey, RECIPE)
    for image, pixel_format in (
        (deep, "mono12"),
        (RawPixels(data=packed, width=64, height=48, pixel_format="mono12p"), "rgb8"),
        (grey, "bayer_rg8"),  # a grey scene is grey behind any filter, but for the edges of its rectangle
    ):
        result = client.inspect(image, RECIPE, pixel_format=pixel_format)
        assert result.verdict is expected.verdict is Verdict.NG
        assert result.ng_probability == pytest.approx(expected.ng_probability, abs=0.002)
    with pytest.raises(InvalidImageError) as caught:
        client.inspect(deep << 4, RECIPE, pixel_format="mono12")
    assert caught.value.field == "frame.raw.pixels"


# --- regions, many items, progressive --------------------------------------------------------------------------------


def test_regions_reach_the_inspector_and_come_back(client: InspectionClient) -> None:
    regions = [Region(name="spot", x=10, y=8, width=10, height=10), Region(x=30, y=0, width=20, height=48)]
    result = client.inspect(frame(), RECIPE, regions=regions)
    assert [(r.region.name, r.verdict) for r in result.regions] == [("spot", Verdict.NG), ("region-2", Verdict.OK)]
    assert result.regions[0].region == regions[0] and result.verdict is Verdict.NG
    (streamed,) = client.inspect_stream([frame()], RECIPE, regions=regions)
    assert streamed.regions == result.regions
    (own,) = client.inspect_stream([FrameInput(image=frame(), regions=regions[:1])], RECIPE, regions=regions)
    assert len(own.regions) == 1
    for bad, field in (
        ([Region(x=60, y=0, width=10, height=10)], "regions[0]"),
        ([Region(x=0, y=0, width=1, height=1)] * 65, "regions"),
        ([Region(name="a", x=0, y=0, width=1, height=1)] * 2, "regions[1].name"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            client.inspect(frame(), RECIPE, regions=bad)
        assert caught.value.field == field


def test_an_empty_region_is_refused(stub: InspectionServiceStub) -> None:
    request = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=encoded(frame())), regions=[pb.Region(x=1)])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Inspect(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "regions[0].width" in caught.value.details()


def test_items_fail_each_on_its_own(client: InspectionClient) -> None:
    outcomes = client.inspect_many(
        frame(),
        [
            RECIPE,
            ItemInput(recipe_id=RECIPE, prompt="is there a crack?"),
            ItemInput(recipe_id="nothing"),
            ItemInput(recipe_id=RECIPE, prompt="is there a dragon?"),
            ItemInput(recipe_id="pcb", request_id="mine"),
            ItemInput(recipe_id=RECIPE, regions=[Region(x=99, y=0, width=1, height=1)]),
            ItemInput(recipe_id=RECIPE, regions=[Region(x=12, y=10, width=2, height=2)]),
            ItemInput(recipe_id=RECIPE, recipe_version=99),
        ],
        request=RequestInfo(request_id="r", part_id="P"),
        image_name="part.png",
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [InspectionResult, Answer, InspectionResult, UnknownLabelError] + [InspectionResult] * 4
    results = [outcome for outcome in outcomes if isinstance(outcome, InspectionResult)]
    assert [r.request.request_id for r in results] == ["r/0", "r/2", "mine", "r/5", "r/6", "r/7"]
    assert [r.verdict for r in results] == [
        Verdict.OK, Verdict.ERROR, Verdict.ERROR, Verdict.ERROR, Verdict.NG, Verdict.ERROR,
    ]  # fmt: skip
    assert [r.error.reason for r in results if r.error] == [
        "RECIPE_NOT_FOUND", "REFERENCE_REQUIRED", "INVALID_REQUEST", "RECIPE_VERSION_MISMATCH",
    ]  # fmt: skip
    assert [r.error.field for r in results if r.error] == [
        "items[2].recipe_id", "reference", "items[5].regions[0]", "items[7].recipe_version",
    ]  # fmt: skip
    assert {r.request.part_id for r in results} == {"P"} and {r.image_name for r in results} == {"part.png"}


@pytest.mark.parametrize("items", [[], [RECIPE] * 33])
def test_no_items_and_too_many_are_refused(client: InspectionClient, items: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.inspect_many(frame(), items)
    assert caught.value.field == "items"


def test_a_bad_frame_fails_the_whole_of_many(client: InspectionClient) -> None:
    for bad in (b"no image", np.zeros((1500, 1500), np.uint8)):
        with pytest.raises(InvalidImageError) as caught:
            client.inspect_many(bad, [RECIPE])
        assert caught.value.field.startswith("frame")


async def test_the_verdict_comes_before_the_details(server: RunningServer, client: InspectionClient) -> None:
    results = list(client.inspect_progressive(frame(bright=True), RECIPE, request=RequestInfo(request_id="p")))
    assert [(r.is_partial, r.verdict, r.request.request_id) for r in results] == [
        (True, Verdict.NG, "p"),
        (False, Verdict.NG, "p"),
    ]
    assert results[0].result_id == results[1].result_id
    async with AsyncInspectionClient(server.address) as asynchronous:
        assert [r.is_partial async for r in asynchronous.inspect_progressive(frame(), RECIPE)] == [True, False]
        many = await asynchronous.inspect_many(frame(), [RECIPE, ItemInput(recipe_id=RECIPE, prompt="describe")])
        assert [type(outcome) for outcome in many] == [InspectionResult, Answer]
    with pytest.raises(InvalidImageError):
        list(client.inspect_progressive(b"no image", RECIPE))


# --- shared memory ---------------------------------------------------------------------------------------------------


def test_frames_in_shared_memory(server: RunningServer, client: InspectionClient) -> None:
    before = client.inspect(frame(bright=True), RECIPE)
    with client.shared_memory(SIZE, slots=2) as memory:
        with memory.frame((48, 64, 3)) as slot:
            slot.pixels[:] = frame(bright=True)
            result = client.inspect(slot, RECIPE)
            assert (result.verdict, result.image_sha256) == (Verdict.NG, before.image_sha256)
            assert result.defects == before.defects
            (streamed,) = client.inspect_stream([slot], RECIPE)
            assert streamed.image_sha256 == before.image_sha256
            assert isinstance(client.ask(slot, "describe", RECIPE), Answer)
            assert len(client.inspect_many(slot, [RECIPE, RECIPE])) == 2
            (review, *_) = client.inspect_stream([frame()], RECIPE, reference=slot)
            assert review.verdict is Verdict.OK
        with memory.put(encoded(frame())) as file:
            assert client.inspect(file, RECIPE).verdict is Verdict.OK
        with memory.put(frame()[..., 0], pixel_format="bayer_bg8") as mosaic:
            assert client.inspect(mosaic, RECIPE).image_width == 64
        for _ in range(20):  # slots go round
            with memory.put(frame()) as again:
                assert client.inspect(again, RECIPE).verdict is Verdict.OK
        assert server.server.shared_memory.leases == 1
    wait_for_leases(server, 0)
    with pytest.raises(SharedMemoryLeaseError):
        memory.frame((2, 2))


async def test_shared_memory_of_the_asynchronous_client(server: RunningServer) -> None:
    async with AsyncInspectionClient(server.address) as client, client.shared_memory(SIZE, slots=4) as memory:
        frames = [memory.put(frame(bright=bool(i % 2))) for i in range(4)]
        results = await asyncio.gather(*(client.inspect(each, RECIPE) for each in frames))
        assert [r.verdict for r in results] == [Verdict.OK, Verdict.NG] * 2
        for each in frames:
            each.close()
    await asyncio.to_thread(wait_for_leases, server, 0)


def test_a_frame_overwritten_while_it_waits_is_never_judged(server: RunningServer, client: InspectionClient) -> None:
    inspector = server.inspector
    with client.shared_memory(SIZE, slots=1) as memory, futures.ThreadPoolExecutor() as pool:
        while inspector.entered.acquire(blocking=False):
            pass
        inspector.gate.clear()
        with memory.put(frame()) as slot:
            call = pool.submit(client.inspect, slot, RECIPE)
            assert inspector.entered.acquire(timeout=10)
        with memory.put(frame(bright=True)):  # too early: the call is still open
            inspector.gate.set()
            with pytest.raises(SharedMemoryOverwrittenError):
                call.result(10)


def test_what_cannot_be_leased(server: RunningServer, client: InspectionClient) -> None:
    with pytest.raises(InvalidRequestError), client.shared_memory(3 * 2**20):
        pass
    with client.shared_memory(2**20, slots=2):
        no_retry = InspectionClient(server.address, retry=RetryPolicy(attempts=1))
        with no_retry, pytest.raises(SharedMemoryExhaustedError), no_retry.shared_memory(2**20):
            pass
    info = client.server_info().limits
    assert (info.shared_memory_bytes, info.shared_memory_client_bytes) == (4 * 2**20, 2 * 2**20)
    assert (info.max_items, info.max_regions) == (32, 64)


def test_a_server_without_shared_memory_says_so() -> None:
    with running_server(shared_memory_mb=0) as running, InspectionClient(running.address) as client:
        assert client.server_info().limits.shared_memory_bytes == 0
        with pytest.raises(SharedMemoryError, match="lends no"), client.shared_memory(SIZE):
            pass


_HOLD = """
import sys, time
from auroraedge.client import InspectionClient
client = InspectionClient(sys.argv[1])
with client.shared_memory(4096) as memory:
    frame = memory.frame((8, 8))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_client_leaves_nothing_behind(server: RunningServer) -> None:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, server.address], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        wait_for_leases(server, 1)
        os.kill(process.pid, signal.SIGKILL)
        wait_for_leases(server, 0)


def test_the_socket_goes_with_the_server() -> None:
    with running_server() as running:
        path = running.server.shared_memory.socket_path
        assert path.is_socket()
    assert not path.parent.exists()


# --- retries ---------------------------------------------------------------------------------------------------------


class _Flaky(service_pb2_grpc.InspectionServiceServicer):
    """Loses the first two answers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:
        self.seen.append(request.info.request_id)
        if len(self.seen) < 3:
            status = status_from_error(ServerUnavailableError("The connection is lost."))
            context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        result = pb.InspectionResult(verdict=pb.VERDICT_OK, request=request.info)
        return pb.InspectResponse(result=result)


async def test_a_repeated_call_keeps_its_request_id() -> None:
    flaky = _Flaky()
    server = grpc.server(futures.ThreadPoolExecutor())
    service_pb2_grpc.add_InspectionServiceServicer_to_server(flaky, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    policy = RetryPolicy(first_delay_s=0.01)
    try:
        with InspectionClient(f"127.0.0.1:{port}", retry=policy) as client:
            result = await asyncio.to_thread(client.inspect, frame(), RECIPE)
            assert len(set(flaky.seen)) == 1 and len(flaky.seen) == 3 and len(flaky.seen[0]) == 32
            assert result.request.request_id == flaky.seen[0]
        flaky.seen.clear()
        async with AsyncInspectionClient(f"127.0.0.1:{port}", retry=policy) as client:
            await client.inspect(frame(), RECIPE, request=RequestInfo(request_id="mine"))
            assert flaky.seen == ["mine"] * 3
            await client.inspect(frame(), RECIPE)
            assert len(set(flaky.seen)) == 2
    finally:
        server.stop(None)


# --- whatever comes --------------------------------------------------------------------------------------------------

layouts = st.builds(
    pb.PixelLayout,
    width=st.integers(0, 40) | st.integers(0, 2**32 - 1),
    height=st.integers(0, 40) | st.integers(0, 2**32 - 1),
    stride=st.integers(0, 100) | st.integers(0, 2**32 - 1),
    pixel_format=st.integers(0, 40),
)
handles = st.builds(
    pb.SharedMemoryFrame,
    lease_id=st.text(max_size=40),
    slot=st.integers(0, 2**32 - 1),
    generation=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**64 - 1),
    size=st.integers(0, 2**64 - 1),
    layout=st.none() | layouts,
)
raws = st.builds(
    lambda layout, pixels: pb.RawImage(
        width=layout.width, height=layout.height, stride=layout.stride, pixel_format=layout.pixel_format, pixels=pixels
    ),
    layouts,
    st.binary(max_size=400),
)
files = st.binary(max_size=60) | st.builds(
    lambda cut, at, bit: (lambda d: bytes([*d[:at], d[at] ^ bit, *d[at + 1 : len(d) - cut]]))(encoded(frame(9, 20))),
    st.integers(0, 30),
    st.integers(0, 60),
    st.integers(0, 255),
)
frames = st.builds(pb.Frame, encoded=files) | st.builds(pb.Frame, raw=raws) | st.builds(pb.Frame, shared_memory=handles)
wild_regions = st.lists(
    st.builds(
        pb.Region,
        name=st.text(max_size=70),
        **dict.fromkeys(("x", "y", "width", "height"), st.integers(0, 30) | st.integers(0, 2**32 - 1)),
    ),
    max_size=3,
)
FINE = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def _check(error: grpc.RpcError) -> None:
    details = dict(error.trailing_metadata())
    assert DETAILS_KEY in details, error.details()
    from google.rpc import status_pb2

    found = error_from_status(status_pb2.Status.FromString(details[DETAILS_KEY]))
    assert error.code() in FINE, (error.code(), error.details())
    assert isinstance(found, AuroraEdgeError) and found.field and found.remedy


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=frames, reference=st.none() | frames, regions=wild_regions)
def test_any_frame_has_a_verdict_or_an_error_that_names_its_field(
    server: RunningServer, stub: InspectionServiceStub, image: pb.Frame, reference: pb.Frame | None, regions: list[Any]
) -> None:
    request = pb.InspectRequest(recipe_id=RECIPE, frame=image, reference=reference, regions=regions)
    try:
        assert stub.Inspect(request, timeout=10).result.verdict in (pb.VERDICT_OK, pb.VERDICT_NG)
    except grpc.RpcError as error:
        _check(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    image=st.just(pb.Frame(encoded=encoded(frame()))) | frames,
    items=st.lists(
        st.builds(
            pb.InspectItem,
            recipe_id=st.sampled_from([RECIPE, "pcb", "", "no such"]),
            recipe_version=st.sampled_from([0, 1, 99]),
            prompt=st.sampled_from(["", "", "describe", "is there a dragon?", "x" * 2001]),
            regions=wild_regions,
            request_id=st.text(max_size=300),
        ),
        max_size=4,
    ),
)
def test_any_items_have_an_outcome_each(
    server: RunningServer, stub: InspectionServiceStub, image: pb.Frame, items: list[pb.InspectItem]
) -> None:
    try:
        response = stub.InspectMany(pb.InspectManyRequest(frame=image, items=items), timeout=10)
    except grpc.RpcError as error:
        _check(error)
        return
    assert len(response.outcomes) == len(items) > 0
    for item, outcome in zip(items, response.outcomes, strict=True):
        kind = outcome.WhichOneof("outcome")
        assert kind in (("answer", "error") if item.prompt else ("result",))
        if kind == "result" and outcome.result.verdict == pb.VERDICT_ERROR:
            assert outcome.result.error.reason and outcome.result.error.field


def test_the_server_is_as_before(server: RunningServer, client: InspectionClient) -> None:
    assert client.inspect(frame(), RECIPE).verdict is Verdict.OK
    assert server.server.shared_memory.leases == 0 and server.server.scheduler.waiting == 0
    with pytest.raises(ImageTooLargeError):
        client.inspect(np.zeros((2000, 2000), np.uint8), RECIPE)


# --- who may use what ------------------------------------------------------------------------------------------------


def test_a_lease_is_for_the_caller_that_acquired_it(tmp_path: Path) -> None:
    """Even someone who learns the id of a lease cannot read frames out of it, renew it or end it."""
    tokens = tmp_path / "tokens.json"
    one, other = (add_token(tokens, name, ["inspect"], lifetime=timedelta(hours=1))[0] for name in ("one", "other"))
    with (
        running_server(tokens=tokens) as running,
        InspectionClient(running.address, token=one) as owner,
        InspectionClient(running.address, token=other) as thief,
        InspectionClient(running.address, token="wrong") as stranger,
        owner.shared_memory(SIZE) as memory,
        memory.put(frame()) as slot,
    ):
        assert owner.inspect(slot, RECIPE).verdict is Verdict.OK
        with pytest.raises(SharedMemoryLeaseError) as caught:
            thief.inspect(slot, RECIPE)
        assert caught.value.field == "frame.shared_memory.lease_id"
        (streamed,) = thief.inspect_stream([slot], RECIPE)
        assert streamed.verdict is Verdict.ERROR and streamed.error.reason == "SHARED_MEMORY_LEASE_ENDED"
        (streamed,) = owner.inspect_stream([slot], RECIPE)
        assert streamed.verdict is Verdict.OK
        renew = pb.RenewSharedMemoryRequest(lease_id=memory.lease_id)
        for call in (
            calls.release(memory.lease_id),
            replace(calls.release(memory.lease_id), method="RenewSharedMemory", message=renew),
        ):
            with pytest.raises(SharedMemoryLeaseError):
                thief._call(call, None)
        with pytest.raises(UnauthenticatedError):
            stranger.inspect(slot, RECIPE)
        assert owner.inspect(slot, RECIPE).verdict is Verdict.OK


async def test_clients_speak_tls_and_unix_sockets(tmp_path: Path) -> None:
    authority = Authority()
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(authority.pem)
    certificate, key = authority.issue("server").write(tmp_path, "server")
    mine, my_key = authority.issue("line-7", client=True).write(tmp_path, "client")
    path = tmp_path / "grpc.sock"
    with running_server(tls_cert=certificate, tls_key=key, tls_client_ca=authorities, unix_socket=path) as running:
        trust = {"root_certificates": authorities, "certificate": mine, "key": my_key}
        with (
            InspectionClient(running.address, **trust) as client,
            client.shared_memory(SIZE) as memory,
            memory.put(frame()) as slot,
        ):
            assert client.inspect(slot, RECIPE).verdict is Verdict.OK
        async with AsyncInspectionClient(running.address, **trust) as client:
            assert (await client.inspect(frame(), RECIPE)).verdict is Verdict.OK
        for less in ({"root_certificates": authorities}, {"encrypted": True}, {}):
            with (
                InspectionClient(running.address, retry=RetryPolicy(attempts=1), timeout_s=5, **less) as client,
                pytest.raises(ServerUnavailableError),
            ):
                await asyncio.to_thread(client.server_info)
        async with AsyncInspectionClient(f"unix:{path}") as local, local.shared_memory(SIZE) as memory:
            with memory.put(frame(bright=True)) as slot:
                assert (await local.inspect(slot, RECIPE)).verdict is Verdict.NG
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        InspectionClient("localhost:1", root_certificates=tmp_path / "none.pem")
