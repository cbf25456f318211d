"""Live sources: a real RTSP server that is killed and comes back, video files, triggers, the spool, GenICam."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from requires import lacks, require_tool

from auroraedge.errors import InvalidRequestError, MissingDependencyError, ServerUnavailableError
from auroraedge.ingest import Ingest
from auroraedge.ingest.genicam import GenICamCamera, pixels_of
from auroraedge.ingest.live import CameraLostError, LiveSource, Picture
from auroraedge.ingest.settings import GenICamSource, VideoSource, config_from
from auroraedge.ingest.video import VideoCamera, check_backend, kind_of, redacted
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Client:
    """Answers after `pause_s`; `away` makes it unreachable."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s, self.away = pause_s, False
        self.seen: list[tuple[RequestInfo, np.ndarray]] = []

    def inspect(self, image: bytes, recipe_id: str, *, request: RequestInfo, image_name: str, **_: Any) -> Any:
        if self.away:
            raise ServerUnavailableError("Nobody is there.")
        time.sleep(self.pause_s)
        self.seen.append((request, cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)))
        return InspectionResult(verdict=Verdict.OK, request=request, image_name=image_name)


def ingest(tmp_path: Path, client: Client, source: dict[str, Any], **others: Any) -> Ingest:
    source = {"name": "cam", "in_flight": 1} | source
    content = {"recipe": "r", "state": tmp_path / "state", "status_s": 0, "sources": [source]} | others
    return Ingest(config_from(content), client=client)


