"""GenICam cameras (GigE Vision, USB3 Vision, CoaXPress) through harvesters and the maker's GenTL producer.

Run with the producer that simulates cameras (package genicam), not on hardware: see docs/ingest.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from auroraedge.errors import AuroraEdgeError, CameraLostError, InvalidRequestError, MissingDependencyError
from auroraedge.ingest.live import Picture
from auroraedge.ingest.settings import GenICamSource
from auroraedge.inspection.raw import raw_frame

_FETCH_S = 0.5
# harvesters names formats as PFNC does; these are the ones that auroraedge.inspection.raw reads.
_DEPTHS = ("8", "10", "12", "16", "10p", "12p")
_FORMATS = (
    {"RGB8": "RGB8", "BGR8": "BGR8"}
    | {f"Mono{depth}": f"MONO{depth.upper()}" for depth in _DEPTHS}
    | {f"Bayer{p}{depth}": f"BAYER_{p}{depth.upper()}" for p in ("RG", "GB", "GR", "BG") for depth in _DEPTHS}
)

_WITH_ALPHA = ("RGBa8", "BGRa8")


def check_harvesters(settings: GenICamSource) -> None:
    """Raises MissingDependencyError without the extra, InvalidRequestError without the producer's file."""
    try:
        import harvesters.core  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "GenICam cameras need the package 'harvesters'.",
            field=f"sources.{settings.name}",
            remedy="Install it: pip install 'auroraedge[genicam]'",
        ) from error
    if not settings.producer.is_file():
        raise InvalidRequestError(
            f"There is no {settings.producer}.",
            field=f"sources.{settings.name}.producer",
            remedy="Name the .cti file of the camera maker's GenTL producer; GENICAM_GENTL64_PATH holds its folder.",
        )


def pixels_of(component: Any, raw: Any) -> np.ndarray:
    """uint8 RGB of one component of a harvesters payload; `raw`: the bytes of its whole buffer.

    The bytes are read as the camera sent them: harvesters' own array spreads packed samples and keeps row padding.
    """
    width, height = int(component.width), int(component.height)
    begin = int(component.data_offset or 0)
    padding = int(component.x_padding or 0)
    if component.data_format in _WITH_ALPHA:
        stride = 4 * width + padding
        rows = np.frombuffer(raw, np.uint8)[begin : begin + stride * height].reshape(height, stride)
        colours = rows[:, : 4 * width].reshape(height, width, 4)[:, :, :3]
        return np.array(colours if component.data_format == "RGBa8" else colours[:, :, ::-1], copy=True)
    name = _FORMATS.get(component.data_format)
    if name is None:
        raise InvalidRequestError(
            f"Pixel format {component.data_format} is not read.",
            field="features.PixelFormat",
            remedy=f"Set PixelFormat to one of {', '.join(_FORMATS)}.",
        )
    depth = int("".join(character for character in name if character.isdigit()))
    bits = 24 if name in ("RGB8", "BGR8") else depth if name.endswith("P") or depth == 8 else 16
    row = -(-width * bits // 8)
    stride = row + padding
    data = np.frombuffer(raw, np.uint8)[begin : begin + stride * height]
    # A copy: the buffer goes back to the camera.
    return np.array(raw_frame(data, width, height, stride, name, "frame").rgb(), copy=True)


class GenICamCamera:
    ends = False

    def __init__(self, settings: GenICamSource) -> None:
        self._settings = settings
        self._harvester: Any = None
        self._acquirer: Any = None
        self._buffer: Any = None

    def open(self) -> None:
        from harvesters.core import Harvester

        settings = self._settings
        self._harvester = Harvester()
        try:
            self._harvester.add_file(str(settings.producer), check_existence=True, check_validity=True)
            self._harvester.update()
            key = {"serial_number": settings.serial_number} if settings.serial_number else None
            self._acquirer = self._harvester.create(key)
            self._configure(self._acquirer.remote_device.node_map)
            self._acquirer.start()
        except AuroraEdgeError:
            raise
        except Exception as error:  # GenTL errors have no common base that is public
            found = ", ".join(str(info.serial_number) for info in self._devices()) or "none"
            raise CameraLostError(
                f"Camera {settings.serial_number or '(first)'} cannot be opened: {error} (found: {found})."
            ) from error

    def _devices(self) -> list[Any]:
        try:
            return list(self._harvester.device_info_list)
        except Exception:
            return []

    def _configure(self, nodes: Any) -> None:
        features: dict[str, Any] = dict(self._settings.features)
        if self._settings.hardware_trigger:
            features |= {
                "TriggerSelector": "FrameStart",
                "TriggerSource": self._settings.hardware_trigger,
                "TriggerMode": "On",
            }
        for name, value in features.items():
            node = getattr(nodes, name, None)
            if node is None:
                raise InvalidRequestError(
                    f"The camera has no feature {name}.",
                    field=f"sources.{self._settings.name}.features",
                    remedy="Remove it.",
                )
            try:
                if isinstance(value, bool) or not isinstance(value, str):
                    node.value = value
                elif value == "execute":
                    node.execute()
                else:
                    node.value = value
            except Exception as error:
                raise InvalidRequestError(
                    f"{name} cannot be set to {value!r}: {error}.",
                    field=f"sources.{self._settings.name}.features",
                    remedy="Look at the feature's range in the maker's viewer.",
                ) from error

    def grab(self) -> bool:
        try:
            self._buffer = self._acquirer.try_fetch(timeout=_FETCH_S)
        except Exception as error:
            raise CameraLostError(f"The camera is gone: {error}.") from error
        if self._buffer is None and not self._acquirer.is_valid():
            raise CameraLostError("The camera is gone.")
        return self._buffer is not None

    def retrieve(self) -> Picture | None:
        buffer, self._buffer = self._buffer, None
        try:
            components = buffer.payload.components
            if not components or components[0].data is None:
                return None
            rgb = pixels_of(components[0], buffer.module.raw_buffer)
            info: dict[str, Any] = (
                {"trigger_id": str(buffer.module.frame_id)} if self._settings.hardware_trigger else {}
            )
            exposure = getattr(self._acquirer.remote_device.node_map, "ExposureTime", None)
            if exposure is not None:
                info["exposure_us"] = float(exposure.value)
            return Picture(pixels=rgb[:, :, ::-1], info=info)
        finally:
            buffer.queue()

    def skip(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.queue()

    def close(self) -> None:
        self.skip()
        for release in (
            lambda: self._acquirer is not None and self._acquirer.destroy(),
            lambda: self._harvester is not None and self._harvester.reset(),
        ):
            try:
                release()
            except Exception:  # a camera that was unplugged cannot be released in good order
                continue
        self._acquirer = self._harvester = None
