"""Video through OpenCV: RTSP, V4L2, GStreamer pipelines, files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import cv2

from auroraedge.errors import InvalidRequestError, MissingDependencyError
from auroraedge.ingest.live import CameraLostError, Picture
from auroraedge.ingest.settings import VideoSource

_BACKENDS = {
    "ffmpeg": (cv2.CAP_FFMPEG, "FFMPEG"),
    "gstreamer": (cv2.CAP_GSTREAMER, "GStreamer"),
    "v4l2": (cv2.CAP_V4L2, "v4l/v4l2"),
}
_MS_OPEN = 10_000


def built_with(part: str) -> bool:
    """Whether this OpenCV was built with `part`, as cv2.getBuildInformation names it."""
    found = re.search(rf"^\s*{re.escape(part)}:\s*(\w+)", cv2.getBuildInformation(), re.MULTILINE)
    return found is not None and found.group(1).upper() == "YES"


def redacted(url: str) -> str:
    """The address without its password, for messages and logs."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", url)


def kind_of(settings: VideoSource) -> str:
    """The OpenCV backend: ffmpeg, gstreamer or v4l2."""
    if settings.backend != "auto":
        return settings.backend
    url = settings.url
    if url.isdigit() or url.startswith("/dev/video"):
        return "v4l2"
    # Elements joined by "!": gst-launch's syntax.
    return "gstreamer" if re.search(r"\s!\s", url) and "://" not in url.split("!")[0] else "ffmpeg"


def check_backend(settings: VideoSource) -> None:
    """Raises MissingDependencyError when this OpenCV cannot open such a source at all."""
    kind = kind_of(settings)
    part = _BACKENDS[kind][1]
    if built_with(part):
        return
    remedy = {
        "gstreamer": "The opencv-python-headless wheel has no GStreamer: use an rtsp:// address or a device instead, "
        "or install an OpenCV that was built with it (Debian: python3-opencv; or build with -D WITH_GSTREAMER=ON).",
        "v4l2": "Use an OpenCV built with V4L2, or an rtsp:// address.",
        "ffmpeg": "Install opencv-python-headless, which has FFmpeg.",
    }[kind]
    raise MissingDependencyError(
        f"OpenCV {cv2.__version__} was built without {part}.", field=f"sources.{settings.name}.url", remedy=remedy
    )


def is_file(settings: VideoSource) -> bool:
    return kind_of(settings) == "ffmpeg" and "://" not in settings.url


def file_session(settings: VideoSource) -> str | None:
    """For a video file, what its request ids are made with: a second run gives its frames the same ones."""
    if not is_file(settings):
        return None
    try:
        stat = Path(settings.url).stat()
    except OSError as error:
        raise InvalidRequestError(
            f"{settings.url} cannot be read: {error.strerror}.",
            field=f"sources.{settings.name}.url",
            remedy="Name a video file, a device (/dev/video0) or an address (rtsp://...).",
        ) from error
    text = f"{Path(settings.url).absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class VideoCamera:
    """An OpenCV capture. It decodes in `grab`; `retrieve` only converts."""

    def __init__(self, settings: VideoSource) -> None:
        self._settings = settings
        self._capture: cv2.VideoCapture | None = None
        self.ends = is_file(settings)

    def open(self) -> None:
        settings, kind = self._settings, kind_of(self._settings)
        api = _BACKENDS[kind][0]
        options: list[int] = []
        if kind == "ffmpeg":
            wait_ms = int(settings.stall_s * 1000)
            options += [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _MS_OPEN, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait_ms]
        if settings.width and settings.height and kind == "v4l2":
            options += [cv2.CAP_PROP_FRAME_WIDTH, settings.width, cv2.CAP_PROP_FRAME_HEIGHT, settings.height]
        address: Any = int(settings.url) if settings.url.isdigit() else settings.url
        if kind == "v4l2":
            device = Path(f"/dev/video{address}" if isinstance(address, int) else address)
            if not device.exists():
                raise CameraLostError(
                    f"There is no {device}.", remedy="Plug the camera in; `ls /dev/video*` lists them."
                )
            if not os.access(device, os.R_OK | os.W_OK):
                raise CameraLostError(f"{device} may not be used.", remedy="Add this user to the group 'video'.")
        try:
            capture = cv2.VideoCapture(address, api, options)
        except cv2.error as error:
            raise CameraLostError(f"{redacted(settings.url)} cannot be opened: {error.err}.") from error
        if not capture.isOpened():
            capture.release()
            raise CameraLostError(f"{redacted(settings.url)} cannot be opened.")
        if kind == "v4l2":
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not one of the driver's old ones
        self._capture = capture

    def grab(self) -> bool:
        assert self._capture is not None
        if self._capture.grab():
            return True
        if self.ends:
            return False
        raise CameraLostError(f"{redacted(self._settings.url)} gives no more frames.")

    def retrieve(self) -> Picture | None:
        assert self._capture is not None
        done, pixels = self._capture.retrieve()
        return Picture(pixels=pixels, info={}) if done and pixels is not None and pixels.size else None  # type: ignore[arg-type]

    def skip(self) -> None:
        """FFmpeg and V4L2 overwrite it."""

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
