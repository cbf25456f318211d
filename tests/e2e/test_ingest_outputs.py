"""Results out: MQTT with a real broker (mosquitto) and a subscriber of its own, webhooks with a real server."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from requires import require_tool

from auroraedge.ingest import Ingest
from auroraedge.ingest.settings import config_from
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict

paho = pytest.importorskip("paho.mqtt.client", reason="extra `ingest`")


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Broker:
    """mosquitto on a free port, which stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self._program = require_tool("mosquitto", also_in=("/usr/sbin",))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([self._program, "-c", self._config], stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Killed: it forgets everything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@dataclass
class Listener:
    """A subscriber that knows nothing of ours but the schema; payload classes are generated here."""

    port: int
    payload_class: Any
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="listener")
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _, __, message: self.seen.append((message.topic, message.payload))
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", self.port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def reconnected(self) -> None:
        """Waits for the subscription after a restart of the broker; before that, what is sent reaches nobody."""
        self._ready.clear()
        assert self._ready.wait(10)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)

    def of(self, kind: str) -> list[Any]:
        return [self.payload_class.FromString(data) for topic, data in list(self.seen) if f"/{kind}/" in topic]

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(data) for topic, data in list(self.seen) if topic.startswith("plant/")]

    def kinds(self) -> list[str]:
        return [topic.split("/")[2] for topic, _ in list(self.seen) if topic.startswith("spBv1.0/")]

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def payload_class(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Classes generated from a schema written down here from the specification, not from ours."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="subscriber.proto", package="subscriber", syntax="proto2")
    metric = file.message_type.add(name="Metric")
    for name, number, kind in (
        ("name", 1, types.TYPE_STRING), ("alias", 2, types.TYPE_UINT64), ("timestamp", 3, types.TYPE_UINT64),
        ("datatype", 4, types.TYPE_UINT32), ("is_historical", 5, types.TYPE_BOOL), ("is_null", 7, types.TYPE_BOOL),
        ("int_value", 10, types.TYPE_UINT32), ("long_value", 11, types.TYPE_UINT64),
        ("double_value", 13, types.TYPE_DOUBLE), ("boolean_value", 14, types.TYPE_BOOL),
        ("string_value", 15, types.TYPE_STRING),
    ):  # fmt: skip
        metric.field.add(name=name, number=number, type=kind, label=types.LABEL_OPTIONAL)
    payload = file.message_type.add(name="Payload")
    payload.field.add(name="timestamp", number=1, type=types.TYPE_UINT64, label=types.LABEL_OPTIONAL)
    payload.field.add(
        name="metrics", number=2, type=types.TYPE_MESSAGE, type_name=".subscriber.Metric", label=types.LABEL_REPEATED
    )
    payload.field.add(name="seq", number=3, type=types.TYPE_UINT64, label=types.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("subscriber.Payload"))


class Client:
    """Answers at once. NG for every third part."""

    def __init__(self) -> None:
        self.count = 0

    def inspect(self, image: bytes, recipe_id: str, *, request: RequestInfo, image_name: str, **_: Any) -> Any:
        self.count += 1
        verdict = Verdict.NG if self.count % 3 == 0 else Verdict.OK
        return InspectionResult(
            verdict=verdict, ng_probability=0.25, request=request, image_name=image_name, recipe_id=recipe_id
        )


def ingest(tmp_path: Path, outputs: dict[str, Any]) -> Ingest:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    source = {"type": "watch", "name": "cam", "folder": folder, "settle_s": 0.05, "poll_s": 0.1, "in_flight": 1}
    source["pattern"] = r"(?P<part_id>\w+)\.bmp"
    state = tmp_path / "state"
    return Ingest(
        config_from({"recipe": "r", "state": state, "status_s": 0, "sources": [source], "outputs": outputs}),
        client=Client(),
    )


def part(tmp_path: Path, number: int) -> None:
    (tmp_path / "in" / f"P{number}.bmp").write_bytes(b"%d" % number)


def mqtt(broker: Broker) -> dict[str, Any]:
    return {"mqtt": {"port": broker.port, "topic": "plant", "node": "line3", "group": "factory"}}


def by_name(payload: Any) -> dict[str, Any]:
    return {metric.name: metric for metric in payload.metrics}


def test_sparkplug_session(tmp_path: Path, broker: Broker, payload_class: Any) -> None:
    listener = Listener(broker.port, payload_class)
    with ingest(tmp_path, mqtt(broker)):
        until(lambda: listener.of("DBIRTH"))
        (node,), (device,) = listener.of("NBIRTH"), listener.of("DBIRTH")
        assert (node.seq, device.seq) == (0, 1)
        metrics = by_name(node)
        assert metrics["bdSeq"].datatype == 4 and metrics["bdSeq"].long_value == 0
        assert metrics["Node Control/Rebirth"].datatype == 11 and not metrics["Node Control/Rebirth"].boolean_value
        names = {metric.alias: (metric.name, metric.datatype) for metric in device.metrics}
        aliases = [metric.alias for payload in (node, device) for metric in payload.metrics if metric.HasField("alias")]
        assert len(set(aliases)) == len(aliases) and names

        for number in range(300):  # seq passes 255
            part(tmp_path, number)
        until(lambda: len(listener.documents()) == 300, 30)
        data = listener.of("DDATA")
        assert [payload.seq for payload in data] == [(number + 2) % 256 for number in range(300)]
        assert not any(metric.HasField("name") for payload in data for metric in payload.metrics)
        parts = set()
        for payload, document in zip(data, listener.documents(), strict=True):
            values = {names[metric.alias][0]: metric for metric in payload.metrics}
            assert values["Result/Verdict"].string_value == document["result"]["verdict"]
            assert values["Result/NgProbability"].double_value == 0.25
            assert values["Result/Error"].is_null
            assert values["Part/Id"].string_value == document["result"]["request"]["part_id"]
            parts.add(values["Part/Id"].string_value)
        assert parts == {f"P{number}" for number in range(300)}

        rebirth = payload_class(timestamp=1)
        rebirth.metrics.add(name="Node Control/Rebirth", boolean_value=True)
        listener.publish("spBv1.0/factory/NCMD/line3", rebirth.SerializeToString())
        until(lambda: len(listener.of("DBIRTH")) == 2)
        assert [payload.seq for payload in listener.of("NBIRTH")] == [0, 0]
        assert by_name(listener.of("DBIRTH")[1])["Result/Verdict"].string_value, "a birth carries the last values"

        (tmp_path / "in").rename(tmp_path / "away")  # the share is gone, and comes back
        until(lambda: "DDEATH" in listener.kinds())
        (tmp_path / "away").rename(tmp_path / "in")
        until(lambda: len(listener.of("DBIRTH")) == 3)
    assert len(listener.documents()) == 300, "nothing twice"
    death = until(lambda: listener.of("NDEATH"))[0]
    assert by_name(death)["bdSeq"].long_value == 0 and not death.HasField("seq")
    listener.stop()


def test_an_outage_of_the_broker_loses_nothing(
    tmp_path: Path, broker: Broker, payload_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auroraedge.ingest.mqtt._HISTORICAL_S", 1.0)
    listener = Listener(broker.port, payload_class)
    outputs, state = mqtt(broker), "spBv1.0/STATE/scada"
    outputs["mqtt"]["primary_host"] = "scada"  # so that nothing is sent before the subscriber is back, either
    listener.publish(state, b'{"online": true, "timestamp": 1}', retain=True)
    with ingest(tmp_path, outputs) as run:
        part(tmp_path, 0)
        until(lambda: len(listener.documents()) == 1)
        broker.stop()
        for number in range(1, 30):
            part(tmp_path, number)
        until(lambda: run.stats["cam"]["answered"] == 30)  # inspection goes on
        until(lambda: run.couriers[0].last_error)
        assert run.journal.waiting("mqtt") >= 29
        time.sleep(1.1)  # what is sent later than this is of the past
        broker.start()
        listener.reconnected()
        listener.publish(state, b'{"online": true, "timestamp": 2}', retain=True)
        until(lambda: not run.journal.waiting("mqtt"), 40)
    wanted = {f"P{number}" for number in range(30)}
    until(lambda: {each["result"]["request"]["part_id"] for each in listener.documents()} >= wanted)
    names = {metric.alias: metric.name for metric in listener.of("DBIRTH")[0].metrics}
    told = {
        metric.string_value: metric.is_historical
        for payload in listener.of("DDATA")
        for metric in payload.metrics
        if names[metric.alias] == "Part/Id"
    }
    assert set(told) == wanted
    assert not told["P0"] and sum(told.values()) >= 25
    listener.stop()


def test_results_wait_for_the_primary_host(tmp_path: Path, broker: Broker, payload_class: Any) -> None:
    listener = Listener(broker.port, payload_class)
    outputs = mqtt(broker)
    outputs["mqtt"]["primary_host"] = "scada"
    state = "spBv1.0/STATE/scada"
    with ingest(tmp_path, outputs) as run:
        part(tmp_path, 1)
        until(lambda: "primary host" in run.couriers[0].last_error)
        assert not listener.of("NBIRTH") and run.journal.waiting("mqtt") == 1
        listener.publish(state, b'{"online": true, "timestamp": 2}', retain=True)
        until(lambda: len(listener.of("DDATA")) == 1)
        listener.publish(state, b'{"online": false, "timestamp": 1}', retain=True)  # older than what is known
        part(tmp_path, 2)
        until(lambda: len(listener.of("DDATA")) == 2)
        listener.publish(state, b'{"online": false, "timestamp": 3}', retain=True)
        until(lambda: listener.of("NDEATH"))
        part(tmp_path, 3)
        until(lambda: run.stats["cam"]["answered"] == 3)
        time.sleep(0.5)
        assert len(listener.of("DDATA")) == 2
        listener.publish(state, b'{"online": true, "timestamp": 4}', retain=True)
        until(lambda: len(listener.of("DDATA")) == 3, 30)
    listener.stop()


def test_a_kill_is_announced_by_the_will(tmp_path: Path, broker: Broker, payload_class: Any) -> None:
    listener = Listener(broker.port, payload_class)
    run = ingest(tmp_path, mqtt(broker))
    run.start()
    until(lambda: listener.of("NBIRTH"))
    session = run.couriers[0].output._session  # type: ignore[attr-defined]
    session._client._sock.shutdown(socket.SHUT_RDWR)  # the cable is cut: no DISCONNECT
    death = until(lambda: listener.of("NDEATH"))[0]
    assert by_name(death)["bdSeq"].long_value == 0
    until(lambda: len(listener.of("NBIRTH")) == 2)
    assert by_name(listener.of("NBIRTH")[1])["bdSeq"].long_value == 1
    run.stop()
    listener.stop()


@dataclass
class Receiver:
    """A webhook's receiver. answers: status codes to give first."""

    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status == 204:
                    receiver.got.append((dict(self.headers), body))
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_webhooks_are_signed_and_repeated(tmp_path: Path) -> None:
    receiver = Receiver(answers=[503, 404, 429, 400])
    receiver.start()
    (tmp_path / "secret").write_text("s3cret\n")
    hook = {"name": "mes", "url": f"http://127.0.0.1:{receiver.port}/r", "secret_file": tmp_path / "secret"}
    only_ng = {"name": "andon", "url": f"http://127.0.0.1:{receiver.port}/ng", "verdicts": ["NG"]}
    with ingest(tmp_path, {"webhooks": [hook]}) as run:
        part(tmp_path, 1)
        part(tmp_path, 2)
        until(lambda: len(receiver.got) == 1 and not run.journal.waiting("webhook-mes"))
        status = run.status()["outputs"]["webhook-mes"]
    assert (status["failures"], status["dead_letters"]) == (3, 1)
    headers, body = receiver.got[0]
    signed = headers["X-AuroraEdge-Timestamp"].encode() + b"." + body
    assert headers["X-AuroraEdge-Signature"] == "sha256=" + hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    dead = json.loads((tmp_path / "state" / "dead-webhook-mes.jsonl").read_text())
    assert dead["reason"].startswith("answered 400")
    taken = {headers["Idempotency-Key"], dead["key"]}
    assert taken == {dead["body"]["id"], json.loads(body)["id"]} and len(taken) == 2

    # Away for a while: inspection goes on; everything arrives once it is back, by another run even.
    receiver.stop()
    with ingest(tmp_path, {"webhooks": [hook, only_ng]}) as run:
        for number in range(3, 9):
            part(tmp_path, number)
        until(lambda: run.stats["cam"]["answered"] == 6)
        until(lambda: run.couriers[0].last_error)
    receiver.got.clear()
    receiver.start()
    with ingest(tmp_path, {"webhooks": [hook, only_ng]}) as run:
        until(lambda: not run.journal.waiting("webhook-mes") and not run.journal.waiting("webhook-andon"))
    keys = [headers["Idempotency-Key"] for headers, _ in receiver.got]
    assert len(set(keys)) == 6 and len(keys) == 8, "six to the one, the two NG to the other"
    receiver.stop()


def test_a_full_outbox_goes_to_the_dead_letters(tmp_path: Path) -> None:
    with ingest(tmp_path, {"webhooks": [{"name": "mes", "url": "http://127.0.0.1:9/"}], "outbox_messages": 5}) as run:
        for number in range(12):
            part(tmp_path, number)
        until(lambda: run.stats["cam"]["answered"] == 12)
        until(lambda: run.journal.waiting("webhook-mes") == 5)
    lines = (tmp_path / "state" / "dead-webhook-mes.jsonl").read_text().splitlines()
    assert len(lines) == 7 and all(json.loads(line)["reason"] == "the outbox is full" for line in lines)


def test_mqtt_messages_trigger_frames(tmp_path: Path, broker: Broker, payload_class: Any) -> None:
    from test_ingest_live import Client as LiveClient
    from test_ingest_live import FakeCamera, with_camera

    client = LiveClient()
    trigger = {"kind": "mqtt", "topic": "plant/trigger/+"}
    source = {"type": "video", "name": "cam", "url": "rtsp://127.0.0.1:9/x", "policy": "every", "trigger": trigger}
    outputs = mqtt(broker)
    config = config_from(
        {"recipe": "r", "state": tmp_path / "s", "status_s": 0, "sources": [source], "outputs": outputs}
    )
    run = Ingest(config, client=client)
    with_camera(run, FakeCamera())
    sender = Listener(broker.port, payload_class)
    with run:
        until(lambda: (sender.publish("plant/trigger/a", b"warm"), client.seen)[1])  # until it has subscribed
        time.sleep(0.2)
        before = len(client.seen)
        sender.publish("plant/trigger/b", b'{"trigger_id": "T1", "part_id": "P1"}')
        sender.publish("plant/trigger/b", b'{"trigger_id": "T1", "part_id": "P1"}')
        until(lambda: len(client.seen) == before + 1)
        broker.stop()
        broker.start()
        sender.reconnected()
        until(lambda: (sender.publish("plant/trigger/a", b"%f" % time.time()), len(client.seen) > before + 1)[1])
    assert (client.seen[before][0].trigger_id, client.seen[before][0].part_id) == ("T1", "P1")
    assert run.stats["cam"]["repeated_triggers"] >= 1
    sender.stop()
