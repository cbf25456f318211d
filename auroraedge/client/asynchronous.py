"""The asyncio client: the blocking one with await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import convert, transport
from auroraedge.client.models import FrameInput, ImageInput, PixelFormat, ServerInfo
from auroraedge.client.retry import RetryPolicy
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Answer, GeneratedToken, InspectionResult, RequestInfo


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
    ) -> None:
        self._settings = transport.ClientSettings(
            address=address, timeout_s=timeout_s, retry=retry or RetryPolicy(), max_message_mb=max_message_mb
        )
        self._channel = grpc.aio.insecure_channel(address, options=self._settings.channel_options())
        self._stub = InspectionServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

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
        timeout_s: float | None = None,
    ) -> InspectionResult:
        """The verdict on one frame. `recipe_version` 0 takes the server's; `timeout_s` overrides the client's."""
        frame = FrameInput(
            image=image,
            recipe_id=recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            image_name=image_name,
            pixel_format=pixel_format,
        )
        response = await self._call(self._stub.Inspect, transport.inspect_request(frame), timeout_s)
        return convert.result_from_proto(transport.expect(response, "result"))

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
        )
        response = await self._call(self._stub.Inspect, transport.inspect_request(frame, prompt=prompt), timeout_s)
        return convert.answer_from_proto(transport.expect(response, "answer"))

    async def inspect_stream(
        self,
        frames: AsyncIterable[FrameInput | ImageInput] | Iterable[FrameInput | ImageInput],
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        early_verdict: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[InspectionResult]:
        """The verdicts on the frames of one camera session, one for each frame and in order.

        A frame that cannot be inspected gives a result with verdict ERROR. With `early_verdict` a partial result
        (is_partial) may come before the complete one. `timeout_s` (None: no limit) is that of the whole session.
        `frames` may be an asynchronous iterable.
        """
        opening = transport.session_message(
            recipe_id,
            recipe_version=recipe_version,
            reference=reference,
            request=request,
            early_verdict=early_verdict,
        )
        ledger = transport.StreamLedger()
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

        call = self._stub.InspectStream(messages(), timeout=timeout_s)
        try:
            async for response in call:
                for result in ledger.results(response):
                    yield result
        except grpc.RpcError as error:
            raise transport.error_from_rpc(error) from error
        finally:
            call.cancel()
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
        )
        message = pb.GenerateRequest(prompt=prompt, max_new_tokens=max_new_tokens, **transport.request_fields(frame))
        call = self._stub.Generate(message, timeout=self._timeout(timeout_s))
        try:
            async for response in call:
                yield convert.token_from_proto(response)
        except grpc.RpcError as error:
            raise transport.error_from_rpc(error) from error
        finally:
            call.cancel()

    async def recipes(self, *, timeout_s: float | None = None) -> list[Recipe]:
        """The recipes that the server knows, sorted by id."""
        response = await self._call(self._stub.ListRecipes, pb.ListRecipesRequest(), timeout_s)
        return [convert.recipe_from_proto(message) for message in response.recipes]

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The model, the engine and the limits of the server."""
        response = await self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s)
        return convert.server_info_from_proto(response)

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._settings.timeout_s if timeout_s is None else timeout_s

    async def _call(self, method: transport.Method, message: Any, timeout_s: float | None) -> Any:
        budget = self._settings.retry.start(self._timeout(timeout_s))
        while True:
            try:
                return await method(message, timeout=budget.remaining_s)
            except grpc.RpcError as failure:
                error = transport.error_from_rpc(failure)
                delay = budget.delay_after(error)
                if delay is None:
                    raise error from failure
            await asyncio.sleep(delay)
