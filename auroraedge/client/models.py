"""What the clients take and give besides the types of auroraedge.inspection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from auroraedge.inspection.results import RequestInfo

# A file, the bytes of one, or uint8 pixels [H, W] (grey) or [H, W, 3].
ImageInput = str | Path | bytes | np.ndarray
PixelFormat = Literal["rgb8", "bgr8"]


@dataclass(frozen=True, kw_only=True)
class FrameInput:
    """One frame of a stream. Empty fields take the values given to `inspect_stream`.

    pixel_format: the channel order of an array [H, W, 3]; a two-dimensional array is always grey.
    """

    image: ImageInput
    recipe_id: str = ""
    recipe_version: int = 0
    reference: ImageInput | None = None
    request: RequestInfo | None = None
    image_name: str = ""
    pixel_format: PixelFormat = "rgb8"


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


class ServerInfo(_Model):
    server_version: str
    model_id: str
    engine_sha256: str
    target: str
    precision: dict[str, str]
    ready_at: AwareDatetime
    start_seconds: float = Field(description="From the start of the process until it was ready.")
    limits: ServerLimits
