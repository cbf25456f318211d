"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import convert, transport
from auroraedge.client.models import FrameInput, ImageInput, PixelFormat, ServerInfo
from auroraedge.client.retry import RetryPolicy
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Answer, GeneratedToken, InspectionResult, RequestInfo


class InspectionClient:
    """Talks to an inspection server; safe to use from several threads.

        with InspectionClient("127.0.0.1:50051") as client:
            result = client.inspect("frame.png", "magnetic_tile")

    Images are a path, the bytes of an image file, or uint8 pixels [H, W] or [H, W, 3] (RGB, or BGR with
    pixel_format="bgr8"). Every failure is an AuroraEdgeError of the class that the server raised; a server that cannot
    be reached is a ServerUnavailableError. Calls are repeated after UNAVAILABLE and QUEUE_FULL as `retry` says, within
    `timeout_s`; streams are not, because their frames have been consumed.
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
        self._channel = grpc.insecure_channel(address, options=self._settings.channel_options())
        self._stub = InspectionServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

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
        response = self._call(self._stub.Inspect, transport.inspect_request(frame), timeout_s)
        return convert.result_from_proto(transport.expect(response, "result"))

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
        response = self._call(self._stub.Inspect, transport.inspect_request(frame, prompt=prompt), timeout_s)
        return convert.answer_from_proto(transport.expect(response, "answer"))

    def inspect_stream(
        self,
        frames: Iterable[FrameInput | ImageInput],
        recipe_id: str,
        *,
        reference: ImageInput | None = None,
        request: RequestInfo | None = None,
        recipe_version: int = 0,
        early_verdict: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[InspectionResult]:
        """The verdicts on the frames of one camera session, one for each frame and in order.

        A frame that cannot be inspected gives a result with verdict ERROR. With `early_verdict` a partial result
        (is_partial) may come before the complete one. `timeout_s` (None: no limit) is that of the whole session.
        `frames` is consumed in another thread.
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

        def messages() -> Iterator[pb.InspectStreamRequest]:
            yield opening
            try:
                for frame in frames:
                    message = ledger.message(transport.as_frame_input(frame))
                    if message is not None:
                        yield message
            except Exception as error:  # the caller's own: raised where the caller sees it, not in gRPC's thread
                failures.append(error)

        call = self._stub.InspectStream(messages(), timeout=timeout_s)
        try:
            for response in call:
                yield from ledger.results(response)
        except grpc.RpcError as error:
            raise transport.error_from_rpc(error) from error
        finally:
            call.cancel()
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
        )
        message = pb.GenerateRequest(prompt=prompt, max_new_tokens=max_new_tokens, **transport.request_fields(frame))
        call = self._stub.Generate(message, timeout=self._timeout(timeout_s))
        try:
            for response in call:
                yield convert.token_from_proto(response)
        except grpc.RpcError as error:
            raise transport.error_from_rpc(error) from error
        finally:
            call.cancel()

    def recipes(self, *, timeout_s: float | None = None) -> list[Recipe]:
        """The recipes that the server knows, sorted by id."""
        response = self._call(self._stub.ListRecipes, pb.ListRecipesRequest(), timeout_s)
        return [convert.recipe_from_proto(message) for message in response.recipes]

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The model, the engine and the limits of the server."""
        response = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s)
        return convert.server_info_from_proto(response)

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._settings.timeout_s if timeout_s is None else timeout_s

    def _call(self, method: transport.Method, message: Any, timeout_s: float | None) -> Any:
        budget = self._settings.retry.start(self._timeout(timeout_s))
        while True:
            try:
                return method(message, timeout=budget.remaining_s)
            except grpc.RpcError as failure:
                error = transport.error_from_rpc(failure)
                delay = budget.delay_after(error)
                if delay is None:
                    raise error from failure
            time.sleep(delay)
