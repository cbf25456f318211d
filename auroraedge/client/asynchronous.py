"""The asyncio client: the blocking one with await. tests/unit/test_client_parity.py holds the two together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import calls, convert, transport
from auroraedge.client.models import (
    EngineSwap,
    FrameInput,
    ImageInput,
    ItemInput,
    PixelFormat,
    Priority,
    RecipeChange,
    ResultPage,
    ResultQuery,
    ServerInfo,
    ServerStatus,
    StoredImage,
    StoredResult,
    StreamPolicy,
    StreamStatus,
)
from auroraedge.client.retry import RetryPolicy
from auroraedge.client.shared_memory import SharedMemory
from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Answer, GeneratedToken, InspectionResult, Region, RequestInfo

T = TypeVar("T")


async def _asynchronous(frames: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
    else:
        for frame in frames:
            yield frame


class AsyncInspectionClient:
    """InspectionClient for asyncio: the same calls, arguments, retries and errors.

        async with AsyncInspectionClient("127.0.0.1:50051") as client:
            result = await client.inspect("frame.png", "magnetic_tile")

    Make it inside a running event loop.
    """

    def __init__(
        self,
        address: str = transport.DEFAULT_ADDRESS,
        *,
        timeout_s: float | None = 30.0,
        retry: RetryPolicy | None = None,
        max_message_mb: int = transport.DEFAULT_MESSAGE_MB,
        token: str = "",
        encrypted: bool = False,
        root_certificates: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
    ) -> None:
        self._settings = transport.ClientSettings(
            address=address,
            timeout_s=timeout_s,
            retry=retry or RetryPolicy(),
            max_message_mb=max_message_mb,
            token=token,
            encrypted=encrypted,
            root_certificates=root_certificates,
            certificate=certificate,
            key=key,
        )
        options, credentials = self._settings.channel_options(), self._settings.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._stubs = calls.Stubs(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    # --- inspection --------------------------------------------------------------------------------------------------

    async def inspect(
        self,
        image: ImageInput,
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        image_name: str = "",
        pixel_format: PixelFormat = "rgb8",
        regions: Sequence[Region] = (),
        priority: Priority | None = None,
        timeout_s: float | None = None,
    ) -> InspectionResult:
        """The verdict on one frame. `recipe_version` 0 takes the server's; `timeout_s` overrides the client's.

        A request without a request id gets one, which is in the result.
        """
        frame = FrameInput(
            image=image,
            recipe_id=recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            image_name=image_name,
            pixel_format=pixel_format,
            regions=regions,
            priority=priority,
        )
        return await self._call(calls.inspect(frame), timeout_s)

    async def inspect_progressive(
        self,
        image: ImageInput,
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        image_name: str = "",
        pixel_format: PixelFormat = "rgb8",
        regions: Sequence[Region] = (),
        priority: Priority | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[InspectionResult]:
        """The verdict as soon as it is known (is_partial), then the complete result. The partial one may be missing.

        Not repeated by itself: call again with the same request id.
        """
        frame = FrameInput(
            image=image,
            recipe_id=recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            image_name=image_name,
            pixel_format=pixel_format,
            regions=regions,
            priority=priority,
        )
        message = transport.progressive_request(frame)
        async for response in self._stream(
            self._stubs.inspection.InspectProgressive, message, self._timeout(timeout_s)
        ):
            yield convert.result_from_proto(response.result)

    async def inspect_many(
        self,
        image: ImageInput,
        items: Sequence[ItemInput | str],
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        image_name: str = "",
        pixel_format: PixelFormat = "rgb8",
        regions: Sequence[Region] = (),
        priority: Priority | None = None,
        timeout_s: float | None = None,
    ) -> list[InspectionResult | Answer | AuroraEdgeError]:
        """Several recipes (by id) and prompts on one frame, which is sent and encoded once.

        One outcome for each item, in order: a result (verdict ERROR where the item failed), or for a prompt an answer
        or the error, which is not raised.
        """
        frame = FrameInput(
            image=image,
            reference=reference,
            request=request,
            image_name=image_name,
            pixel_format=pixel_format,
            regions=regions,
            priority=priority,
        )
        return await self._call(calls.inspect_many(frame, items), timeout_s)

    async def ask(
        self,
        image: ImageInput,
        prompt: str,
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        pixel_format: PixelFormat = "rgb8",
        regions: Sequence[Region] = (),
        priority: Priority | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The answer to one prompt: 'is there a LABEL?', 'count LABEL', 'locate LABEL', 'describe', or a free text."""
        frame = FrameInput(
            image=image,
            recipe_id=recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            pixel_format=pixel_format,
            regions=regions,
            priority=priority,
        )
        return await self._call(calls.ask(frame, prompt), timeout_s)

    async def inspect_stream(
        self,
        frames: AsyncIterable[FrameInput | ImageInput] | Iterable[FrameInput | ImageInput],
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        early_verdict: bool = False,
        policy: StreamPolicy = "every_frame",
        priority: Priority | None = None,
        regions: Sequence[Region] = (),
        on_status: Callable[[StreamStatus], None] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[InspectionResult]:
        """The verdicts on the frames of one camera session, one for each frame and in order.

        A frame that cannot be inspected gives a result with verdict ERROR. With `early_verdict` a partial result
        (is_partial) may come before the complete one. With policy "latest_frame" frames that come too fast are dropped
        and get no result; `on_status` is told of them, and of the credits. `timeout_s` (None: no limit) is that of the
        whole session. `frames` may be an asynchronous iterable.
        """
        opening = transport.session_message(
            recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            early_verdict=early_verdict,
            policy=policy,
            priority=priority,
            regions=regions,
        )
        ledger = transport.StreamLedger(on_status)
        failures: list[BaseException] = []

        async def messages() -> AsyncIterator[pb.InspectStreamRequest]:
            yield opening
            try:
                async for frame in _asynchronous(frames):
                    message = ledger.message(transport.as_frame_input(frame))
                    if message is not None:
                        yield message
            except Exception as error:  # the caller's own: raised where the caller sees it, not in gRPC's task
                failures.append(error)

        method = self._stubs.inspection.InspectStream
        async with aclosing(self._stream(method, messages(), timeout_s)) as responses:
            async for response in responses:
                for result in ledger.results(response):
                    yield result
        if failures:
            raise failures[0]
        for result in ledger.rest():
            yield result

    async def generate(
        self,
        image: ImageInput,
        prompt: str,
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        max_new_tokens: int = 64,
        pixel_format: PixelFormat = "rgb8",
        priority: Priority | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[GeneratedToken]:
        """The answer to a free prompt, token by token."""
        frame = FrameInput(
            image=image,
            recipe_id=recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            pixel_format=pixel_format,
            priority=priority,
        )
        message = transport.generate_request(frame, prompt, max_new_tokens)
        method = self._stubs.inspection.Generate
        async with aclosing(self._stream(method, message, self._timeout(timeout_s))) as responses:
            async for response in responses:
                yield convert.token_from_proto(response)

    async def recipes(self, *, timeout_s: float | None = None) -> list[Recipe]:
        """The recipes that the server knows, sorted by id."""
        return await self._call(calls.recipes(), timeout_s)

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The model, the engine and the limits of the server."""
        return await self._call(calls.server_info(), timeout_s)

    @asynccontextmanager
    async def shared_memory(
        self, slot_bytes: int, *, slots: int = 2, timeout_s: float | None = None
    ) -> AsyncIterator[SharedMemory]:
        """Memory shared with a server on this host, with room for `slots` frames of up to `slot_bytes`.

            async with client.shared_memory(2448 * 2048 * 3) as memory:
                with memory.frame((2048, 2448, 3)) as frame:
                    camera.read_into(frame.pixels)
                    result = await client.inspect(frame, "pcb")

        Raises SharedMemoryError for a server elsewhere, SharedMemoryExhaustedError.
        """
        memory = await asyncio.to_thread(SharedMemory, await self._call(calls.acquire(slot_bytes, slots), timeout_s))
        try:
            yield memory
        finally:
            # Acknowledged, so that the memory is to be had again when this returns.
            with contextlib.suppress(AuroraEdgeError):
                await self._call(calls.release(memory.lease_id), timeout_s)
            await asyncio.to_thread(memory.close)

    # --- stored results ----------------------------------------------------------------------------------------------

    async def stored_result(
        self, result_id: str = "", *, request_id: str = "", timeout_s: float | None = None
    ) -> StoredResult:
        """A stored result by its own id or by the id of its request. Raises ResultNotFoundError."""
        return await self._call(calls.stored_result(result_id, request_id), timeout_s)

    async def results(
        self,
        query: ResultQuery | None = None,
        *,
        newest_first: bool = False,
        after_seq: int = 0,
        page_size: int = 100,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StoredResult]:
        """The stored results that agree with `query`, fetched page by page; `timeout_s` is that of one page."""
        token = ""
        while True:
            page = await self.results_page(
                query,
                page_size=page_size,
                page_token=token,
                newest_first=newest_first,
                after_seq=after_seq,
                timeout_s=timeout_s,
            )
            for stored in page.results:
                yield stored
            token = page.next_page_token
            if not token:
                return

    async def results_page(
        self,
        query: ResultQuery | None = None,
        *,
        page_size: int = 100,
        page_token: str = "",
        newest_first: bool = False,
        after_seq: int = 0,
        count: bool = False,
        timeout_s: float | None = None,
    ) -> ResultPage:
        """One page of stored results; `count` also counts those on all pages."""
        call = calls.results_page(
            query or ResultQuery(),
            page_size=page_size,
            page_token=page_token,
            newest_first=newest_first,
            after_seq=after_seq,
            count=count,
        )
        return await self._call(call, timeout_s)

    async def image(self, image_sha256: str, *, timeout_s: float | None = None) -> StoredImage:
        """A stored image, by StoredResult.image_sha256 or reference_sha256."""
        return await self._call(calls.image(image_sha256), timeout_s)

    # --- administration ----------------------------------------------------------------------------------------------

    async def reload_recipes(self, *, reason: str = "", timeout_s: float | None = None) -> list[RecipeChange]:
        """Makes the server read its recipe folders again."""
        return await self._call(calls.reload_recipes(reason), timeout_s)

    async def put_recipe(
        self, recipe: Recipe, *, replaces_version: int, reason: str, timeout_s: float | None = None
    ) -> Recipe:
        """Adds a recipe (replaces_version 0) or a new version of one; returns it with the version it was given."""
        return await self._call(calls.put_recipe(recipe, replaces_version, reason), timeout_s)

    async def swap_engine(
        self, engine: str, *, reason: str, engine_sha256: str = "", timeout_s: float | None = None
    ) -> EngineSwap:
        """Replaces the engine by the package of that name in the server's engine folders, while it goes on working."""
        return await self._call(calls.swap_engine(engine, engine_sha256, reason), timeout_s)

    async def status(self, *, timeout_s: float | None = None) -> ServerStatus:
        """What the server is doing."""
        return await self._call(calls.status(), timeout_s)

    async def drain(self, *, drain_s: float = 0.0, reason: str = "", timeout_s: float | None = None) -> int:
        """Ends the server in good order within `drain_s` seconds (0: its setting). Returns the frames left to do."""
        return await self._call(calls.drain(drain_s, reason), timeout_s)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._settings.timeout_s if timeout_s is None else timeout_s

    async def _call(self, call: calls.Call[T], timeout_s: float | None) -> T:
        method = self._stubs.method(call)
        budget = self._settings.retry.start(self._timeout(timeout_s))
        while True:
            try:
                response = await method(call.message, timeout=budget.remaining_s, metadata=self._settings.metadata)
                return call.result(response)
            except grpc.RpcError as failure:
                error = transport.error_from_rpc(failure)
                delay = budget.delay_after(error) if call.repeatable else None
                if delay is None:
                    raise error from failure
            await asyncio.sleep(delay)

    async def _stream(
        self, method: transport.Method, request: Any, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        call = method(request, timeout=timeout_s, metadata=self._settings.metadata)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise transport.error_from_rpc(error) from error
        finally:
            call.cancel()
