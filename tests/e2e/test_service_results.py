"""What a client is told is in the store first, once, whatever is repeated, full, locked or taken back."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from service_harness import RunningServer, StatisticsInspector, encoded, frame, running_server

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1 import results_pb2
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub, ResultsServiceStub
from auroraedge.client import FrameInput, InspectionClient, RetryPolicy
from auroraedge.errors import (
    InvalidImageError,
    InvalidRequestError,
    QueueFullError,
    RequestIdConflictError,
    ResultNotFoundError,
    StoreError,
)
from auroraedge.inspection.results import RequestInfo, Verdict

RECIPE = "magnetic_tile"
NO_RETRY = RetryPolicy(attempts=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(StatisticsInspector(), store=str(tmp_path / "state"), keep_images="all") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[InspectionClient]:
    with InspectionClient(server.address, retry=NO_RETRY) as client:
        yield client


def named(request_id: str, **more: Any) -> RequestInfo:
    return RequestInfo(request_id=request_id, **more)


def rows(running: RunningServer) -> list[Any]:
    assert running.server.store is not None
    return list(running.server.store.results())


def computed(running: RunningServer) -> int:
    """Inspections of clients' frames; those of the warm-up have no name."""
    return sum(bool(name) for name in running.inspector.names)


# --- stored, with a receipt ------------------------------------------------------------------------------------------


def test_answer_is_stored_before_it_is_given(client: InspectionClient, server: RunningServer) -> None:
    given = client.inspect(encoded(frame()), RECIPE, request=named("a", part_id="P1"), image_name="x")
    assert given.receipt is not None and given.receipt.stored and not given.receipt.replayed
    (row,) = rows(server)
    assert (row.seq, row.stored_at) == (given.receipt.seq, given.receipt.stored_at)
    own = {"receipt", "timings"}
    assert row.result.model_dump(exclude=own) == given.model_dump(exclude=own)
    timings = given.timings
    assert timings.store_ms > 0 and timings.service_ms >= timings.store_ms + timings.queue_ms > 0
    assert server.server.store is not None
    assert server.server.store.image(row.image_sha256 or "") == encoded(frame())


def test_raw_pixels_are_kept_as_a_picture_of_the_same_pixels(client: InspectionClient, server: RunningServer) -> None:
    import cv2
    import numpy as np

    client.inspect(frame(), RECIPE)
    (row,) = rows(server)
    assert server.server.store is not None
    data = server.server.store.image(row.image_sha256 or "")
    pixels = cv2.imdecode(np.frombuffer(data or b"", np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), frame())


@pytest.mark.parametrize(("keep", "kept"), [("all", [True, True]), ("not-ok", [False, True]), ("none", [False] * 2)])
def test_frames_are_kept_by_policy(tmp_path: Path, keep: str, kept: list[bool]) -> None:
    with (
        running_server(store=str(tmp_path), keep_images=keep) as running,
        InspectionClient(running.address) as client,
    ):
        assert client.inspect(encoded(frame()), RECIPE).verdict is Verdict.OK
        assert client.inspect(encoded(frame(bright=True)), RECIPE).verdict is Verdict.NG
        assert [row.has_image for row in rows(running)] == kept


def test_without_a_store_there_is_no_receipt() -> None:
    with running_server(store="none") as running, InspectionClient(running.address) as client:
        assert client.inspect(frame(), RECIPE).receipt is None
        with pytest.raises(StoreError, match="without a store"):
            client.stored_result("x")


def test_all_outcomes_of_many_items_are_stored(client: InspectionClient, server: RunningServer) -> None:
    outcomes = client.inspect_many(frame(), [RECIPE, "steel_strip", "nothing"], request=named("m"))
    again = client.inspect_many(frame(), [RECIPE, "steel_strip", "nothing"], request=named("m"))
    stored = {row.result.request.request_id: row.result.verdict for row in rows(server)}
    assert stored["m/0"] is Verdict.OK and stored["m/1"] is Verdict.OK
    # An unknown recipe may be known when the request comes again, so its id is not used up.
    assert [verdict for name, verdict in stored.items() if not name] == [Verdict.ERROR]
    assert [one.result_id for one in outcomes[:2]] == [one.result_id for one in again[:2]]  # type: ignore[union-attr]


