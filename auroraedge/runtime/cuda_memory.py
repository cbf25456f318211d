"""What the TensorRT runtime needs of CUDA, behind one interface: buffers, pinned host memory, streams, graphs.

Two libraries provide it. `cuda.bindings` (the wheel cuda-bindings, extra `tensorrt`) comes first, because it also
captures graphs; `pycuda`, which is built from source and is what a Jetson often has, does everything else. Addresses
are plain integers and sizes bytes. Neither was run on a GPU: both are written to their documentation.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from auroraedge.errors import EngineError, EngineIncompatibleError, MissingDependencyError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


class Stream(Protocol):
    """Work on the device in order. The calls return at once, `synchronize` when all is done."""

    handle: int

    def upload(self, target: int, source: np.ndarray) -> None:
        """source: pinned and contiguous."""
        ...

    def download(self, target: np.ndarray, source: int) -> None: ...

    def copy(self, target: int, source: int, *, width: int, height: int, pitch: int) -> None:
        """`height` pieces of `width` bytes, the beginnings of which lie `pitch` bytes apart on both sides."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """What `work` puts on the stream as one graph, which each call of the result launches; nothing is run now.

        None where the library has no graphs. Raises whatever `work` does, and EngineError where it cannot be captured.
        """
        ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class Gpu(Protocol):
    """The first visible device. Every call but `current` wants to be made inside `with gpu.current()`."""

    capability: str
    name: str

    def current(self) -> AbstractContextManager[None]:
        """Makes the device the calling thread's."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory, zeroed, aligned for any use."""
        ...

    def free(self, address: int) -> None: ...

    def pinned(self, size: int) -> np.ndarray:
        """uint8 [size] of page-locked host memory; it lives as long as the array is kept, or until `unpin`."""
        ...

    def unpin(self, array: np.ndarray) -> None: ...

    def stream(self) -> Stream: ...


