"""Camera sessions: order, bad frames in band, early verdicts, the window, and what ends a session."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from service_harness import RunningServer, StatisticsInspector, encoded, frame, running_server

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import FrameInput, InspectionClient
from auroraedge.errors import InvalidRequestError, RecipeNotFoundError
from auroraedge.inspection.results import RequestInfo, Verdict

RECIPE = "magnetic_tile"
WINDOW = 3


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(stream_window=WINDOW) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[InspectionClient]:
    with InspectionClient(server.address) as client:
        yield client


def test_results_come_in_order_and_bad_frames_stay_in_band(client: InspectionClient) -> None:
    frames: list[Any] = [
        frame(),
        b"not an image",
        frame(bright=True),
        FrameInput(image=frame(), recipe_id="nothing"),
        "missing file.png",  # fails on the client's side
        np.zeros((4, 4), np.uint16),  # likewise
        FrameInput(image=frame(), request=RequestInfo(exposure_us=3), image_name="x" * 2000),
        frame(),
    ]
    results = list(client.inspect_stream(frames, RECIPE))
    ok, ng, error = Verdict.OK, Verdict.NG, Verdict.ERROR
    assert [result.verdict for result in results] == [ok, error, ng, error, error, error, error, ok]
    reasons = [result.error.reason for result in results if result.error]
    assert reasons == ["INVALID_IMAGE", "RECIPE_NOT_FOUND", "INVALID_IMAGE", "INVALID_IMAGE", "INVALID_REQUEST"]
    assert all(result.error.remedy for result in results if result.error)
    assert all(result.ng_probability is None and not result.defects for result in results if result.error)


def test_session_gives_defaults_that_a_frame_overrides(client: InspectionClient) -> None:
    session = RequestInfo(camera="c1", line="7", exposure_us=10.0)
    frames = [
        FrameInput(image=frame(), request=RequestInfo(part_id="p1")),
        FrameInput(image=frame(), request=RequestInfo(part_id="p2", camera="c2", exposure_us=0.0)),
        FrameInput(image=frame(), recipe_id=RECIPE),
    ]
    results = list(client.inspect_stream(frames, "pcb", reference=frame(), request=session))
    assert [result.request.part_id for result in results] == ["p1", "p2", ""]
    assert [result.request.camera for result in results] == ["c1", "c2", "c1"]
    assert [result.request.exposure_us for result in results] == [10.0, 0.0, 10.0]
    assert [result.recipe_id for result in results] == ["pcb", "pcb", RECIPE]
    assert results[0].reference_used


def test_early_verdict_comes_before_the_complete_result(client: InspectionClient) -> None:
    frames = [frame(), b"bad", frame(bright=True)]
    results = list(client.inspect_stream(frames, RECIPE, early_verdict=True))
    shown = [(result.is_partial, result.verdict.value, len(result.defects)) for result in results]
    assert shown == [(True, "OK", 0), (False, "OK", 1), (False, "ERROR", 0), (True, "NG", 0), (False, "NG", 1)]
    assert results[0].result_id == results[1].result_id


def test_a_result_arrives_before_the_next_frame_is_sent(client: InspectionClient) -> None:
    """A camera that waits for the verdict before it takes the next picture must not wait for ever."""
    arrived = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        yield frame()
        assert arrived.wait(30)
        yield frame()

    count = 0
    for _ in client.inspect_stream(frames(), RECIPE):
        arrived.set()
        count += 1
    assert count == 2


def test_long_session_is_held_back_instead_of_refused() -> None:
    with running_server(queue_frames=1, stream_window=8) as running, InspectionClient(running.address) as client:
        results = list(client.inspect_stream((frame() for _ in range(40)), RECIPE))
    assert [result.verdict for result in results] == [Verdict.OK] * 40


def test_server_takes_no_more_than_the_window() -> None:
    inspector = StatisticsInspector()
    with (
        running_server(inspector, stream_window=WINDOW, queue_frames=100, max_batch=1) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        inspector.gate.clear()
        done = threading.Event()

        def messages() -> Iterator[pb.InspectStreamRequest]:
            yield pb.InspectStreamRequest(session=pb.StreamSession(recipe_id=RECIPE))
            for number in range(20):
                request = pb.InspectRequest(frame=pb.Frame(encoded=encoded(frame())))
                yield pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=number * 10, request=request))
            done.wait(30)

        call = InspectionServiceStub(channel).InspectStream(messages())
        assert running.server.scheduler is not None
        limit = time.monotonic() + 30
        while running.server.scheduler.waiting < WINDOW - 1 and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.3)  # time in which more could come
        assert running.server.scheduler.waiting == WINDOW - 1, "one is being computed"
        inspector.gate.set()
        done.set()
        opening, *responses = call
        assert not opening.HasField("result") and opening.status.credits == WINDOW
        assert [response.sequence for response in responses] == [number * 10 for number in range(20)]
        assert (responses[-1].status.received, responses[-1].status.answered) == (20, 20)


def test_cancelled_session_leaves_nothing_behind() -> None:
    inspector = StatisticsInspector()
    with running_server(inspector, stream_window=4) as running, InspectionClient(running.address) as client:
        stream = client.inspect_stream((frame() for _ in range(1000)), RECIPE)
        next(stream)
        stream.close()
        assert client.inspect(frame(), RECIPE).verdict is Verdict.OK
        assert running.server.scheduler is not None
        limit = time.monotonic() + 30
        while running.server.scheduler.waiting and time.monotonic() < limit:
            time.sleep(0.01)
        assert running.server.scheduler.waiting == 0
        assert len(inspector.names) < 900


def test_session_that_cannot_be_opened_ends_with_a_status(client: InspectionClient, server: RunningServer) -> None:
    with pytest.raises(RecipeNotFoundError):
        list(client.inspect_stream([frame()], "nothing"))
    with grpc.insecure_channel(server.address) as channel:
        stub = InspectionServiceStub(channel)
        opening = pb.InspectStreamRequest(session=pb.StreamSession(recipe_id=RECIPE))
        for messages in (
            [pb.InspectStreamRequest(frame=pb.StreamFrame())],
            [pb.InspectStreamRequest()],
            [opening, opening],
        ):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.InspectStream(iter(messages)))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert list(stub.InspectStream(iter([]))) == []
        bad = pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=5))
        asked = pb.InspectStreamRequest(frame=pb.StreamFrame(request=pb.InspectRequest(prompt="describe")))
        _, *responses = stub.InspectStream(iter([opening, bad, asked]))
        assert [(r.sequence, r.result.error.field) for r in responses] == [(5, "frame"), (0, "frame.request.prompt")]


def test_fault_of_the_callers_own_iterator_is_raised_after_the_results(client: InspectionClient) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield frame()
        raise ZeroDivisionError("the camera's")

    stream = client.inspect_stream(frames(), RECIPE)
    assert next(stream).verdict is Verdict.OK
    with pytest.raises(ZeroDivisionError, match="the camera's"):
        next(stream)


def test_frame_without_any_recipe_is_refused_in_band(client: InspectionClient) -> None:
    (result,) = client.inspect_stream([frame()], "")
    assert result.error is not None and result.error.field == "recipe_id"
    assert InvalidRequestError.reason == result.error.reason