def test_results_can_be_read_back(client: InspectionClient, server: RunningServer) -> None:
    results = [client.inspect(encoded(frame(40 + i, 48)), RECIPE, request=named(f"r{i}", lot="L")) for i in range(7)]
    assert client.stored_result(results[3].result_id).result.result_id == results[3].result_id
    assert client.stored_result(request_id="r5").result.result_id == results[5].result_id
    with pytest.raises(ResultNotFoundError):
        client.stored_result("nothing")
    with grpc.insecure_channel(server.address) as channel:
        stub = ResultsServiceStub(channel)
        for newest_first in (False, True):
            request = results_pb2.ListResultsRequest(page_size=3, newest_first=newest_first, count=True)
            request.filter.lot = "L"
            found: list[str] = []
            pages = 0
            while True:
                page = stub.ListResults(request, timeout=20)
                assert page.total == 7
                found += [row.result.request.request_id for row in page.results]
                pages += 1
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert pages == 3
            assert found == [f"r{i}" for i in (range(6, -1, -1) if newest_first else range(7))]
        after = stub.ListResults(results_pb2.ListResultsRequest(after_seq=results[4].receipt.seq))  # type: ignore[union-attr]
        assert [row.result.request.request_id for row in after.results] == ["r5", "r6"]
        image = stub.GetImage(results_pb2.GetImageRequest(image_sha256=results[0].image_sha256 or ""))
        assert (image.data, image.content_type) == (encoded(frame(40, 48)), "image/png")
        for bad in (
            results_pb2.ListResultsRequest(page_token="nonsense"),
            results_pb2.ListResultsRequest(page_size=1001),
            results_pb2.ListResultsRequest(page_token=request.page_token, after_seq=3),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ListResults(bad, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetResult(results_pb2.GetResultRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# --- repeated requests -----------------------------------------------------------------------------------------------


def test_repeated_request_gets_the_same_answer_and_one_row(client: InspectionClient, server: RunningServer) -> None:
    first = client.inspect(frame(), RECIPE, request=named("a"), image_name="x")
    again = client.inspect(frame(), RECIPE, request=named("a"), image_name="x")
    assert again.receipt is not None and again.receipt.replayed
    own = {"receipt", "timings"}
    assert again.model_dump(exclude=own) == first.model_dump(exclude=own)
    assert again.receipt.seq == first.receipt.seq  # type: ignore[union-attr]
    assert len(rows(server)) == 1 and computed(server) == 1


@pytest.mark.parametrize(
    "change", [{"image": frame(bright=True)}, {"recipe_id": "steel_strip"}, {"request": named("a", part_id="other")}]
)
def test_the_same_id_for_another_request_is_refused(
    client: InspectionClient, server: RunningServer, change: dict[str, Any]
) -> None:
    client.inspect(frame(), RECIPE, request=named("a"))
    other = {"image": frame(), "recipe_id": RECIPE, "request": named("a")} | change
    with pytest.raises(RequestIdConflictError) as caught:
        client.inspect(other.pop("image"), **other)
    assert caught.value.field == "info.request_id"
    assert len(rows(server)) == 1


def test_retry_while_the_first_is_at_work_joins_it(client: InspectionClient, server: RunningServer) -> None:
    inspector = server.inspector
    while inspector.entered.acquire(blocking=False):
        pass
    inspector.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.inspect, frame(), RECIPE, request=named("a"), image_name="x")
        assert inspector.entered.acquire(timeout=20)
        others = [pool.submit(client.inspect, frame(), RECIPE, request=named("a"), image_name="x") for _ in range(5)]
        other_frame = pool.submit(client.inspect, frame(bright=True), RECIPE, request=named("a"))
        with pytest.raises(RequestIdConflictError):
            other_frame.result(20)
        time.sleep(0.2)
        inspector.gate.set()
        results = [call.result(20) for call in (first, *others)]
    assert len({result.result_id for result in results}) == 1
    assert [result.receipt.replayed for result in results if result.receipt] == [False] + [True] * 5
    assert len(rows(server)) == 1 and computed(server) == 1


def test_answer_of_a_client_that_went_away_waits_for_its_retry(client: InspectionClient, server: RunningServer) -> None:
    inspector = server.inspector
    while inspector.entered.acquire(blocking=False):
        pass
    inspector.gate.clear()
    with grpc.insecure_channel(server.address) as channel:
        message = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=encoded(frame())), image_name="x")
        message.info.request_id = "a"
        call = InspectionServiceStub(channel).Inspect.future(message)
        assert inspector.entered.acquire(timeout=20)
        call.cancel()
        time.sleep(0.1)
        inspector.gate.set()
    again = client.inspect(encoded(frame()), RECIPE, request=named("a"), image_name="x")
    assert again.receipt is not None and again.receipt.replayed
    assert len(rows(server)) == 1 and computed(server) == 1


