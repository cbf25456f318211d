"""ResultsService: reads the store. The database is asked in threads, so that inspections do not wait for it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from auroraedge._proto.inspection.v1 import results_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import ResultsServiceServicer
from auroraedge.client import convert_stored
from auroraedge.errors import InvalidRequestError, ResultNotFoundError, StoreError
from service.principal import current_principal
from service.reporting import reports_errors

if TYPE_CHECKING:
    from auroraedge.store import Store

MAX_PAGE = 1000
_DEFAULT_PAGE = 100
# A page must fit into one message, whatever its results hold.
_PAGE_BYTES = 3 * 1024 * 1024
_TYPES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG", "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def content_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for start, name in _TYPES if data.startswith(start)), "application/octet-stream")


class ResultsServicer(ResultsServiceServicer):
    def __init__(self, store: Callable[[], Store | None]) -> None:
        self._find_store = store

    @property
    def _store(self) -> Store:
        store = self._find_store()
        if store is None:
            raise StoreError(
                "This server runs without a store.", remedy="Start it with --store, or ask a server that has one."
            )
        return store

    @reports_errors
    async def GetResult(self, request: pb.GetResultRequest, context: Any) -> pb.GetResultResponse:
        store = self._store
        key = request.WhichOneof("key")
        if key is None or not getattr(request, key):
            raise InvalidRequestError("No result is named.", field="result_id", remedy="Set result_id or request_id.")
        if key == "result_id":
            stored = await asyncio.to_thread(store.get, request.result_id)
        else:
            found = await asyncio.to_thread(store.find, request.request_id, principal=current_principal().name)
            if found is None:
                raise ResultNotFoundError(
                    f"There is no result of request '{request.request_id[:256]}'.", field="request_id"
                )
            stored = found
        return pb.GetResultResponse(result=convert_stored.stored_to_proto(stored))

    @reports_errors
    async def ListResults(self, request: pb.ListResultsRequest, context: Any) -> pb.ListResultsResponse:
        from auroraedge.store import ResultFilter

        store = self._store
        if request.page_size > MAX_PAGE:
            raise InvalidRequestError(
                f"A page of {request.page_size} results is asked for; the limit is {MAX_PAGE}.", field="page_size"
            )
        where = ResultFilter(**convert_stored.store_conditions(convert_stored.query_from_proto(request.filter)))
        size = request.page_size or _DEFAULT_PAGE
        token = _Token.of(request)
        place = token.read(request.page_token)

        def page() -> tuple[list[pb.StoredResult], int | None]:
            found: list[pb.StoredResult] = []
            size_bytes = 0
            rows = store.results(where, after_seq=place, limit=size + 1, newest_first=request.newest_first)
            for row in rows:
                if request.newest_first and row.seq <= request.after_seq:
                    break
                message = convert_stored.stored_to_proto(row)
                size_bytes += message.ByteSize()
                # One result more than the page says that there is another page.
                found.append(message)
                if size_bytes > _PAGE_BYTES and len(found) > 1:
                    break
            total = store.count(where) if request.count else None
            return found, total

        found, total = await asyncio.to_thread(page)
        response = pb.ListResultsResponse(total=total)
        cut = len(found) > size or sum(message.ByteSize() for message in found) > _PAGE_BYTES
        if cut and len(found) > 1:
            found.pop()
            response.next_page_token = token.write(found[-1].result.receipt.seq)
        response.results.extend(found)
        return response

    @reports_errors
    async def GetImage(self, request: pb.GetImageRequest, context: Any) -> pb.GetImageResponse:
        data = await asyncio.to_thread(self._store.image, request.image_sha256)
        if data is None:
            raise ResultNotFoundError(
                f"The store has no image '{request.image_sha256[:64]}'.",
                field="image_sha256",
                remedy="Retention may have removed it, or it was never kept (see keep_images).",
            )
        return pb.GetImageResponse(data=data, content_type=content_type(data))


class _Token:
    """Page tokens: the last position, tied to the question so that pages of two lists are never mixed."""

    def __init__(self, question: str, after_seq: int) -> None:
        self._question, self._after_seq = question, after_seq

    @classmethod
    def of(cls, request: pb.ListResultsRequest) -> _Token:
        same = pb.ListResultsRequest(
            filter=request.filter, newest_first=request.newest_first, after_seq=request.after_seq
        )
        digest = hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()[:16]
        return cls(digest, 0 if request.newest_first else request.after_seq)

    def write(self, seq: int) -> str:
        return base64.urlsafe_b64encode(json.dumps([self._question, seq]).encode()).decode()

    def read(self, text: str) -> int:
        if not text:
            return self._after_seq
        try:
            question, seq = json.loads(base64.urlsafe_b64decode(text.encode()))
            if question == self._question and isinstance(seq, int) and 0 < seq < 2**63:
                return seq
        except (ValueError, TypeError, binascii.Error):
            pass
        raise InvalidRequestError(
            "The page token is not one of this list.",
            field="page_token",
            remedy="Repeat the first request's filter, order and after_seq with the token, or start again without one.",
        )
