"""Frames in memory that client and server share: the client writes them once, and nothing is sent or copied.

The server makes the segment and hands it over on a unix socket (see AcquireSharedMemoryResponse in inspection.proto).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.errors import (
    InvalidImageError,
    SharedMemoryError,
    SharedMemoryExhaustedError,
    SharedMemoryLeaseError,
)

_CONNECT_S = 10.0


class SharedFrame:
    """One frame in a slot of shared memory. Write its `pixels`, pass it as an image, and leave its `with` block.

    The slot is free again when the block ends; until then its frame must have been answered. After `ready`, which the
    first use as an image calls, `pixels` are read-only.
    """

    def __init__(self, memory: SharedMemory, slot: int, pixels: NDArray[Any], layout: pb.PixelLayout | None) -> None:
        self._memory, self._slot, self._layout = memory, slot, layout
        self.pixels = pixels
        self._generation = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self) -> None:
        """The frame is complete."""
        if not self._generation:
            self.pixels.flags.writeable = False
            self._generation = self._memory._complete(self._slot)

    def close(self) -> None:
        """Frees the slot for another frame."""
        if not self._closed:
            self._closed = True
            self.ready()
            self._memory._free(self._slot)

    def to_proto(self) -> pb.Frame:
        """Raises InvalidImageError once the slot is free again."""
        if self._closed:
            raise InvalidImageError("The slot of this frame has been given back.", field="frame")
        self.ready()
        return pb.Frame(
            shared_memory=pb.SharedMemoryFrame(
                lease_id=self._memory.lease_id,
                slot=self._slot,
                generation=self._generation,
                size=self.pixels.nbytes,
                layout=self._layout,
            )
        )


class SharedMemory:
    """A leased segment with room for `slots` frames. Made by `shared_memory` of a client; thread-safe.

    The lease lives as long as this process holds the segment; a process that stands still for the server's idle time
    loses it.
    """

    def __init__(self, lease: pb.AcquireSharedMemoryResponse) -> None:
        """Raises SharedMemoryError when the segment cannot be fetched from the unix socket."""
        self.lease_id, self.slots, self.slot_bytes = lease.lease_id, lease.slots, lease.slot_bytes
        self._connection, descriptor = _fetch(lease)
        try:
            self._map = mmap.mmap(descriptor, lease.segment_bytes)
        finally:
            os.close(descriptor)
        self._generations = np.frombuffer(self._map, "<u8", count=self.slots)
        self._data = np.frombuffer(self._map, np.uint8)[lease.data_offset :]
        self._lock = threading.Lock()
        self._unused = list(range(self.slots))
        self._closing = threading.Event()
        self._pulse = threading.Thread(
            target=self._keep, args=(lease.idle_seconds / 3,), name="shared-memory", daemon=True
        )
        self._pulse.start()

    @property
    def free_slots(self) -> int:
        return len(self._unused)

    def frame(
        self, shape: tuple[int, ...], *, pixel_format: str = "rgb8", dtype: type[np.generic] = np.uint8
    ) -> SharedFrame:
        """A free slot whose `pixels` [H, W] or [H, W, 3] a camera can write to. The formats are those of `inspect`.

        Raises SharedMemoryExhaustedError when every slot is in use, InvalidImageError for a frame that fits no slot.
        """
        from auroraedge.client.convert import array_layout

        little = np.dtype(dtype).newbyteorder("<")
        layout = array_layout(shape, little, pixel_format, "frame")
        slot, memory = self._take(int(np.prod(shape)) * little.itemsize)
        return SharedFrame(self, slot, memory.view(little).reshape(shape), layout)

    def put(self, image: np.ndarray | bytes, *, pixel_format: str = "rgb8") -> SharedFrame:
        """A copy of an array, or of an image file's bytes, in a free slot. Raises as `frame` does."""
        if isinstance(image, np.ndarray):
            frame = self.frame(image.shape, pixel_format=pixel_format, dtype=image.dtype.type)
            np.copyto(frame.pixels, image)
        else:
            slot, memory = self._take(len(image))
            memory[:] = np.frombuffer(image, np.uint8)
            frame = SharedFrame(self, slot, memory, None)
        frame.ready()
        return frame

    def close(self) -> None:
        """Gives the segment back. Arrays of its frames stay usable, but nobody sees them any more."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if threading.current_thread() is not self._pulse:
            self._pulse.join()

    def _take(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        if not 1 <= size <= self.slot_bytes:
            raise InvalidImageError(
                f"A frame of {size} bytes does not fit a slot of {self.slot_bytes}.",
                field="frame",
                remedy="Acquire shared memory with larger slots.",
            )
        if self._closing.is_set():
            raise SharedMemoryLeaseError("The lease has ended.")
        with self._lock:
            if not self._unused:
                raise SharedMemoryExhaustedError(
                    f"All {self.slots} slots are in use.",
                    remedy="Leave the `with` blocks of frames that are answered, or acquire more slots.",
                )
            slot = self._unused.pop(0)
            self._generations[slot] += 1  # odd: being written
        start = slot * self.slot_bytes
        return slot, self._data[start : start + size]

    def _complete(self, slot: int) -> int:
        self._generations[slot] += 1
        return int(self._generations[slot])

    def _free(self, slot: int) -> None:
        with self._lock:
            self._unused.append(slot)

    def _keep(self, every_s: float) -> None:
        """Sends a sign of life now and then; ends when the server ends the lease."""
        while not self._closing.wait(every_s):
            try:
                self._connection.send(b".")
            except OSError:
                self._closing.set()


def _fetch(lease: pb.AcquireSharedMemoryResponse) -> tuple[socket.socket, int]:
    """The connection that holds the lease, and the segment's file descriptor."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_S)
        connection.connect(lease.socket_path)
        connection.sendall(lease.lease_id.encode())
        answer, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    except OSError as error:
        connection.close()
        raise SharedMemoryError(
            f"The segment cannot be fetched from {lease.socket_path}: {error}.",
            remedy="Run the client as the server's user, or start the server with a --shared-memory-socket for both.",
        ) from error
    if len(descriptors) == 1:
        return connection, descriptors[0]
    connection.close()
    if answer == b"2":
        raise SharedMemoryExhaustedError("This process holds as much shared memory as the server allows.")
    raise SharedMemoryLeaseError("The server does not know the lease that it gave.")
