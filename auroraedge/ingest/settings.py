"""What `auroraedge ingest` is set up with: one YAML file, checked before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.results import RequestInfo

# What a file name, a sidecar or a trigger may say about a frame. request_id is ours: it makes retries idempotent.
INFO_FIELDS = tuple(name for name in RequestInfo.model_fields if name != "request_id")
# Plain words: names become parts of MQTT topics and file names.
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
Name = Annotated[str, Field(pattern=_NAME)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Secret(_Model):
    """Secrets are read from files, so that they are in no backup of the settings and in no list of processes."""

    @staticmethod
    def read(path: Path, field: str) -> str:
        try:
            secret = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                f"{path} cannot be read.", field=field, remedy="Name a file that holds the secret."
            ) from error
        if not secret:
            raise InvalidRequestError(f"{path} is empty.", field=field, remedy="Write the secret into it.")
        return secret


class ServerSettings(_Secret):
    address: str = Field(
        default="127.0.0.1:50051", description="host:port, or several: ipv4:10.0.0.5:50051,10.0.0.6:50051"
    )
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="for one attempt at one frame")
    ca: Path | None = Field(
        default=None, description="PEM file of the authorities that signed the server's certificate"
    )
    cert: Path | None = Field(default=None, description="PEM file of this client's certificate (mutual TLS)")
    key: Path | None = Field(default=None, description="PEM file of its private key")
    token_file: Path | None = Field(default=None, description="file that holds the token")


class TriggerSettings(_Model):
    """What releases a frame of a live source; without it every frame (or the newest) is inspected."""

    kind: Literal["stdin", "mqtt", "interval"] = Field(description="a line on stdin, an MQTT message, or a clock")
    topic: str = Field(default="", max_length=1024, description="mqtt: topic filter of the trigger messages")
    seconds: float = Field(default=1.0, gt=0, description="interval: time between two frames")

    @model_validator(mode="after")
    def _topic(self) -> Self:
        if (self.kind == "mqtt") != bool(self.topic):
            raise ValueError("topic goes with kind mqtt, and is needed there")
        return self


class _Source(_Model):
    name: Name = Field(description="camera or folder; becomes part of topics and request ids")
    recipe: str = Field(default="", description="recipe id; else that of the whole file")
    info: dict[str, str] = Field(default_factory=dict, description="line, station, lot, ...: sent with every frame")
    reference: Path | None = Field(default=None, description="golden sample, or folder of them with the frames' names")
    in_flight: int = Field(default=2, ge=1, le=64, description="frames sent at a time; 1 keeps results in order")

    @field_validator("info")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        return _checked_info(value)


class _Files(_Source):
    pattern: str = Field(
        default="", description="regular expression on the path; its named groups are fields, e.g. (?P<part_id>\\w+)"
    )
    sidecar: Literal["none", "json", "csv"] = Field(default="none", description="fields in a file beside each image")

    @field_validator("pattern")
    @classmethod
    def _groups(cls, value: str) -> str:
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        _checked_info(dict.fromkeys(groups, ""))
        return value


class FilesSource(_Files):
    """Files that are there already; the run ends when all are done. Done files are remembered."""

    type: Literal["files"] = "files"
    paths: tuple[str, ...] = Field(min_length=1, description="files, folders or glob patterns")


class WatchSource(_Files):
    """A folder that images arrive in."""

    type: Literal["watch"] = "watch"
    folder: Path = Field(description="watched with everything below it")
    suffixes: tuple[str, ...] = Field(default=(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"))
    complete: Literal["stable", "rename"] = Field(
        default="stable", description="stable: size and time unchanged for settle_s; rename: writers rename when done"
    )
    settle_s: float = Field(default=1.0, ge=0.05, le=3600, description="how long a file must stay unchanged")
    watch: Literal["auto", "events", "poll"] = Field(
        default="auto", description="auto: events of the file system, polling on network shares"
    )
    poll_s: float = Field(default=2.0, ge=0.05, le=3600, description="the folder is read at least this often")
    done: Literal["keep", "move", "delete"] = Field(default="keep", description="what becomes of an inspected file")
    done_folder: Path | None = Field(default=None, description="move: where to; failed files go to failed/ below it")

    @model_validator(mode="after")
    def _folders(self) -> Self:
        if self.done == "move" and self.done_folder is None:
            raise ValueError("done: move needs a done_folder")
        if self.done_folder is not None and self.done_folder.absolute().is_relative_to(self.folder.absolute()):
            raise ValueError("done_folder must not lie in the watched folder")
        return self


class _Live(_Source):
    policy: Literal["latest", "every"] = Field(
        default="latest", description="latest: a newer frame replaces one that waits; every: all, spooled on disk"
    )
    fps: float | None = Field(default=None, gt=0, le=1000, description="at most so many frames a second")
    trigger: TriggerSettings | None = None
    encoding: Literal["png", "jpeg"] = Field(
        default="png", description="png loses nothing; jpeg (quality 95) is smaller"
    )
    stall_s: float = Field(default=10.0, gt=0, le=3600, description="without a frame for so long it is reconnected")


class VideoSource(_Live):
    """RTSP, V4L2, GStreamer or a video file through OpenCV."""

    type: Literal["video"] = "video"
    url: str = Field(min_length=1, description="rtsp://..., /dev/video0 or 0, a GStreamer pipeline, or a video file")
    backend: Literal["auto", "ffmpeg", "gstreamer", "v4l2"] = "auto"
    width: int | None = Field(default=None, ge=1, le=65536, description="v4l2: asked of the camera")
    height: int | None = Field(default=None, ge=1, le=65536)


class GenICamSource(_Live):
    """A GigE Vision, USB3 Vision or CoaXPress camera through its maker's GenTL producer (extra `genicam`)."""

    type: Literal["genicam"] = "genicam"
    producer: Path = Field(description="the GenTL producer, a .cti file")
    serial_number: str = Field(default="", description="of the camera; empty: the first one found")
    features: dict[str, Any] = Field(
        default_factory=dict, description="GenICam features set in this order before the start, e.g. ExposureTime: 500"
    )
    hardware_trigger: str = Field(
        default="", description="trigger source, e.g. Line1; empty: free running or `trigger`"
    )


