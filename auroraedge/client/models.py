"""What the clients take and give besides the types of auroraedge.inspection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from auroraedge.client.shared_memory import SharedFrame
from auroraedge.inspection.results import Defect, InspectionResult, Region, RequestInfo, Verdict


@dataclass(frozen=True, kw_only=True, eq=False)
class RawPixels:
    """Pixels as a camera delivers them, in rows that begin `stride` bytes apart (0: no padding).

    pixel_format: a name of GenICam's PFNC in lower case, e.g. "mono12p" or "bayer_rg8" (see docs/api.md).
    """

    data: bytes | bytearray | memoryview | np.ndarray
    width: int
    height: int
    pixel_format: str
    stride: int = 0


# A file, the bytes of one, pixels [H, W] or uint8 [H, W, 3], raw pixels, or a frame in shared memory.
ImageInput = str | Path | bytes | np.ndarray | RawPixels | SharedFrame
PixelFormat = str
Priority = Literal["low", "normal", "high"]
StreamPolicy = Literal["every_frame", "latest_frame"]


@dataclass(frozen=True, kw_only=True)
class FrameInput:
    """One frame of a stream. Empty fields take the values given to `inspect_stream`.

    pixel_format: of an array: [H, W, 3] "rgb8" or "bgr8"; [H, W] of uint8 is grey unless a Bayer pattern is named, and
    of uint16 needs its format, e.g. "mono12". regions: only these parts of the frame are inspected.
    """

    image: ImageInput
    recipe_id: str = ""
    recipe_version: int = 0
    reference: ImageInput | None = None
    request: RequestInfo | None = None
    image_name: str = ""
    pixel_format: PixelFormat = "rgb8"
    regions: Sequence[Region] = ()
    priority: Priority | None = None


@dataclass(frozen=True, kw_only=True)
class ItemInput:
    """One thing to find out about the frame of `inspect_many`: the recipe's inspection, or the answer to `prompt`.

    regions: none takes those of the call. request_id: of this item's result; empty takes the call's with the item's
    place appended.
    """

    recipe_id: str
    prompt: str = ""
    recipe_version: int = 0
    regions: Sequence[Region] = ()
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class StreamStatus:
    """A camera session as the server saw it: frames that may be sent now, and counts since the session began.

    dropped_sequences: numbers (from 0, in the order in which they were sent) of frames dropped since the last status.
    """

    credits: int
    received: int
    answered: int
    dropped: int
    dropped_sequences: tuple[int, ...] = ()


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerLimits(_Model):
    max_message_bytes: int = Field(description="Largest message, either way.")
    max_pixels: int = Field(description="Largest frame, width * height.")
    queue_frames: int = Field(description="Frames that may wait; one more gets QUEUE_FULL.")
    queue_bytes: int = Field(description="Bytes of frames that may wait.")
    max_batch: int
    stream_window: int = Field(description="Frames of one session that the server takes at a time.")
    max_new_tokens: int
    max_regions: int = Field(default=0, description="Regions of interest of one frame.")
    max_items: int = Field(default=0, description="Items of one InspectMany.")
    shared_memory_bytes: int = Field(default=0, description="Shared memory for all clients together; 0: none.")
    shared_memory_client_bytes: int = Field(default=0, description="Shared memory for one client.")


class ServerInfo(_Model):
    server_version: str
    model_id: str
    engine_sha256: str
    target: str
    precision: dict[str, str]
    ready_at: AwareDatetime
    start_seconds: float = Field(description="From the start of the process until it was ready.")
    limits: ServerLimits


# --- stored results --------------------------------------------------------------------------------------------------


class Review(_Model):
    """What a person decided. `defects` None: the model's list stands."""

    verdict: Verdict
    reviewer: str
    reason: str
    created_at: AwareDatetime
    defects: tuple[Defect, ...] | None = None


class StoredResult(_Model):
    """A result as the server's store has it; its place and time are in `result.receipt`.

    image_sha256, reference_sha256: names of the stored images for `image`, "" where there is none.
    """

    result: InspectionResult
    effective_verdict: Verdict
    review: Review | None = None
    has_image: bool = False
    image_sha256: str = ""
    reference_sha256: str = ""


class ResultQuery(_Model):
    """Which stored results: every condition given must hold. verdicts: after review."""

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    lot: str = ""
    line: str = ""
    station: str = ""
    camera: str = ""
    job: str = ""
    part_id: str = ""
    recipe_id: str = ""
    engine_sha256: str = ""
    verdicts: tuple[Verdict, ...] = ()
    simulated: bool | None = None
    reviewed: bool | None = None


class ResultPage(_Model):
    """One page of results. next_page_token: empty on the last one. total: None unless it was asked for."""

    results: tuple[StoredResult, ...]
    next_page_token: str = ""
    total: int | None = None


class StoredImage(_Model):
    data: bytes
    content_type: str


# --- administration --------------------------------------------------------------------------------------------------


class RecipeChange(_Model):
    """Versions and hashes are 0 and empty where there was or is no such recipe."""

    recipe_id: str
    kind: Literal["added", "changed", "removed"]
    old_version: int
    new_version: int
    old_sha256: str
    new_sha256: str


class EngineSwap(_Model):
    old_engine_sha256: str
    new_engine_sha256: str
    model_id: str
    load_ms: float


class ServerStatus(_Model):
    """What the server is doing. Counts are since the start of its process; memory in bytes."""

    state: Literal["starting", "serving", "draining"]
    started_at: AwareDatetime
    server_version: str
    model_id: str
    engine_sha256: str
    queue_frames: int
    queue_bytes: int
    computing: int
    streams: int
    verdicts: dict[str, int]
    refused: dict[str, int]
    dropped: int
    replayed: int
    store: Literal["none", "writing", "failing"]
    store_error: str
    last_seq: int
    shared_memory_leases: int
    shared_memory_bytes: int
    rss_bytes: int
