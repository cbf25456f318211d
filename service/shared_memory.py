"""Shared memory for clients on this host: leases, the hand-over of segments, and frames that lie in them.

A segment is an anonymous file (memfd) that this server makes, sizes and seals: a client can write its bytes, but not
shrink it, which would end this process with SIGBUS. The client gets the file descriptor over a unix socket, which only
users with access to its path can open, in exchange for the lease id, which only the client that acquired the lease
knows. Nothing has a name that another process could guess, and nothing outlives the two processes. The open connection
is the client's sign of life: the kernel closes it however the client ends, and the lease ends with it.

Frames are read where they lie. A client that writes to a slot too early changes the slot's generation; every frame is
checked against it before and after it is read, and one that changed has no verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import mmap
import os
import secrets
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.errors import (
    InvalidRequestError,
    SharedMemoryError,
    SharedMemoryExhaustedError,
    SharedMemoryLeaseError,
    SharedMemoryOverwrittenError,
)

log = logging.getLogger("auroraedge.service")

# The first page holds the slots' generations.
DATA_OFFSET = 4096
MAX_SLOTS = 256
MAX_LEASES_PER_CLIENT = 16
_ID_CHARS = 32
# What the unix socket answers.
NOT_YOURS, HANDED_OUT, TOO_MUCH = b"0", b"1", b"2"
# A client has so long to connect and to name its lease.
_ATTACH_S = 10.0
_MAX_CONNECTIONS = 256


def is_same_host(peer: str) -> bool:
    """Whether a gRPC peer ("ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:") is on this host."""
    kind, _, rest = peer.partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@dataclass(eq=False, kw_only=True)
class Lease:
    """A segment that one client writes to. owner: the principal that acquired it; client: its connection."""

    id: str
    owner: str
    client: str
    slots: int
    slot_bytes: int
    memory: mmap.mmap
    descriptor: int
    expires: float  # by the event loop's clock
    generations: NDArray[np.uint64] = field(init=False)
    data: NDArray[np.uint8] = field(init=False)
    connection: asyncio.Task[None] | None = None
    holder: tuple[int, int] | None = None  # process and user that hold the segment, once it is handed out

    def __post_init__(self) -> None:
        self.generations = np.frombuffer(self.memory, "<u8", count=self.slots)
        self.data = np.frombuffer(self.memory, np.uint8)

    @property
    def segment_bytes(self) -> int:
        return len(self.memory)

    @property
    def data_offset(self) -> int:
        return self.segment_bytes - self.slots * self.slot_bytes


def _make_segment(size: int) -> tuple[int, mmap.mmap]:
    """A sealed anonymous file of `size` bytes and a read-only map of it. Raises SharedMemoryExhaustedError."""
    descriptor = os.memfd_create("auroraedge-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Taken now: memory that is missing must be an error here and not a signal in the middle of an inspection.
        os.posix_fallocate(descriptor, 0, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor, mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    except OSError as error:
        os.close(descriptor)
        raise SharedMemoryExhaustedError(f"There are no {size} bytes of memory: {error.strerror}.") from error


class SharedMemoryBroker:
    """All leases of a server. Use it inside one event loop; only `Lease.memory` is read elsewhere."""

    def __init__(
        self, total_bytes: int, client_bytes: int, *, socket_path: Path | None = None, idle_s: float = 60.0
    ) -> None:
        """total_bytes, client_bytes: most that all clients and one client may lease. idle_s: life without a frame.

        socket_path: None makes a socket in a folder that this user alone can open; at a path of your choice it is open
        to the user and the group (0660), for containers and other users that share the folder.
        """
        self.total_bytes, self.client_bytes, self.idle_s = total_bytes, min(client_bytes, total_bytes), idle_s
        self._own_folder = socket_path is None
        self.socket_path = socket_path
        self._leases: dict[str, Lease] = {}
        self._pending_bytes = 0
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def leases(self) -> int:
        return len(self._leases)

    @property
    def leased_bytes(self) -> int:
        return sum(lease.segment_bytes for lease in self._leases.values()) + self._pending_bytes

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the unix socket. Raises InvalidRequestError when its path cannot be used."""
        if self.socket_path is None:
            self.socket_path = Path(tempfile.mkdtemp(prefix="auroraedge-")) / "frames.sock"
        path = self.socket_path
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if path.is_socket() and not _is_served(path):
                path.unlink()
            listener.bind(str(path))
            path.chmod(0o600 if self._own_folder else 0o660)
            listener.listen(64)
        except OSError as error:
            listener.close()
            raise InvalidRequestError(
                f"The socket {path} for shared memory cannot be made: {error.strerror or error}.",
                field="--shared-memory-socket",
                remedy="Choose a path of at most 100 characters in a folder that this user can write to.",
            ) from error
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """Ends every lease; frames that are being inspected keep their memory until they are done."""
        tasks = [self._accepting, *self._connections]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        for lease in list(self._leases.values()):
            self._end(lease, "the server stops")
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            assert self.socket_path is not None
            with contextlib.suppress(OSError):
                self.socket_path.unlink()
            if self._own_folder:
                shutil.rmtree(self.socket_path.parent, ignore_errors=True)

    # --- leases ------------------------------------------------------------------------------------------------------

    async def acquire(self, slot_bytes: int, slots: int, *, owner: str, peer: str) -> Lease:
        """Raises InvalidRequestError, SharedMemoryError (no client of this host), SharedMemoryExhaustedError."""
        if not is_same_host(peer):
            raise SharedMemoryError(f"Shared memory is for clients on this host; this one is at {peer}.")
        if not hasattr(os, "memfd_create"):
            raise SharedMemoryError("The server's operating system has no sealed memory files; Linux has.")
        slots = slots or 1
        if slots > MAX_SLOTS:
            raise InvalidRequestError(f"{slots} slots are asked for; the limit is {MAX_SLOTS}.", field="slots")
        if not 1 <= slot_bytes <= self.client_bytes:
            raise InvalidRequestError(
                f"Slots of {slot_bytes} bytes are asked for; 1 to {self.client_bytes} can be had.",
                field="slot_bytes",
                remedy="Ask for the bytes of one frame, or raise the server's --shared-memory-mb.",
            )
        page = mmap.PAGESIZE
        slot_bytes = -(-slot_bytes // page) * page
        size = max(DATA_OFFSET, page) + slots * slot_bytes
        # gRPC tells clients on a unix socket not apart; those are counted when the segment is handed out.
        mine = [] if peer.startswith("unix") else [x for x in self._leases.values() if x.client == peer]
        used = sum(lease.segment_bytes for lease in mine)
        if used + size > self.client_bytes + page or len(mine) >= MAX_LEASES_PER_CLIENT:
            raise SharedMemoryExhaustedError(
                f"{size} bytes more than the {used} that this client has leased ({len(mine)} leases) are above its "
                f"allowance of {self.client_bytes} bytes and {MAX_LEASES_PER_CLIENT} leases."
            )
        if self.leased_bytes + size > self.total_bytes + page:
            raise SharedMemoryExhaustedError(
                f"{self.leased_bytes} of {self.total_bytes} bytes are leased; {size} more are not to be had."
            )
        self._pending_bytes += size
        try:
            descriptor, memory = await asyncio.to_thread(_make_segment, size)
        finally:
            self._pending_bytes -= size
        loop = asyncio.get_running_loop()
        lease = Lease(
            id=secrets.token_hex(_ID_CHARS // 2),
            owner=owner,
            client=peer,
            slots=slots,
            slot_bytes=slot_bytes,
            memory=memory,
            descriptor=descriptor,
            expires=loop.time() + min(_ATTACH_S, self.idle_s),
        )
        self._leases[lease.id] = lease
        loop.call_at(lease.expires, self._expire, lease)
        log.info("Shared memory: %s leases %d bytes (%s...).", peer, size, lease.id[:6])
        return lease

    def renew(self, lease_id: str, *, owner: str) -> Lease:
        """Raises SharedMemoryLeaseError."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.owner != owner:
            raise SharedMemoryLeaseError("There is no such lease (any more).", field="lease_id")
        lease.expires = asyncio.get_running_loop().time() + self.idle_s
        return lease

    def release(self, lease_id: str, *, owner: str) -> None:
        """Raises SharedMemoryLeaseError."""
        self._end(self.renew(lease_id, owner=owner), "released")

    def frame(
        self, handle: pb.SharedMemoryFrame, *, owner: str, field: str
    ) -> tuple[NDArray[np.uint8], Callable[[], None]]:
        """The frame's bytes where they lie, and a check that nobody has written to them since the client sent them.

        Both outlive the lease. Raises SharedMemoryLeaseError, InvalidRequestError, SharedMemoryOverwrittenError.
        """
        try:
            lease = self.renew(handle.lease_id, owner=owner)
        except SharedMemoryLeaseError as error:
            error.field = f"{field}.lease_id"
            raise
        if handle.slot >= lease.slots:
            raise InvalidRequestError(
                f"There is no slot {handle.slot}; the lease has {lease.slots}.", field=f"{field}.slot"
            )
        if handle.size < 1 or handle.offset + handle.size > lease.slot_bytes:
            raise InvalidRequestError(
                f"{handle.size} bytes from byte {handle.offset} do not lie in a slot of {lease.slot_bytes} bytes.",
                field=f"{field}.size",
            )
        generations, slot, generation = lease.generations, handle.slot, handle.generation

        def verify() -> None:
            found = int(generations[slot])
            if found != generation or not generation or generation % 2:
                raise SharedMemoryOverwrittenError(
                    f"Slot {slot} is at generation {found}; the frame is of generation {generation}.",
                    field=f"{field}.generation",
                )

        verify()
        start = lease.data_offset + slot * lease.slot_bytes + handle.offset
        return lease.data[start : start + handle.size], verify

    def _expire(self, lease: Lease) -> None:
        if lease.id not in self._leases:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < lease.expires:
            loop.call_at(lease.expires, self._expire, lease)
        else:
            self._end(lease, "unused for too long" if lease.holder else "never handed out")

    def _end(self, lease: Lease, why: str) -> None:
        if self._leases.pop(lease.id, None) is None:
            return
        # The map goes when the last frame on it is done; the client sees its connection close.
        os.close(lease.descriptor)
        if lease.connection is not None and lease.connection is not asyncio.current_task():
            lease.connection.cancel()
        log.info("Shared memory: the lease %s... has ended (%s).", lease.id[:6], why)

    # --- the unix socket ---------------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many open files: leave what there is in peace
                log.warning("Shared memory: a client cannot connect: %s.", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= _MAX_CONNECTIONS:
                connection.close()
                continue
            connection.setblocking(False)
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """Hands a segment out and waits for the client to go."""
        lease: Lease | None = None
        with connection:
            try:
                async with asyncio.timeout(_ATTACH_S):
                    lease_id = await _receive(connection, _ID_CHARS)
                found = self._leases.get(lease_id)
                if found is None or found.holder is not None:
                    connection.send(NOT_YOURS)
                    return
                lease, found.connection = found, asyncio.current_task()
                lease.holder = _process_and_user(connection)
                held = sum(x.segment_bytes for x in self._leases.values() if x.holder == lease.holder)
                if held > self.client_bytes + mmap.PAGESIZE:
                    connection.send(TOO_MUCH)
                    return
                self.renew(lease.id, owner=lease.owner)
                socket.send_fds(connection, [HANDED_OUT], [lease.descriptor])
                while await asyncio.get_running_loop().sock_recv(connection, 64):
                    self.renew(lease.id, owner=lease.owner)
            except (TimeoutError, OSError, SharedMemoryLeaseError):
                pass
            finally:
                if lease is not None:
                    self._end(lease, "the client is gone")


async def _receive(connection: socket.socket, count: int) -> str:
    """`count` characters; fewer when the client closes first."""
    data = b""
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not more:
            break
        data += more
    return data.decode("ascii", "replace")


def _process_and_user(connection: socket.socket) -> tuple[int, int]:
    """Of the other end. The process is 0 in another process namespace: then its user counts as one client."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", credentials)
    return process, user


def _is_served(path: Path) -> bool:
    """Whether a process listens at the socket; one that was left behind by a killed server may be replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