def test_a_restart_remembers(tmp_path: Path) -> None:
    given = []
    for _ in range(2):
        with running_server(store=str(tmp_path)) as running, InspectionClient(running.address) as client:
            given.append(client.inspect(frame(), RECIPE, request=named("a")))
            assert len(rows(running)) == 1
    assert given[0].result_id == given[1].result_id and given[1].receipt.replayed  # type: ignore[union-attr]


def test_faulty_frame_is_an_error_for_good_and_in_the_store(client: InspectionClient, server: RunningServer) -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(InvalidImageError) as caught:
            client.inspect(b"no image at all", RECIPE, request=named("bad", part_id="P9"))
        messages.append((type(caught.value), caught.value.message, caught.value.field))
    assert messages[0] == messages[1]
    (row,) = rows(server)
    assert (row.result.verdict, row.result.request.part_id, row.has_image) == (Verdict.ERROR, "P9", False)
    assert row.result.error.reason == "INVALID_IMAGE"


def test_refused_requests_leave_their_id_free(tmp_path: Path) -> None:
    inspector = StatisticsInspector()
    with (
        running_server(inspector, store=str(tmp_path), queue_frames=1, max_batch=1) as running,
        InspectionClient(running.address, retry=NO_RETRY) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        while inspector.entered.acquire(blocking=False):
            pass
        inspector.gate.clear()
        busy = [pool.submit(client.inspect, frame(), RECIPE)]
        assert inspector.entered.acquire(timeout=20)
        busy.append(pool.submit(client.inspect, frame(), RECIPE))
        while running.server.scheduler.waiting < 1:  # type: ignore[union-attr]
            time.sleep(0.01)
        with pytest.raises(QueueFullError):
            client.inspect(frame(), RECIPE, request=named("a"))
        inspector.gate.set()
        assert all(call.result(20).verdict is Verdict.OK for call in busy)
        result = client.inspect(frame(), RECIPE, request=named("a"))
        assert result.verdict is Verdict.OK and not result.receipt.replayed  # type: ignore[union-attr]


# --- a store that fails ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program that writes and does not end."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.mark.parametrize("policy", ["review", "error"])
def test_locked_store_never_gives_ok_and_recovers(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "store.db"
    with (
        running_server(store=str(path), store_failure=policy, store_timeout_ms=50) as running,
        InspectionClient(running.address, retry=NO_RETRY) as client,
    ):
        assert client.inspect(frame(), RECIPE, request=named("before")).verdict is Verdict.OK
        with locked(path):
            for image in (frame(), frame(bright=True)):
                result = client.inspect(image, RECIPE, request=named("during" if image[0, 0, 0] < 200 else "ng"))
                assert result.verdict is (Verdict.REVIEW if policy == "review" else Verdict.ERROR)
                assert result.receipt is not None and not result.receipt.stored
                assert "STORE_LOCKED" in result.warnings[-1]
                if policy == "error":
                    assert result.error is not None and result.ng_probability is None and not result.defects
            status = client.status()
            assert status.store == "failing" and "STORE_LOCKED" in status.store_error
            # What was stored is still answered.
            assert client.inspect(frame(), RECIPE, request=named("before")).verdict is Verdict.OK
            # No early OK either, since the final answer will not be one.
            stream = list(client.inspect_stream([frame()], RECIPE, early_verdict=True))
            assert Verdict.OK not in [each.verdict for each in stream]
        limit = time.monotonic() + 20
        while (result := client.inspect(frame(), RECIPE, request=named("during"))).verdict is not Verdict.OK:
            assert time.monotonic() < limit
            time.sleep(0.1)
        assert result.receipt is not None and result.receipt.stored and not result.receipt.replayed
        assert client.status().store == "writing"
        names = [row.result.request.request_id for row in rows(running)]
        assert names == ["before", "during"]


def test_unexpected_failure_of_the_store_is_no_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        running_server(store=str(tmp_path)) as running,
        InspectionClient(running.address, retry=NO_RETRY) as client,
    ):
        store = running.server.store
        assert store is not None
        record = store.record_group
        monkeypatch.setattr(store, "record_group", lambda entries: (_ for _ in ()).throw(RuntimeError("boom")))
        result = client.inspect(frame(), RECIPE)
        assert result.verdict is Verdict.REVIEW and "boom" not in result.model_dump_json()
        monkeypatch.setattr(store, "record_group", record)
        time.sleep(1.05)
        assert client.inspect(frame(), RECIPE).verdict is Verdict.OK


def test_a_server_without_its_store_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError), running_server(store=str(tmp_path)):
        pass


