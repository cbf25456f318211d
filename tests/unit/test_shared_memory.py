"""Leases of shared memory: bounds, owners, generations, expiry, and segments that no client can pull away."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client.shared_memory import SharedMemory
from auroraedge.errors import (
    InvalidImageError,
    InvalidRequestError,
    SharedMemoryError,
    SharedMemoryExhaustedError,
    SharedMemoryLeaseError,
    SharedMemoryOverwrittenError,
)
from auroraedge.inspection.images import ImageLimits, decode_image
from service.delivery import _picture
from service.frames import Intake
from service.principal import Principal, set_principal
from service.shared_memory import Lease, SharedMemoryBroker, is_same_host

MIB = 1024 * 1024
HERE = {"owner": "line 1", "peer": "ipv4:127.0.0.1:4711"}


@pytest.fixture
async def broker() -> AsyncIterator[SharedMemoryBroker]:
    broker = SharedMemoryBroker(4 * MIB, 2 * MIB, idle_s=30)
    await broker.start()
    yield broker
    await broker.stop()
    assert broker.leases == 0 and broker.leased_bytes == 0
    assert broker.socket_path is not None and not broker.socket_path.parent.exists()


def answer(broker: SharedMemoryBroker, lease: Lease) -> pb.AcquireSharedMemoryResponse:
    return pb.AcquireSharedMemoryResponse(
        lease_id=lease.id,
        socket_path=str(broker.socket_path),
        segment_bytes=lease.segment_bytes,
        data_offset=lease.data_offset,
        slot_bytes=lease.slot_bytes,
        slots=lease.slots,
        idle_seconds=broker.idle_s,
    )


async def leased(broker: SharedMemoryBroker, slot_bytes: int = 5000, slots: int = 2) -> SharedMemory:
    lease = await broker.acquire(slot_bytes, slots, **HERE)
    return await asyncio.to_thread(SharedMemory, answer(broker, lease))


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_frame_is_read_where_the_client_wrote_it(broker: SharedMemoryBroker) -> None:
    memory = await leased(broker, 5000, 2)
    intake = Intake(limits=ImageLimits(), memory=broker)
    set_principal(Principal(name="line 1"))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with memory.frame((20, 30, 3)) as first, memory.put(b"a file's bytes") as second:
        first.pixels[:] = pixels
        raw = intake.source(first.to_proto(), "frame")
        assert np.array_equal(raw.rgb(), pixels) and not raw.rgb().flags.owndata
        assert intake.source(second.to_proto(), "frame") == b"a file's bytes"
        with pytest.raises(ValueError, match="read-only"):
            first.pixels[0] = 1
        with pytest.raises(SharedMemoryExhaustedError):
            memory.frame((2, 2))
    assert memory.free_slots == 2
    with pytest.raises(InvalidImageError, match="given back"):
        first.to_proto()
    with memory.put(np.full((4, 5), 258, np.uint16), pixel_format="mono12") as third:
        assert np.array_equal(intake.source(third.to_proto(), "frame").rgb(), np.full((4, 5, 3), 16, np.uint8))
    for bad in ((60, 60, 3), (4,), (0, 3)):
        with pytest.raises(InvalidImageError):
            memory.frame(bad)
    await asyncio.to_thread(memory.close)
    await until(lambda: broker.leases == 0)


async def test_a_slot_that_is_written_again_has_no_frame(broker: SharedMemoryBroker) -> None:
    memory = await leased(broker, 4096, 1)
    with memory.put(np.zeros((4, 4), np.uint8)) as frame:
        handle = frame.to_proto().shared_memory
    _, verify = broker.frame(handle, owner="line 1", field="frame")
    with memory.frame((4, 4)):  # being written
        for check in (verify, lambda: broker.frame(handle, owner="line 1", field="frame.shared_memory")):
            with pytest.raises(SharedMemoryOverwrittenError, match="generation 3"):
                check()
    for generation in (0, 1, 3, 5, 2**64 - 1):
        handle.generation = generation
        with pytest.raises(SharedMemoryOverwrittenError):
            broker.frame(handle, owner="line 1", field="frame")
    await asyncio.to_thread(memory.close)


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"slot": 2}, InvalidRequestError, "f.slot"),
        ({"slot": 2**32 - 1}, InvalidRequestError, "f.slot"),
        ({"size": 0}, InvalidRequestError, "f.size"),
        ({"size": 8193}, InvalidRequestError, "f.size"),
        ({"offset": 8192}, InvalidRequestError, "f.size"),
        ({"offset": 2**64 - 1, "size": 2}, InvalidRequestError, "f.size"),
        ({"size": 2**64 - 1}, InvalidRequestError, "f.size"),
        ({"lease_id": ""}, SharedMemoryLeaseError, "f.lease_id"),
        ({"lease_id": "0" * 32}, SharedMemoryLeaseError, "f.lease_id"),
        ({"lease_id": "../../etc/passwd"}, SharedMemoryLeaseError, "f.lease_id"),
    ],
)
async def test_handles_are_checked(
    broker: SharedMemoryBroker, changes: dict[str, object], error: type[Exception], field: str
) -> None:
    memory = await leased(broker, 8192, 2)
    with memory.put(np.zeros((64, 64), np.uint8)) as frame:
        handle = frame.to_proto().shared_memory
        assert len(broker.frame(handle, owner="line 1", field="f")[0]) == 4096
        with pytest.raises(SharedMemoryLeaseError):
            broker.frame(handle, owner="line 2", field="f")
        for name, value in changes.items():
            setattr(handle, name, value)
        with pytest.raises(error) as caught:
            broker.frame(handle, owner="line 1", field="f")
        assert caught.value.field == field  # type: ignore[attr-defined]
    await asyncio.to_thread(memory.close)


async def test_leases_are_bounded_per_client_and_in_total(broker: SharedMemoryBroker) -> None:
    for slot_bytes, slots, field in ((0, 1, "slot_bytes"), (3 * MIB, 1, "slot_bytes"), (1, 257, "slots")):
        with pytest.raises(InvalidRequestError) as caught:
            await broker.acquire(slot_bytes, slots, **HERE)
        assert caught.value.field == field
    leases = [await broker.acquire(MIB, 1, **HERE)]
    with pytest.raises(SharedMemoryExhaustedError, match="this client"):
        await broker.acquire(MIB, 1, **HERE)
    for port in range(2):
        leases.append(await broker.acquire(MIB, 1, owner="", peer=f"ipv4:127.0.0.1:{port}"))
    with pytest.raises(SharedMemoryExhaustedError, match="are leased") as full:
        await broker.acquire(MIB, 1, owner="", peer="ipv4:127.0.0.1:77")
    assert full.value.retry_after_s
    broker.release(leases[0].id, owner="line 1")
    await broker.acquire(MIB // 2, 1, owner="", peer="ipv4:127.0.0.1:77")


async def test_small_leases_are_bounded_too(broker: SharedMemoryBroker) -> None:
    for _ in range(16):
        await broker.acquire(1, 1, **HERE)
    with pytest.raises(SharedMemoryExhaustedError):
        await broker.acquire(1, 1, **HERE)


async def test_clients_on_unix_sockets_are_told_apart_by_their_process(broker: SharedMemoryBroker) -> None:
    leases = [await broker.acquire(MIB, 1, owner="", peer="unix:") for _ in range(2)]
    first = await asyncio.to_thread(SharedMemory, answer(broker, leases[0]))
    with pytest.raises(SharedMemoryExhaustedError):
        await asyncio.to_thread(SharedMemory, answer(broker, leases[1]))
    await until(lambda: broker.leases == 1)
    await asyncio.to_thread(first.close)


@pytest.mark.parametrize(
    ("peer", "same"),
    [
        ("ipv4:127.0.0.1:4711", True),
        ("ipv4:127.9.9.9:1", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("ipv6:[::1]:4711", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:4711", True),
        ("unix:", True),
        ("unix:/run/a.sock", True),
        ("ipv4:192.168.0.1:4711", False),
        ("ipv4:10.0.0.127:4711", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", False),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4711", False),
        ("ipv4:localhost:1", False),
        ("", False),
        ("vsock:1:2", False),
    ],
)
async def test_only_clients_of_this_host_get_memory(broker: SharedMemoryBroker, peer: str, same: bool) -> None:
    assert is_same_host(peer) is same
    if not same:
        with pytest.raises(SharedMemoryError, match="this host"):
            await broker.acquire(1, 1, owner="", peer=peer)


async def test_the_end_of_the_client_ends_the_lease_but_not_its_frames(broker: SharedMemoryBroker) -> None:
    memory = await leased(broker)
    with memory.put(np.full((6, 6), 77, np.uint8)) as frame:
        data, verify = broker.frame(frame.to_proto().shared_memory, owner="line 1", field="frame")
    memory._connection.close()  # as the kernel does for a process that is killed
    await until(lambda: broker.leases == 0)
    assert (data == 77).all()
    verify()
    with pytest.raises(SharedMemoryLeaseError):
        broker.renew(memory.lease_id, owner="line 1")
    memory._closing.set()


async def test_leases_end_when_they_are_not_used_and_live_while_they_are() -> None:
    broker = SharedMemoryBroker(4 * MIB, 2 * MIB, idle_s=0.3)
    await broker.start()
    try:
        never = await broker.acquire(1, 1, **HERE)  # nobody fetches the segment
        silent = await broker.acquire(1, 1, **HERE)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(broker.socket_path))
        connection.sendall(silent.id.encode())
        alive = await asyncio.to_thread(SharedMemory, answer(broker, await broker.acquire(1, 1, **HERE)))
        await until(lambda: broker.leases == 1)
        for _ in range(4):
            await asyncio.sleep(0.15)
            assert alive.lease_id in broker._leases
        assert {never.id, silent.id}.isdisjoint(broker._leases)
        connection.close()
        await asyncio.to_thread(alive.close)
    finally:
        await broker.stop()


async def test_nobody_else_gets_the_segment(broker: SharedMemoryBroker) -> None:
    memory = await leased(broker)
    path = str(broker.socket_path)
    mode = Path(path).stat().st_mode & 0o777, Path(path).parent.stat().st_mode & 0o777
    assert mode == (0o600, 0o700)

    def ask(text: bytes) -> tuple[bytes, list[int]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            data, descriptors, _, _ = socket.recv_fds(connection, 8, 4)
            return data, descriptors

    for text in (memory.lease_id.encode(), b"0" * 32, b"", b"\xff" * 32, b"short", b"x" * 500):
        assert await asyncio.to_thread(ask, text) in ((b"0", []), (b"", []))
    assert broker.leases == 1
    await asyncio.to_thread(memory.close)


async def test_a_client_can_write_but_not_shrink_or_grow_the_segment(broker: SharedMemoryBroker) -> None:
    lease = await broker.acquire(4096, 1, **HERE)

    def fetch() -> tuple[socket.socket, int]:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(broker.socket_path))
        connection.sendall(lease.id.encode())
        _, (descriptor,), _, _ = socket.recv_fds(connection, 1, 1)
        return connection, descriptor

    connection, descriptor = await asyncio.to_thread(fetch)
    for size in (0, 4096, lease.segment_bytes * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with mmap.mmap(descriptor, lease.segment_bytes) as shared:
        shared[:8] = struct.pack("<Q", 2)
        shared[lease.data_offset] = 9
    assert int(lease.generations[0]) == 2 and lease.data[lease.data_offset] == 9
    with pytest.raises(ValueError, match="read-only"):
        lease.data[0] = 1
    os.close(descriptor)
    connection.close()


async def test_a_socket_left_behind_is_replaced_and_a_served_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "frames.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    first = SharedMemoryBroker(MIB, MIB, socket_path=path)
    await first.start()
    assert path.stat().st_mode & 0o777 == 0o660
    second = SharedMemoryBroker(MIB, MIB, socket_path=path)
    with pytest.raises(InvalidRequestError):
        await second.start()
    await second.stop()
    assert path.exists()
    await first.stop()
    assert not path.exists() and tmp_path.exists()


async def test_a_picture_is_kept_only_while_its_slot_holds_it(broker: SharedMemoryBroker) -> None:
    set_principal(Principal(name="line 1"))
    memory = await leased(broker, 4096, 1)
    with memory.put(np.full((8, 9, 3), 50, np.uint8)) as frame:
        source = Intake(limits=ImageLimits(), memory=broker).source(frame.to_proto(), "frame")
        kept = await _picture(source)
        assert kept is not None and (decode_image(kept).pixels == 50).all()
    with memory.put(np.full((8, 9, 3), 60, np.uint8)):
        assert await _picture(source) is None
    await asyncio.to_thread(memory.close)