def driver_is_here() -> bool:
    """Whether the CUDA driver can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def open_gpu() -> Gpu:
    """Raises MissingDependencyError without a library, EngineIncompatibleError without a GPU that CUDA can use."""
    makers: dict[str, Callable[[Any], Gpu]] = {"cuda.bindings.driver": BindingsGpu, "pycuda.driver": PycudaGpu}
    reasons = []
    for name, make in makers.items():
        try:
            library = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
            continue
        try:
            return make(library)
        except EngineIncompatibleError:
            raise
        except Exception as error:  # each library has its own family
            raise EngineIncompatibleError(f"There is no GPU that CUDA can use: {error}.", field="engine") from error
    raise MissingDependencyError(
        f"Engines compiled with TensorRT need cuda-bindings or pycuda ({'; '.join(reasons)}).",
        field="engine",
        remedy='pip install "auroraedge[tensorrt]"',
    )


class BindingsGpu:
    """cuda.bindings.driver, its primary context."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._pinned: dict[int, int] = {}
        self.call("cuInit", 0)
        device = self.call("cuDeviceGet", 0)
        attribute = driver.CUdevice_attribute
        major, minor = (self.call("cuDeviceGetAttribute", attribute(code), device) for code in (_MAJOR, _MINOR))
        self.capability = f"{int(major)}.{int(minor)}"
        self.name = bytes(self.call("cuDeviceGetName", 256, device)).split(b"\0")[0].decode(errors="replace")
        self._context = self.call("cuDevicePrimaryCtxRetain", device)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a driver call. Raises EngineError with what the driver says."""
        code, *found = getattr(self.driver, name)(*arguments)
        if int(code) != 0:
            _, text = self.driver.cuGetErrorString(code)
            reason = text.decode(errors="replace") if isinstance(text, bytes) else f"CUDA error {int(code)}"
            raise EngineError(
                f"{name} failed: {reason}.", field="cuda", remedy="Close other users of the GPU, and try again."
            )
        return found[0] if found else None

    @contextmanager
    def current(self) -> Iterator[None]:
        self.call("cuCtxSetCurrent", self._context)
        yield

    def allocate(self, size: int) -> int:
        address = self.call("cuMemAlloc", max(1, size))
        self.call("cuMemsetD8", address, 0, max(1, size))
        return int(address)

    def free(self, address: int) -> None:
        self.call("cuMemFree", address)

    def pinned(self, size: int) -> np.ndarray:
        address = int(self.call("cuMemAllocHost", max(1, size)))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * max(1, size)).from_address(address))
        self._pinned[array.ctypes.data] = address
        return array

    def unpin(self, array: np.ndarray) -> None:
        self.call("cuMemFreeHost", self._pinned.pop(array.ctypes.data))

    def stream(self) -> BindingsStream:
        return BindingsStream(self)


class BindingsStream:
    def __init__(self, gpu: BindingsGpu) -> None:
        self._gpu, self._graphs = gpu, []  # type: ignore[var-annotated]
        # Not ordered behind the default stream, which others may use.
        self._stream = gpu.call("cuStreamCreate", gpu.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.handle = int(self._stream)

    def upload(self, target: int, source: np.ndarray) -> None:
        if source.nbytes:
            self._gpu.call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: np.ndarray, source: int) -> None:
        if target.nbytes:
            self._gpu.call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def copy(self, target: int, source: int, *, width: int, height: int, pitch: int) -> None:
        driver = self._gpu.driver
        about = driver.CUDA_MEMCPY2D()
        about.srcMemoryType = about.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        about.srcDevice, about.dstDevice = driver.CUdeviceptr(source), driver.CUdeviceptr(target)
        about.srcPitch = about.dstPitch = pitch
        about.WidthInBytes, about.Height = width, height
        self._gpu.call("cuMemcpy2DAsync", about, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        gpu, mode = self._gpu, self._gpu.driver.CUstreamCaptureMode
        gpu.call("cuStreamBeginCapture", self._stream, mode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            gpu.driver.cuStreamEndCapture(self._stream)  # it has failed already; the stream must leave the capture
            raise
        graph = gpu.call("cuStreamEndCapture", self._stream)
        executable = gpu.call("cuGraphInstantiate", graph, 0)
        gpu.call("cuGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: gpu.call("cuGraphLaunch", executable, self._stream)

    def synchronize(self) -> None:
        self._gpu.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        for graph in self._graphs:
            self._gpu.call("cuGraphExecDestroy", graph)
        self._graphs = []
        self._gpu.call("cuStreamDestroy", self._stream)


class PycudaGpu:
    """pycuda.driver, its primary context."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        driver.init()
        device = driver.Device(0)
        self.capability = ".".join(str(part) for part in device.compute_capability())
        self.name = device.name()
        self._context = device.retain_primary_context()
        self._memory: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self.driver.Error as error:
            raise EngineError(
                f"CUDA failed: {error}.", field="cuda", remedy="Close other users of the GPU, and try again."
            ) from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        memory = self.driver.mem_alloc(max(1, size))
        self.driver.memset_d8(int(memory), 0, max(1, size))
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    def pinned(self, size: int) -> np.ndarray:
        array: np.ndarray = self.driver.pagelocked_empty(max(1, size), np.uint8)
        return array

    def unpin(self, array: np.ndarray) -> None:
        """pycuda gives the memory back with its array."""

    def stream(self) -> PycudaStream:
        return PycudaStream(self.driver)


class PycudaStream:
    def __init__(self, driver: Any) -> None:
        self._driver, self._stream = driver, driver.Stream()
        self.handle = int(self._stream.handle)

    def upload(self, target: int, source: np.ndarray) -> None:
        if source.nbytes:
            self._driver.memcpy_htod_async(target, source, self._stream)

    def download(self, target: np.ndarray, source: int) -> None:
        if target.nbytes:
            self._driver.memcpy_dtoh_async(target, source, self._stream)

    def copy(self, target: int, source: int, *, width: int, height: int, pitch: int) -> None:
        about = self._driver.Memcpy2D()
        about.set_src_device(source)
        about.set_dst_device(target)
        about.src_pitch = about.dst_pitch = pitch
        about.width_in_bytes, about.height = width, height
        about(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        return None

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        """pycuda gives the stream back with its object."""
