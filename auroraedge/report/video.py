"""Frames of a video as images, read in order: seeking by frame number is inexact in many formats."""

from __future__ import annotations

from pathlib import Path

import cv2

from auroraedge.errors import InvalidImageError, InvalidRequestError
from auroraedge.report.inputs import Sampling


def _open(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise InvalidRequestError(
            f"{path} cannot be opened as a video.",
            field="inputs",
            remedy="Check that it plays; convert it to H.264 in an .mp4 file if its format is rare.",
        )
    return capture


def frame_count(path: Path) -> tuple[int, float]:
    """How many frames the file says it has, and frames a second (0 where it does not say)."""
    capture = _open(path)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()


def frame_numbers(count: int, fps: float, sampling: Sampling) -> list[int]:
    """The chosen frames. Raises InvalidRequestError where the video lacks what is needed to choose."""
    if count <= 0:
        raise InvalidRequestError(
            "The video does not say how many frames it has.", field="inputs", remedy="Convert it to an .mp4 file."
        )
    if sampling.every is not None:
        return list(range(0, count, sampling.every))
    rate = sampling.per_second or 1.0
    if fps <= 0:
        raise InvalidRequestError(
            "The video does not say how many frames a second it has.", field="inputs", remedy="Use --every N."
        )
    step = max(1.0, fps / rate)
    return list(dict.fromkeys(min(count - 1, round(step * k)) for k in range(int((count - 1) / step) + 1)))


class FrameReader:
    """PNG bytes of frames. Reading forward decodes once; going back starts over."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._capture: cv2.VideoCapture | None = None
        self._next = 0

    def read(self, path: Path, number: int) -> bytes:
        """Raises InvalidImageError when the video has no such frame."""
        if self._capture is None or path != self._path or number < self._next:
            self.close()
            self._capture, self._path, self._next = _open(path), path, 0
        while self._next < number:
            if not self._capture.grab():
                raise self._ends(path, number)
            self._next += 1
        done, frame = self._capture.read()
        if not done:
            raise self._ends(path, number)
        self._next += 1
        # The fastest compression: the frame lives as long as its inspection.
        encoded, data = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert encoded
        return data.tobytes()

    def _ends(self, path: Path, number: int) -> InvalidImageError:
        return InvalidImageError(
            f"{path} ends or is damaged before frame {number}: {self._next} frames could be read.",
            field="image",
            remedy="Nothing, if the file only claims too many frames; else record or copy the video again.",
        )

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