def test_store_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.recorder._PATIENCE_S", 0.2)
    with (
        running_server(store=str(tmp_path), store_timeout_ms=10) as running,
        InspectionClient(running.address, retry=NO_RETRY) as client,
    ):
        store = running.server.store
        assert store is not None
        hold = threading.Event()
        record = store.record_group

        def hangs(entries: Any) -> Any:
            hold.wait(20)
            return record(entries)

        monkeypatch.setattr(store, "record_group", hangs)
        # This one may yet be stored, so nobody may be told that it is not.
        with pytest.raises(StoreError, match="not known"):
            client.inspect(frame(), RECIPE, request=named("hung"))
        # This one has not begun, and never will.
        result = client.inspect(frame(), RECIPE, request=named("behind"))
        assert result.verdict is Verdict.REVIEW and result.receipt is not None and not result.receipt.stored
        hold.set()
        monkeypatch.setattr(store, "record_group", record)
        again = client.inspect(frame(), RECIPE, request=named("hung"))
        assert again.verdict is Verdict.OK
        assert [row.result.request.request_id for row in rows(running)].count("hung") == 1


# --- sessions --------------------------------------------------------------------------------------------------------


def test_partial_results_are_never_stored(client: InspectionClient, server: RunningServer) -> None:
    results = list(client.inspect_progressive(frame(bright=True), RECIPE, request=named("p")))
    assert [result.is_partial for result in results] == [True, False]
    assert results[0].receipt is None and results[1].receipt is not None and results[1].receipt.stored
    again = list(client.inspect_progressive(frame(bright=True), RECIPE, request=named("p")))
    assert [result.is_partial for result in again] == [False] and again[0].receipt.replayed  # type: ignore[union-attr]
    (row,) = rows(server)
    assert not row.result.is_partial and row.result.defects


def test_every_result_of_a_session_is_stored_also_errors(client: InspectionClient, server: RunningServer) -> None:
    frames: list[Any] = [frame(), b"no image", FrameInput(image=frame(), recipe_id="nothing"), frame(bright=True)]
    results = list(client.inspect_stream(frames, RECIPE))
    assert [result.verdict.value for result in results] == ["OK", "ERROR", "ERROR", "NG"]
    assert {result.result_id for result in results} == {row.result.result_id for row in rows(server)}