@pytest.fixture(scope="module")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 grey frames; frame i has the value 8 * i."""
    path = tmp_path_factory.mktemp("video") / "part.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    assert writer.isOpened()
    for index in range(30):
        writer.write(np.full((48, 64, 3), 8 * index, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("policy", ["latest", "every"])
def test_a_video_file_is_inspected_whole(tmp_path: Path, video_file: Path, policy: str) -> None:
    client = Client(pause_s=0.01)
    with ingest(tmp_path, client, {"type": "video", "url": str(video_file), "policy": policy}) as run:
        run.wait()
    assert [round(float(pixels.mean()) / 8) for _, pixels in client.seen] == list(range(30)), "all, in their order"
    assert run.stats["cam"]["dropped"] == 0
    again = Client()
    with ingest(tmp_path / "2", again, {"type": "video", "url": str(video_file), "policy": policy}) as run:
        run.wait()
    assert [info.request_id for info, _ in again.seen] == [info.request_id for info, _ in client.seen]


class Rtsp:
    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def start(self) -> None:
        python = (
            require_tool("python3", also_in=("/usr/bin",))
            if not Path("/usr/bin/python3").exists()
            else Path("/usr/bin/python3")
        )
        script = Path(__file__).resolve().parents[1] / "rtsp_server.py"
        self.process = subprocess.Popen(
            [python, script, str(self.port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        if self.process.stdout.readline().strip() != "ready":
            lacks(f"GStreamer's RTSP server is not installed: {self.process.stderr.read()[-200:]}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=10)


@pytest.fixture
def rtsp() -> Iterator[Rtsp]:
    server = Rtsp()
    server.start()
    yield server
    server.kill()


def test_rtsp_is_reconnected_and_drops_are_counted(tmp_path: Path, rtsp: Rtsp) -> None:
    client = Client(pause_s=0.2)
    source = {"type": "video", "url": rtsp.url, "stall_s": 2}
    with ingest(tmp_path, client, source) as run:
        stats = run.stats["cam"]
        until(lambda: len(client.seen) >= 3)
        assert client.seen[0][1].shape == (120, 160, 3)
        until(lambda: stats["dropped"] >= 5)  # 25 a second come, 5 are inspected
        rtsp.kill()
        until(lambda: not stats.online)
        before = len(client.seen)
        rtsp.start()
        until(lambda: stats["reconnects"] >= 1 and len(client.seen) > before + 2)
    snapshot = stats.snapshot()
    assert snapshot["frames"] == snapshot["answered"] + snapshot["dropped"] + run.lanes[0].source.feed.waiting
    numbers = [int(info.request_id.rsplit("-", 1)[1]) for info, _ in client.seen]
    assert numbers == sorted(set(numbers)) and numbers[-1] > len(numbers), "the newest ones, in order"


class FakeCamera:
    """100 frames a second, numbered in their pixels, until `lost` is set."""

    ends = False

    def __init__(self) -> None:
        self.lost = threading.Event()
        self.opened = self.number = 0

    def open(self) -> None:
        self.opened += 1
        if self.lost.is_set():
            raise CameraLostError("The cable is out.")

    def grab(self) -> bool:
        if self.lost.wait(0.01):
            raise CameraLostError("The cable is out.")
        self.number += 1
        return True

    def retrieve(self) -> Picture | None:
        return Picture(pixels=np.full((8, 8, 3), self.number % 251, np.uint8), info={"exposure_us": 40.0})

    def skip(self) -> None:
        pass

    def close(self) -> None:
        pass


def with_camera(run: Ingest, camera: Any) -> LiveSource:
    source = run.lanes[0].source
    assert isinstance(source, LiveSource)
    source._make_camera = lambda: camera
    return source


def test_every_frame_survives_an_outage_and_a_restart(tmp_path: Path) -> None:
    client, camera = Client(), FakeCamera()
    source = {"type": "video", "url": "rtsp://127.0.0.1:9/x", "policy": "every", "fps": 50}
    run = ingest(tmp_path, client, source)
    with_camera(run, camera)
    client.away = True
    run.start()
    until(lambda: run.stats["cam"]["frames"] >= 20)
    camera.lost.set()
    until(lambda: not run.stats["cam"].online)
    run.stop()
    frames = run.stats["cam"]["frames"]
    assert not client.seen and len(list((tmp_path / "state" / "spool").iterdir())) == frames

    client.away = False
    run = ingest(tmp_path, client, source)
    with_camera(run, camera)  # still without its cable
    run.start()
    until(lambda: len(client.seen) == frames)
    run.stop()
    assert [int(info.request_id[-8:]) for info, _ in client.seen] == list(range(frames))
    values = [int(pixels[0, 0, 0]) for _, pixels in client.seen]
    assert values == sorted(values) and len(set(values)) == frames
    assert not list((tmp_path / "state" / "spool").iterdir())
    assert client.seen[0][0].exposure_us == 40.0


def test_a_full_spool_is_counted(tmp_path: Path) -> None:
    client, camera = Client(), FakeCamera()
    client.away = True
    camera.retrieve = lambda: Picture(  # type: ignore[method-assign]
        pixels=np.random.default_rng(camera.number).integers(0, 255, (256, 512, 3), np.uint8), info={}
    )
    source = {"type": "video", "url": "rtsp://127.0.0.1:9/x", "policy": "every"}
    run = ingest(tmp_path, client, source, spool_mb=1)
    with_camera(run, camera)
    with run:
        until(lambda: run.stats["cam"]["spool_full"] >= 3)
        assert run.journal.spooled_bytes() <= 1 << 20
    assert run.stats["cam"]["frames"] == run.stats["cam"]["spool_full"] + 2


def test_triggers_release_one_frame_each(tmp_path: Path) -> None:
    client, camera = Client(), FakeCamera()
    source = {"type": "video", "url": "rtsp://127.0.0.1:9/x", "stall_s": 0.5}
    source["trigger"] = {"kind": "interval", "seconds": 3600}
    source["policy"] = "every"
    run = ingest(tmp_path, client, source)
    live = with_camera(run, camera)
    triggers = live.triggers
    assert triggers is not None
    out: list[Any] = []
    finish = run.journal.finish
    run.journal.finish = lambda *a, body, **k: (out.append(body["result"]), finish(*a, body=body, **k))[1]  # type: ignore[method-assign]
    with run:
        until(lambda: len(client.seen) == 1)  # the clock's first tick
        triggers.put_text('{"trigger_id": "T1", "part_id": "A", "lot": 5}')
        triggers.put_text("T2")
        triggers.put_text("T2")  # delivered twice by the broker
        triggers.put_text("{broken")
        until(lambda: len(client.seen) == 3)
        time.sleep(0.2)
        assert len(client.seen) == 3
        camera.lost.set()
        triggers.put_text("T3")
        until(lambda: len(out) == 4)
    assert [info.trigger_id for info, _ in client.seen[1:]] == ["T1", "T2"]
    assert (client.seen[1][0].part_id, client.seen[1][0].lot) == ("A", "5")
    assert out[-1]["request"]["trigger_id"] == "T3" and out[-1]["verdict"] == "ERROR"
    assert run.stats["cam"]["repeated_triggers"] == run.stats["cam"]["bad_triggers"] == 1


def test_lines_on_stdin_trigger(tmp_path: Path, video_file: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path\n"
        "from test_ingest_live import Client, FakeCamera, ingest, with_camera, until\n"
        "client = Client()\n"
        "source = {'type': 'video', 'url': 'rtsp://127.0.0.1:9/x', 'trigger': {'kind': 'stdin'}, 'policy': 'every'}\n"
        "run = ingest(Path(sys.argv[2]), client, source)\n"
        "with_camera(run, FakeCamera())\n"
        "with run: until(lambda: len(client.seen) == 2)\n"
        "print([info.trigger_id for info, _ in client.seen])\n"
    )
    tests = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tests), str(tmp_path)],
        input="K1\n\nK2\n",
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{tests.parent}:{tests.parents[1]}", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip() == "['K1', 'K2']", done.stderr


def test_what_opencv_cannot_open_is_said_clearly(tmp_path: Path) -> None:
    def video(url: str, **others: Any) -> VideoSource:
        return VideoSource(name="cam", url=url, **others)

    assert [kind_of(video(url)) for url in ("0", "/dev/video3", "rtsp://h/x", "a.mp4", "v4l2src ! appsink")] == [
        "v4l2", "v4l2", "ffmpeg", "ffmpeg", "gstreamer",
    ]  # fmt: skip
    if "GStreamer:                   NO" in cv2.getBuildInformation():
        with pytest.raises(MissingDependencyError, match="without GStreamer") as raised:
            check_backend(video("videotestsrc ! appsink"))
        assert "opencv-python-headless wheel has no GStreamer" in raised.value.remedy
    with pytest.raises(CameraLostError, match="There is no /dev/video99"):
        VideoCamera(video("99")).open()
    with pytest.raises(CameraLostError, match=r"rtsp://\*\*\*@127.0.0.1:9/x cannot be opened"):
        VideoCamera(video("rtsp://user:secret@127.0.0.1:9/x", stall_s=1)).open()
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        ingest(tmp_path, Client(), {"type": "video", "url": "missing.mp4"})
    assert "secret" not in redacted("rtsp://user:secret@h/x")


# --- GenICam: harvesters with the GenTL producer that the package genicam brings, which simulates three cameras


@pytest.fixture
def producer() -> Path:
    genicam = pytest.importorskip("genicam", reason="extra `genicam`")
    path = Path(genicam.__file__).with_name("viky.cti")
    if not path.exists():
        pytest.skip("this release of the package genicam has no simulated cameras")
    return path


@pytest.mark.parametrize("features", [{"PixelFormat": "Mono8"}, {}])
def test_simulated_genicam_camera(tmp_path: Path, producer: Path, features: dict[str, Any]) -> None:
    client = Client()
    source = {"type": "genicam", "producer": producer, "serial_number": "1", "features": features, "policy": "every"}
    source["fps"] = 20
    with ingest(tmp_path, client, source) as run:
        until(lambda: len(client.seen) >= 5)
    assert run.stats["cam"].online and run.stats["cam"]["ERROR"] == 0
    pictures = [pixels for _, pixels in client.seen]
    assert {pixels.shape for pixels in pictures} == {(400, 400, 3)}
    assert len({pixels.tobytes() for pixels in pictures}) > 1, "the ball moves"
    if not features:  # the camera named "green"
        assert pictures[0][:, :, 1].max() > 0


def test_a_camera_that_is_not_there_and_a_feature_that_is_not(tmp_path: Path, producer: Path) -> None:
    lost = GenICamCamera(GenICamSource(name="cam", producer=producer, serial_number="77"))
    with pytest.raises(CameraLostError, match=r"Camera 77 cannot be opened: .* \(found: 0, 1, 2\)"):
        lost.open()
    lost.close()
    wrong = GenICamCamera(GenICamSource(name="cam", producer=producer, features={"Gainn": 1}))
    with pytest.raises(InvalidRequestError, match="no feature Gainn"):
        wrong.open()
    wrong.close()


def test_a_producer_that_does_not_load_is_a_lost_camera(tmp_path: Path) -> None:
    pytest.importorskip("harvesters.core", reason="extra `genicam`")
    producer = tmp_path / "maker.cti"
    producer.write_bytes(b"no library")
    camera = GenICamCamera(GenICamSource(name="cam", producer=producer))
    with pytest.raises(CameraLostError, match="cannot be opened"):
        camera.open()
    camera.close()


@pytest.mark.parametrize(
    ("name", "raw", "padding", "expected"),
    [
        ("Mono8", bytes([10, 20, 0, 0, 30, 40, 0, 0]), 2, [[10, 20], [30, 40]]),
        ("Mono12", (160).to_bytes(2, "little") * 2 + (3200).to_bytes(2, "little") * 2, 0, [[10, 10], [200, 200]]),
        ("BGRa8", bytes([0, 10, 0, 9] * 4), 0, [[10, 10], [10, 10]]),
        ("Mono12p", bytes([0xA0, 0x00, 0x0A] * 2), 0, [[10, 10], [10, 10]]),
    ],
)
def test_camera_pixels(name: str, raw: bytes, padding: int, expected: list[list[int]]) -> None:
    component = SimpleNamespace(data_format=name, width=2, height=2, x_padding=padding, data_offset=0)
    assert pixels_of(component, raw)[:, :, 1].tolist() == expected
    with pytest.raises(InvalidRequestError, match="YUV422_8 is not read"):
        pixels_of(SimpleNamespace(data_format="YUV422_8", width=2, height=2, x_padding=0, data_offset=0), raw)
