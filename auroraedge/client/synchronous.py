"""The blocking client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

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


class InspectionClient:
    """Talks to an inspection server; safe to use from several threads.

        with InspectionClient("127.0.0.1:50051") as client:
            result = client.inspect("frame.png", "magnetic_tile")

    Images are a path, the bytes of an image file, pixels (see FrameInput.pixel_format), RawPixels, or a frame in shared
    memory. Every failure is an AuroraEdgeError of the class that the server raised; a server that cannot be reached is
    a ServerUnavailableError. Calls are repeated as `retry` says, within `timeout_s`, under the same request id, so that
    the server answers a frame once; streams are not, because their frames have been consumed.

    address: host:port or unix:/path. token, encrypted, root_certificates, certificate, key: see ClientSettings.
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
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._stubs = calls.Stubs(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # --- inspection --------------------------------------------------------------------------------------------------

    def inspect(
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
        return self._call(calls.inspect(frame), timeout_s)

    def inspect_progressive(
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
    ) -> Iterator[InspectionResult]:
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
        for response in self._stream(self._stubs.inspection.InspectProgressive, message, self._timeout(timeout_s)):
            yield convert.result_from_proto(response.result)

    def inspect_many(
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
        return self._call(calls.inspect_many(frame, items), timeout_s)

    def ask(
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
        return self._call(calls.ask(frame, prompt), timeout_s)

    def inspect_stream(
        self,
        frames: Iterable[FrameInput | ImageInput],
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
    ) -> Iterator[InspectionResult]:
        """The verdicts on the frames of one camera session, one for each frame and in order.

        A frame that cannot be inspected gives a result with verdict ERROR. With `early_verdict` a partial result
        (is_partial) may come before the complete one. With policy "latest_frame" frames that come too fast are dropped
        and get no result; `on_status` is told of them, and of the credits. `timeout_s` (None: no limit) is that of the
        whole session. `frames` is consumed in another thread.
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

        def messages() -> Iterator[pb.InspectStreamRequest]:
            yield opening
            try:
                for frame in frames:
                    message = ledger.message(transport.as_frame_input(frame))
                    if message is not None:
                        yield message
            except Exception as error:  # the caller's own: raised where the caller sees it, not in gRPC's thread
                failures.append(error)

        for response in self._stream(self._stubs.inspection.InspectStream, messages(), timeout_s):
            yield from ledger.results(response)
        if failures:
            raise failures[0]
        yield from ledger.rest()

    def generate(
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
    ) -> Iterator[GeneratedToken]:
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
        for response in self._stream(self._stubs.inspection.Generate, message, self._timeout(timeout_s)):
            yield convert.token_from_proto(response)

    def recipes(self, *, timeout_s: float | None = None) -> list[Recipe]:
        """The recipes that the server knows, sorted by id."""
        return self._call(calls.recipes(), timeout_s)

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The model, the engine and the limits of the server."""
        return self._call(calls.server_info(), timeout_s)

    @contextmanager
    def shared_memory(
        self, slot_bytes: int, *, slots: int = 2, timeout_s: float | None = None
    ) -> Iterator[SharedMemory]:
        """Memory shared with a server on this host, with room for `slots` frames of up to `slot_bytes`.

            with client.shared_memory(2448 * 2048 * 3) as memory, memory.frame((2048, 2448, 3)) as frame:
                camera.read_into(frame.pixels)
                result = client.inspect(frame, "pcb")

        Raises SharedMemoryError for a server elsewhere, SharedMemoryExhaustedError.
        """
        memory = SharedMemory(self._call(calls.acquire(slot_bytes, slots), timeout_s))
        try:
            yield memory
        finally:
            # Acknowledged, so that the memory is to be had again when this returns.
            with contextlib.suppress(AuroraEdgeError):
                self._call(calls.release(memory.lease_id), timeout_s)
            memory.close()

    # --- stored results ----------------------------------------------------------------------------------------------

    def stored_result(
        self, result_id: str = "", *, request_id: str = "", timeout_s: float | None = None
    ) -> StoredResult:
        """A stored result by its own id or by the id of its request. Raises ResultNotFoundError."""
        return self._call(calls.stored_result(result_id, request_id), timeout_s)

    def results(
        self,
        query: ResultQuery | None = None,
        *,
        newest_first: bool = False,
        after_seq: int = 0,
        page_size: int = 100,
        timeout_s: float | None = None,
    ) -> Iterator[StoredResult]:
        """The stored results that agree with `query`, fetched page by page; `timeout_s` is that of one page."""
        token = ""
        while True:
            page = self.results_page(
                query,
                page_size=page_size,
                page_token=token,
                newest_first=newest_first,
                after_seq=after_seq,
                timeout_s=timeout_s,
            )
            yield from page.results
            token = page.next_page_token
            if not token:
                return

    def results_page(
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
        return self._call(call, timeout_s)

    def image(self, image_sha256: str, *, timeout_s: float | None = None) -> StoredImage:
        """A stored image, by StoredResult.image_sha256 or reference_sha256."""
        return self._call(calls.image(image_sha256), timeout_s)

    # --- administration ----------------------------------------------------------------------------------------------

    def reload_recipes(self, *, reason: str = "", timeout_s: float | None = None) -> list[RecipeChange]:
        """Makes the server read its recipe folders again."""
        return self._call(calls.reload_recipes(reason), timeout_s)

    def put_recipe(
        self, recipe: Recipe, *, replaces_version: int, reason: str, timeout_s: float | None = None
    ) -> Recipe:
        """Adds a recipe (replaces_version 0) or a new version of one; returns it with the version it was given."""
        return self._call(calls.put_recipe(recipe, replaces_version, reason), timeout_s)

    def swap_engine(
        self, engine: str, *, reason: str, engine_sha256: str = "", timeout_s: float | None = None
    ) -> EngineSwap:
        """Replaces the engine by the package of that name in the server's engine folders, while it goes on working."""
        return self._call(calls.swap_engine(engine, engine_sha256, reason), timeout_s)

    def status(self, *, timeout_s: float | None = None) -> ServerStatus:
        """What the server is doing."""
        return self._call(calls.status(), timeout_s)

    def drain(self, *, drain_s: float = 0.0, reason: str = "", timeout_s: float | None = None) -> int:
        """Ends the server in good order within `drain_s` seconds (0: its setting). Returns the frames left to do."""
        return self._call(calls.drain(drain_s, reason), timeout_s)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._settings.timeout_s if timeout_s is None else timeout_s

    def _call(self, call: calls.Call[T], timeout_s: float | None) -> T:
        method = self._stubs.method(call)
        budget = self._settings.retry.start(self._timeout(timeout_s))
        while True:
            try:
                response = method(call.message, timeout=budget.remaining_s, metadata=self._settings.metadata)
                return call.result(response)
            except grpc.RpcError as failure:
                error = transport.error_from_rpc(failure)
                delay = budget.delay_after(error) if call.repeatable else None
                if delay is None:
                    raise error from failure
            time.sleep(delay)

    def _stream(self, method: transport.Method, request: Any, timeout_s: float | None) -> Iterator[Any]:
        call = method(request, timeout=timeout_s, metadata=self._settings.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise transport.error_from_rpc(error) from error
        finally:
            call.cancel()
