"""AdminService: checks the requests, and says what the server is doing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from auroraedge._proto.inspection.v1 import admin_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import AdminServiceServicer
from auroraedge.client import convert, convert_stored
from auroraedge.client.models import ServerStatus
from auroraedge.errors import InvalidRequestError, ServerUnavailableError
from service.administration import Administration, checked_reason
from service.principal import current_principal
from service.reporting import reports_errors

_MAX_DRAIN_S = 3600.0


def _who(context: Any) -> str:
    return current_principal().name or f"unnamed ({context.peer()})"


class AdminServicer(AdminServiceServicer):
    def __init__(
        self, administration: Callable[[], Administration | None], status: Callable[[], Awaitable[ServerStatus]]
    ) -> None:
        self._find, self._status = administration, status

    @property
    def _administration(self) -> Administration:
        found = self._find()
        if found is None:
            raise ServerUnavailableError("The server is warming up.", remedy="Retry in a moment.")
        return found

    @reports_errors
    async def ReloadRecipes(self, request: pb.ReloadRecipesRequest, context: Any) -> pb.ReloadRecipesResponse:
        why = checked_reason(request.reason, required=False)
        changes = await self._administration.reload_recipes(who=_who(context), why=why)
        return pb.ReloadRecipesResponse(changes=[convert_stored.change_to_proto(change) for change in changes])

    @reports_errors
    async def PutRecipe(self, request: pb.PutRecipeRequest, context: Any) -> pb.PutRecipeResponse:
        why = checked_reason(request.reason, required=True)
        if not request.HasField("recipe"):
            raise InvalidRequestError("There is no recipe.", field="recipe")
        for name in ("version", "sha256"):
            if getattr(request.recipe, name):
                raise InvalidRequestError(
                    "The server gives the version and the hash.", field=f"recipe.{name}", remedy="Leave it empty."
                )
        message = request.recipe
        message.version = 1  # a valid one; the real one follows from the version in use
        recipe = convert.recipe_from_proto(message)
        kept = await self._administration.put_recipe(recipe, request.replaces_version, who=_who(context), why=why)
        return pb.PutRecipeResponse(recipe=convert.recipe_to_proto(kept))

    @reports_errors
    async def SwapEngine(self, request: pb.SwapEngineRequest, context: Any) -> pb.SwapEngineResponse:
        why = checked_reason(request.reason, required=True)
        swap = await self._administration.swap_engine(
            request.engine, expected_sha256=request.engine_sha256, who=_who(context), why=why
        )
        return pb.SwapEngineResponse(
            old_engine_sha256=swap.old_sha256,
            new_engine_sha256=swap.new_sha256,
            model_id=swap.model_id,
            load_ms=swap.load_ms,
        )

    @reports_errors
    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return convert_stored.status_to_proto(await self._status())

    @reports_errors
    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        why = checked_reason(request.reason, required=False)
        timeout_s = request.timeout_seconds
        if not 0 <= timeout_s <= _MAX_DRAIN_S:
            raise InvalidRequestError(
                f"timeout_seconds is {timeout_s}; it must be 0 to {_MAX_DRAIN_S:.0f}.", field="timeout_seconds"
            )
        remaining = await self._administration.drain(timeout_s or None, who=_who(context), why=why)
        return pb.DrainResponse(remaining=remaining)
