"""Sparkplug B 3.0: the messages of one edge node with one device a source. Transport is mqtt.py's."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from auroraedge._proto.sparkplug.v1.sparkplug_pb2 import DataType, Metric, Payload

REBIRTH = "Node Control/Rebirth"

# name -> (type, where the value is in a result's document; dots go down)
_RESULT: dict[str, tuple[int, str]] = {
    "Result/Id": (DataType.DATA_TYPE_STRING, "result.result_id"),
    "Result/Verdict": (DataType.DATA_TYPE_STRING, "result.verdict"),
    "Result/NgProbability": (DataType.DATA_TYPE_DOUBLE, "result.ng_probability"),
    "Result/DefectCount": (DataType.DATA_TYPE_INT32, "result.defects"),
    "Result/Defects": (DataType.DATA_TYPE_TEXT, "result.defects"),
    "Result/Error": (DataType.DATA_TYPE_STRING, "result.error.reason"),
    "Result/CreatedAt": (DataType.DATA_TYPE_DATE_TIME, "result.created_at"),
    "Result/TotalMs": (DataType.DATA_TYPE_DOUBLE, "result.timings.total_ms"),
    "Result/ImageSha256": (DataType.DATA_TYPE_STRING, "result.image_sha256"),
    "Recipe/Id": (DataType.DATA_TYPE_STRING, "result.recipe_id"),
    "Recipe/Version": (DataType.DATA_TYPE_INT32, "result.recipe_version"),
    "Model/Id": (DataType.DATA_TYPE_STRING, "result.model_id"),
    "Model/EngineSha256": (DataType.DATA_TYPE_STRING, "result.engine_sha256"),
    "Request/Id": (DataType.DATA_TYPE_STRING, "result.request.request_id"),
    "Request/TriggerId": (DataType.DATA_TYPE_STRING, "result.request.trigger_id"),
    "Part/Id": (DataType.DATA_TYPE_STRING, "result.request.part_id"),
    "Part/Lot": (DataType.DATA_TYPE_STRING, "result.request.lot"),
    "Part/Job": (DataType.DATA_TYPE_STRING, "result.request.job"),
}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _set(metric: Metric, datatype: int, value: Any) -> Metric:
    if value is None:
        metric.is_null = True
    elif datatype in (DataType.DATA_TYPE_INT32,):
        metric.int_value = int(value) & 0xFFFFFFFF
    elif datatype in (DataType.DATA_TYPE_INT64, DataType.DATA_TYPE_UINT64, DataType.DATA_TYPE_DATE_TIME):
        metric.long_value = int(value) & 0xFFFFFFFFFFFFFFFF
    elif datatype == DataType.DATA_TYPE_DOUBLE:
        metric.double_value = float(value)
    elif datatype == DataType.DATA_TYPE_BOOLEAN:
        metric.boolean_value = bool(value)
    else:
        metric.string_value = str(value)
    return metric


def _moment_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _value(name: str, body: dict[str, Any]) -> Any:
    datatype, path = _RESULT[name]
    value: Any = body
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if name == "Result/DefectCount":
        return len(value or ())
    if datatype == DataType.DATA_TYPE_TEXT:
        return json.dumps(value or [], ensure_ascii=False)
    if datatype == DataType.DATA_TYPE_DATE_TIME and value is not None:
        return _moment_ms(value)
    return value


@dataclass(frozen=True, kw_only=True)
class SparkplugMessage:
    """qos and retain are what the specification prescribes."""

    topic: str
    payload: bytes
    qos: int = 0


class EdgeNode:
    """Makes the messages of one MQTT session. bd_seq: of this session, 0..255; in its will, births and death."""

    def __init__(
        self,
        *,
        group: str,
        node: str,
        devices: tuple[str, ...],
        bd_seq: int,
        last: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.group, self.node, self.devices, self.bd_seq = group, node, devices, bd_seq % 256
        self._seq = 0
        names = list(_RESULT)
        # 0 and 1 are the node's own metrics.
        self._alias = {
            (device, name): 2 + row * len(names) + column
            for row, device in enumerate(devices)
            for column, name in enumerate(names)
        }
        # The newest result of each device.
        self._last = {} if last is None else last

    @property
    def command_topic(self) -> str:
        return f"spBv1.0/{self.group}/NCMD/{self.node}"

    def _topic(self, kind: str, device: str = "") -> str:
        return f"spBv1.0/{self.group}/{kind}/{self.node}" + (f"/{device}" if device else "")

    def _payload(self, metrics: list[Metric]) -> bytes:
        payload = Payload(timestamp=now_ms(), metrics=metrics, seq=self._seq)
        self._seq = (self._seq + 1) % 256
        return payload.SerializeToString()

    def _bd_seq(self) -> Metric:
        metric = Metric(name="bdSeq", timestamp=now_ms(), datatype=DataType.DATA_TYPE_INT64)
        return _set(metric, DataType.DATA_TYPE_INT64, self.bd_seq)

    def death(self) -> SparkplugMessage:
        """The will, and what is sent before an ordinary end. It carries no seq."""
        payload = Payload(timestamp=now_ms(), metrics=[self._bd_seq()])
        return SparkplugMessage(topic=self._topic("NDEATH"), payload=payload.SerializeToString(), qos=1)

    def births(self, online: tuple[str, ...]) -> list[SparkplugMessage]:
        """NBIRTH, then the DBIRTH of each device that is online. seq begins at 0."""
        self._seq = 0
        stamp = now_ms()
        rebirth = Metric(
            name=REBIRTH, alias=1, timestamp=stamp, datatype=DataType.DATA_TYPE_BOOLEAN, boolean_value=False
        )
        node = SparkplugMessage(topic=self._topic("NBIRTH"), payload=self._payload([self._bd_seq(), rebirth]))
        return [node, *(self.device_birth(device) for device in online)]

    def device_birth(self, device: str) -> SparkplugMessage:
        """All metrics with name, alias, type and last value."""
        stamp, last = now_ms(), self._last.get(device)
        metrics = []
        for name, (datatype, _) in _RESULT.items():
            metric = Metric(name=name, alias=self._alias[device, name], timestamp=stamp, datatype=datatype)
            metrics.append(_set(metric, datatype, _value(name, last) if last else None))
        return SparkplugMessage(topic=self._topic("DBIRTH", device), payload=self._payload(metrics))

    def device_death(self, device: str) -> SparkplugMessage:
        return SparkplugMessage(topic=self._topic("DDEATH", device), payload=self._payload([]))

    def data(self, device: str, body: dict[str, Any], *, historical: bool) -> SparkplugMessage:
        """One result. By alias only, as the birth gave the names. historical: it waited for the broker."""
        stamp = _moment_ms(body["result"]["created_at"])
        metrics = []
        for name, (datatype, _) in _RESULT.items():
            # The specification would rather have the type in births only; common decoders read no value without it.
            metric = Metric(alias=self._alias[device, name], timestamp=stamp, datatype=datatype)
            if historical:
                metric.is_historical = True
            metrics.append(_set(metric, datatype, _value(name, body)))
        if not historical:
            self._last[device] = body
        return SparkplugMessage(topic=self._topic("DDATA", device), payload=self._payload(metrics))


def asks_rebirth(payload: bytes) -> bool:
    """Whether an NCMD asks for all births again."""
    try:
        message = Payload.FromString(payload)
    except Exception:
        return False
    return any((metric.name == REBIRTH or metric.alias == 1) and metric.boolean_value for metric in message.metrics)