def test_repeated_frames_of_a_session_get_one_row(client: InspectionClient, server: RunningServer) -> None:
    frames = [FrameInput(image=frame(), request=named(f"f{i % 3}")) for i in range(9)]
    results = list(client.inspect_stream(frames, RECIPE))
    assert len(results) == 9 and len({result.result_id for result in results}) == 3
    assert len(rows(server)) == 3
    clash = list(client.inspect_stream([FrameInput(image=frame(bright=True), request=named("f0"))], RECIPE))
    assert clash[0].error is not None and clash[0].error.reason == "REQUEST_ID_CONFLICT"


def test_latest_frame_wins_and_drops_are_counted(tmp_path: Path) -> None:
    inspector = StatisticsInspector()
    with (
        running_server(inspector, store=str(tmp_path), stream_window=2, max_batch=1) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        while inspector.entered.acquire(blocking=False):
            pass
        inspector.gate.clear()
        sent = threading.Event()

        def messages() -> Iterator[pb.InspectStreamRequest]:
            yield pb.InspectStreamRequest(
                session=pb.StreamSession(recipe_id=RECIPE, policy=pb.STREAM_POLICY_LATEST_FRAME)
            )
            for number in range(20):
                request = pb.InspectRequest(frame=pb.Frame(encoded=encoded(frame())), image_name=f"n{number}")
                yield pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=number, request=request))
                if number == 0:
                    assert inspector.entered.acquire(timeout=20)
            sent.wait(20)

        responses = InspectionServiceStub(channel).InspectStream(messages())
        assert next(responses).status.credits == 2
        limit = time.monotonic() + 20
        while running.server.counts.drops["stale"] < 18 and time.monotonic() < limit:
            time.sleep(0.01)
        inspector.gate.set()
        sent.set()
        rest = list(responses)
        answered = [response.sequence for response in rest if response.HasField("result")]
        assert answered == [0, 19], "the one at work, and the newest"
        dropped = [number for response in rest for number in response.dropped_sequences]
        assert dropped == list(range(1, 19))
        status = rest[-1].status
        assert (status.received, status.answered, status.dropped) == (20, 2, 18)
        assert [name for name in inspector.names if name] == ["n0", "n19"], "dropped frames are never computed"
        assert len(rows(running)) == 2
        with InspectionClient(running.address) as client:
            assert client.status().dropped == 18


def test_slow_reader_of_a_latest_frame_session_holds_no_more_than_its_window(tmp_path: Path) -> None:
    """Results that nobody fetches must not pile up in the server: its frames are dropped instead."""
    with (
        running_server(store="none", stream_window=2) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        total = 3000

        def messages() -> Iterator[pb.InspectStreamRequest]:
            yield pb.InspectStreamRequest(
                session=pb.StreamSession(recipe_id=RECIPE, policy=pb.STREAM_POLICY_LATEST_FRAME)
            )
            # A long name comes back in the result: flow control closes after few of them.
            request = pb.InspectRequest(frame=pb.Frame(encoded=encoded(frame())), image_name="x" * 1024)
            for number in range(total):
                yield pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=number, request=request))

        responses = InspectionServiceStub(channel).InspectStream(messages())
        next(responses)
        time.sleep(1.5)
        rest = list(responses)
        status = rest[-1].status
        assert status.received == total
        assert status.answered + status.dropped == total
        assert sum(response.HasField("result") for response in rest) == status.answered


def test_reason_and_field_of_a_bad_page_size(client: InspectionClient) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.results_page(page_size=5000)
    assert caught.value.field == "page_size"


def test_an_id_that_is_not_remembered_still_gets_the_stored_answer(
    client: InspectionClient, server: RunningServer
) -> None:
    """Another server on the same store, or a request of long ago: one row and the first answer all the same."""
    first = client.inspect(frame(), RECIPE, request=named("a"))
    recorder = server.server._recorder
    assert recorder is not None
    recorder._remembered.clear()
    again = client.inspect(frame(), RECIPE, request=named("a"))
    assert again.receipt is not None and again.receipt.replayed and again.result_id == first.result_id
    recorder._remembered.clear()
    with pytest.raises(RequestIdConflictError):
        client.inspect(frame(bright=True), RECIPE, request=named("a"))
    assert len(rows(server)) == 1
