"""Results over MQTT: JSON topics with QoS 1 and, where a group is set, Sparkplug B beside them.

Every connection is a client object of its own: Sparkplug's last will differs from one to the next, and nothing that an
earlier connection left half done is confirmed by a later one. A result is confirmed by the broker's acknowledgement of
its JSON message. Sparkplug prescribes QoS 0 for DDATA, so that is sent on the same connection before the JSON message:
a broker that acknowledges the later packet has read the earlier one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from auroraedge.errors import InvalidRequestError
from auroraedge.ingest.backoff import Backoff
from auroraedge.ingest.journal import Journal, Message
from auroraedge.ingest.settings import MqttSettings
from auroraedge.ingest.sparkplug import EdgeNode, SparkplugMessage, asks_rebirth

log = logging.getLogger("auroraedge.ingest")

_CONNECT_S = 5.0
_CONFIRM_S = 10.0
_KEEPALIVE_S = 20
# Its state is a retained message, which comes at once where there is one.
_HOST_S = 1.0
# A result that waited longer than this was not sent when it was new.
_HISTORICAL_S = 5.0


def new_client(settings: MqttSettings, suffix: str = "", *, clean: bool = True) -> paho.Client:
    """Raises InvalidRequestError for a password or certificate that cannot be read."""
    client_id = (settings.client_id or f"auroraedge-{settings.node}") + suffix
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean)
    if settings.username:
        password = settings.read(settings.password_file, "password_file") if settings.password_file else None
        client.username_pw_set(settings.username, password)
    if settings.ca is not None:
        try:
            context = ssl.create_default_context(cafile=str(settings.ca))
            if settings.cert is not None:
                context.load_cert_chain(settings.cert, settings.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequestError(f"The certificates cannot be used: {error}.", field="outputs.mqtt.ca") from error
        client.tls_set_context(context)
    client.connect_timeout = _CONNECT_S
    return client


class _Session:
    """One connection, from CONNECT to its end."""

    def __init__(self, settings: MqttSettings, node: EdgeNode | None) -> None:
        self._settings, self.node = settings, node
        self._client = new_client(settings)
        self.rebirth = threading.Event()
        self._connected, self._over = threading.Event(), threading.Event()
        self._confirmed: set[int] = set()
        self._confirmation = threading.Condition()
        self._refused = ""
        self.host_lost = False
        self._host_online, self._host_stamp = threading.Event(), -1
        if node is not None:
            will = node.death()
            self._client.will_set(will.topic, will.payload, will.qos, retain=False)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._refused = str(reason)
            self._over.set()
        self._connected.set()

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._over.set()
        self._connected.set()
        with self._confirmation:
            self._confirmation.notify_all()

    def _on_publish(self, client: Any, data: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._confirmation:
            self._confirmed.add(mid)
            self._confirmation.notify_all()

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        if message.topic == self._state_topic:
            self._on_state(message.payload)
        elif asks_rebirth(message.payload):
            self.rebirth.set()

    @property
    def _state_topic(self) -> str:
        return f"spBv1.0/STATE/{self._settings.primary_host}" if self._settings.primary_host else ""

    def _on_state(self, payload: bytes) -> None:
        try:
            content = json.loads(payload)
            online, stamp = bool(content["online"]), int(content["timestamp"])
        except (ValueError, TypeError, KeyError):
            return
        if stamp < self._host_stamp:  # a late will of an earlier session of the host
            return
        self._host_stamp = stamp
        if online:
            self._host_online.set()
        elif self._host_online.is_set():
            self.host_lost = True

    def open(self, births: Callable[[], list[SparkplugMessage]]) -> None:
        """Raises OSError."""
        self._client.reconnect_delay_set(3600, 3600)  # a lost connection is not taken up again: see the module
        self._client.connect(self._settings.host, self._settings.port, keepalive=_KEEPALIVE_S)
        self._client.loop_start()
        if not self._connected.wait(_CONNECT_S) or self._over.is_set():
            raise ConnectionError(f"the broker refuses: {self._refused or 'no answer'}")
        if self.node is not None:
            if self._state_topic:
                self._client.subscribe(self._state_topic, qos=1)
                if not self._host_online.wait(_HOST_S):
                    raise ConnectionError(f"the primary host '{self._settings.primary_host}' is not online")
            self._client.subscribe(self.node.command_topic, qos=1)
            for message in births():
                self.publish(message.topic, message.payload, message.qos)

    @property
    def alive(self) -> bool:
        return not self._over.is_set()

    def publish(self, topic: str, payload: bytes, qos: int) -> int:
        info = self._client.publish(topic, payload, qos=qos, retain=False)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise ConnectionError("the connection to the broker is lost")
        return info.mid

    def confirmed(self, mids: list[int]) -> set[int]:
        """Waits until all are acknowledged or the connection ends."""
        deadline = time.monotonic() + _CONFIRM_S
        with self._confirmation:
            while self.alive and not self._confirmed.issuperset(mids) and time.monotonic() < deadline:
                self._confirmation.wait(0.1)
            found = self._confirmed.intersection(mids)
            self._confirmed -= set(mids)
        return found

    def close(self, *, in_good_order: bool) -> None:
        if in_good_order and self.alive and self.node is not None:
            # DISCONNECT makes the broker forget the will, so an ordinary end says itself what the will would.
            death = self.node.death()
            with contextlib.suppress(OSError):
                self.confirmed([self.publish(death.topic, death.payload, death.qos)])
        self._client.disconnect()
        self._client.loop_stop()


class MqttOutput:
    """An Output. online: the sources whose camera answers; changes become DBIRTH and DDEATH."""

    name = "mqtt"

    def __init__(
        self, settings: MqttSettings, journal: Journal, devices: tuple[str, ...], online: Callable[[str], bool]
    ) -> None:
        self._settings, self._journal = settings, journal
        self._devices, self._online = devices, online
        self._born: set[str] = set()
        self._last: dict[str, dict[str, Any]] = {}  # what births say, over reconnections
        self._session: _Session | None = None
        self._backoff, self._retry_at = Backoff(), 0.0
        new_client(settings)  # a wrong password file is told at the start, not in the night

    def _births(self) -> list[SparkplugMessage]:
        assert self._session is not None and self._session.node is not None
        self._born = {device for device in self._devices if self._online(device)}
        return self._session.node.births(tuple(device for device in self._devices if device in self._born))

    def _connected(self) -> _Session:
        if self._session is not None and self._session.alive and not self._session.host_lost:
            return self._session
        self._drop(in_good_order=self._session is not None and self._session.host_lost)
        node = None
        if self._settings.group is not None:
            bd_seq = self._journal.next_number("bdSeq") % 256
            node = EdgeNode(
                group=self._settings.group,
                node=self._settings.node,
                devices=self._devices,
                bd_seq=bd_seq,
                last=self._last,
            )
        self._session = _Session(self._settings, node)
        try:
            self._session.open(self._births)
        except OSError as error:
            self._drop()
            address = f"{self._settings.host}:{self._settings.port}"
            raise ConnectionError(f"MQTT broker {address}: {error}") from error
        return self._session

    def _drop(self, *, in_good_order: bool = False) -> None:
        if self._session is not None:
            self._session.close(in_good_order=in_good_order)
            self._session = None

    def _keep_up(self, session: _Session) -> None:
        """Births and deaths that are due."""
        if session.node is None:
            return
        if session.rebirth.is_set():
            session.rebirth.clear()
            for message in self._births():
                session.publish(message.topic, message.payload, message.qos)
        for device in self._devices:
            alive = self._online(device)
            if alive == (device in self._born):
                continue
            message = session.node.device_birth(device) if alive else session.node.device_death(device)
            (self._born.add if alive else self._born.discard)(device)
            session.publish(message.topic, message.payload, message.qos)

    def send(self, messages: list[Message], stop: threading.Event) -> list[int]:
        session = self._connected()
        self._keep_up(session)
        sent: dict[int, int] = {}
        try:
            for message in messages:
                device = message.body["source"]
                if session.node is not None and device in self._devices:
                    if device not in self._born:  # results of a camera that is gone now
                        birth = session.node.device_birth(device)
                        session.publish(birth.topic, birth.payload, birth.qos)
                        self._born.add(device)
                    historical = time.time() - message.created > _HISTORICAL_S
                    data = session.node.data(device, message.body, historical=historical)
                    session.publish(data.topic, data.payload, data.qos)
                topic = f"{self._settings.topic}/{self._settings.node}/{device}"
                body = json.dumps(message.body, ensure_ascii=False).encode()
                sent[session.publish(topic, body, 1)] = message.id
        except OSError:
            self._drop()
            raise
        found = session.confirmed(list(sent))
        if len(found) < len(sent):
            self._drop()  # what was not acknowledged is sent again, on another connection
        return [sent[mid] for mid in found]

    def idle(self) -> None:
        """Keeps the connection up, so that births, deaths and the will are true while nothing is inspected."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self._keep_up(self._connected())
            self._backoff.reset()
        except OSError as error:
            delay = self._backoff.next()
            self._retry_at = time.monotonic() + delay
            log.debug("%s; again in %.1f s", error, delay)

    def close(self) -> None:
        if self._session is not None:
            self._session.close(in_good_order=True)
            self._session = None


def subscribe(settings: MqttSettings, topic: str, on_text: Callable[[str], None], stop: threading.Event) -> None:
    """Calls `on_text` for the messages of `topic` until `stop`; connects again whenever the broker was away.

    The session is kept by the broker (clean_session off), so triggers of an outage of this side arrive late, not never.
    """
    client = new_client(settings, "-triggers", clean=False)

    def on_connect(client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            log.warning("triggers: the broker refuses: %s", reason)
        else:
            client.subscribe(topic, qos=1)

    client.on_connect = on_connect
    client.on_message = lambda _, __, message: on_text(message.payload.decode("utf-8", "replace"))
    client.reconnect_delay_set(1, 15)
    client.connect_async(settings.host, settings.port, keepalive=_KEEPALIVE_S)
    client.loop_start()
    stop.wait()
    client.disconnect()
    client.loop_stop()