Source = Annotated[FilesSource | WatchSource | VideoSource | GenICamSource, Field(discriminator="type")]
LIVE = (VideoSource, GenICamSource)


class BrokerSettings(_Secret):
    host: str = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    username: str = ""
    password_file: Path | None = None
    ca: Path | None = Field(default=None, description="PEM file of authorities: TLS")
    cert: Path | None = None
    key: Path | None = None
    client_id: str = Field(default="", description="MQTT client id; empty: auroraedge- and the name of the node")


class MqttSettings(BrokerSettings):
    topic: str = Field(
        default="auroraedge", description="JSON results go to TOPIC/NODE/SOURCE", pattern=r"^[^#+\x00]+$"
    )
    node: Name = Field(default="line", description="Sparkplug edge node id")
    group: Name | None = Field(default=None, description="Sparkplug group id; none: JSON only")
    primary_host: Name | None = Field(default=None, description="Sparkplug host application that must be online")


class WebhookSettings(_Secret):
    name: Name = "webhook"
    url: str = Field(pattern=r"^https?://\S+$")
    secret_file: Path | None = Field(default=None, description="key of the HMAC-SHA256 signature")
    ca: Path | None = Field(default=None, description="PEM file of authorities, instead of the system's")
    timeout_s: float = Field(default=10.0, gt=0, le=300)
    verdicts: tuple[Literal["OK", "NG", "REVIEW", "ERROR"], ...] = Field(default=(), description="none: all")
    give_up_s: float = Field(default=86400.0, gt=0, description="after so long a message goes to the dead-letter file")


class Outputs(_Model):
    jsonl: bool = Field(default=False, description="results on stdout, one JSON object a line")
    mqtt: MqttSettings | None = None
    webhooks: tuple[WebhookSettings, ...] = ()
    outbox_messages: int = Field(default=100_000, ge=1, description="most messages kept for one output that is away")


class IngestConfig(_Model):
    server: ServerSettings = ServerSettings()
    recipe: str = ""
    info: dict[str, str] = Field(default_factory=dict, description="sent with every frame of every source")
    state: Path = Field(default=Path(".auroraedge-ingest"), description="folder of spool, outbox and ledger")
    spool_mb: int = Field(default=2048, ge=1, description="most MiB of frames on disk")
    status_s: float = Field(default=10.0, ge=0, description="seconds between status lines; 0: none")
    sources: tuple[Source, ...] = Field(min_length=1)
    outputs: Outputs = Outputs()

    @field_validator("info")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        return _checked_info(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, names in (
            ("sources", [source.name for source in self.sources]),
            ("webhooks", [hook.name for hook in self.outputs.webhooks]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two {kind} have the same name")
        for source in self.sources:
            if not (source.recipe or self.recipe):
                raise ValueError(f"source '{source.name}' has no recipe")
            trigger = getattr(source, "trigger", None)
            if trigger is not None and trigger.kind == "mqtt" and self.outputs.mqtt is None:
                raise ValueError("an mqtt trigger needs outputs.mqtt, which names the broker")
        if sum(getattr(getattr(s, "trigger", None), "kind", "") == "stdin" for s in self.sources) > 1:
            raise ValueError("only one source can be triggered by stdin")
        return self


def _checked_info(value: dict[str, str]) -> dict[str, str]:
    unknown = sorted(set(value) - set(INFO_FIELDS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(INFO_FIELDS)}")
    return value


def config_from(content: Any, where: str = "config") -> IngestConfig:
    """Raises InvalidRequestError that names the key."""
    try:
        return IngestConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or where
        raise InvalidRequestError(
            f"{first['msg'].removeprefix('Value error, ')}.", field=path, remedy="docs/ingest.md lists the settings."
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a YAML file, unchecked. Raises InvalidRequestError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequestError(
            f"{path} cannot be read: {error}.", field="--config", remedy="Name a YAML file."
        ) from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{path} holds no settings.", field="--config", remedy="See docs/ingest.md.")
    return content


def load_config(path: Path, **overrides: Any) -> IngestConfig:
    """The settings of a YAML file; overrides replace its keys. Raises InvalidRequestError."""
    return config_from(read_settings(path) | overrides, str(path))
