"""What changes a running server: recipes, engine, drain. The AdminService and SIGHUP both end here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from auroraedge.client.models import RecipeChange
from auroraedge.errors import InvalidRequestError, RecipeVersionError, StoreError
from auroraedge.inspection.recipe import Recipe
from service.engines import Engines, Swap, find_engine, warm_up
from service.fairness import Priority
from service.recipes import RecipeBook
from service.scheduler import Scheduler, Work

if TYPE_CHECKING:
    from auroraedge.store import Store

log = logging.getLogger("auroraedge.service")

MAX_REASON_CHARS = 1024


def checked_reason(reason: str, *, required: bool) -> str:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidRequestError(
            f"The reason has {len(reason)} characters; the limit is {MAX_REASON_CHARS}.", field="reason"
        )
    if required and not reason.strip():
        raise InvalidRequestError("The change has no reason.", field="reason", remedy="Say why, for the audit trail.")
    return reason


class Administration:
    def __init__(
        self,
        *,
        scheduler: Scheduler,
        recipes: RecipeBook,
        engines: Engines,
        engine_folders: Sequence[Path],
        engine_path: Path | None,
        store: Store | None,
        begin_drain: Callable[[float | None], None],
    ) -> None:
        self._scheduler, self._recipes, self._engines, self._store = scheduler, recipes, engines, store
        self._folders, self._engine_path = tuple(engine_folders), engine_path
        self._begin_drain = begin_drain
        self._recipes_lock = asyncio.Lock()

    async def reload_recipes(self, *, who: str, why: str) -> list[RecipeChange]:
        """Raises RecipeError for a faulty file and EngineIncompatibleError for a recipe that the engine cannot do; then
        nothing has changed."""
        async with self._recipes_lock:
            new = await asyncio.to_thread(self._recipes.read, self._store)
            changes = self._recipes.changes(new)
            if not changes:
                return []
            await self._warm([new[change.recipe_id] for change in changes if change.kind != "removed"])
            await self._audit_recipes(changes, who, why)
            self._recipes.replace(new)
            for change in changes:
                log.info("Recipe %s %s: version %d.", change.recipe_id, change.kind, change.new_version)
            return changes

    async def put_recipe(self, recipe: Recipe, replaces_version: int, *, who: str, why: str) -> Recipe:
        """Raises RecipeVersionError when another version is in use, StoreError without a store."""
        store = self._store
        if store is None:
            raise StoreError(
                "This server runs without a store, which would keep the recipe.",
                remedy="Put the file into a recipe folder and reload, or start the server with --store.",
            )
        async with self._recipes_lock:
            known = {known.id: known for known in self._recipes.all}
            used = known[recipe.id].version if recipe.id in known else 0
            if used != replaces_version:
                raise RecipeVersionError(
                    f"Recipe '{recipe.id}' is at version {used}, not {replaces_version}: someone else changed it.",
                    field="replaces_version",
                    remedy="Read the recipe again, make the change on it, and put that.",
                )
            recipe = recipe.model_copy(update={"version": used + 1})
            await self._warm([recipe])
            version = await asyncio.to_thread(store.put_recipe, recipe, who=who, why=why)
            kept = await asyncio.to_thread(store.recipe, recipe.id, version)
            self._recipes.add(kept)
            log.info("Recipe %s is at version %d.", kept.id, kept.version)
            return kept

    async def swap_engine(self, name: str, *, expected_sha256: str, who: str, why: str) -> Swap:
        path = await asyncio.to_thread(find_engine, name, self._folders)
        return await self._engines.swap(path, expected_sha256=expected_sha256, who=who, why=why)

    async def reload_engine(self, *, who: str, why: str) -> Swap:
        """Opens the package of the settings again, e.g. behind a link that was moved."""
        return await self._engines.swap(self._engine_path, who=who, why=why)

    async def drain(self, timeout_s: float | None, *, who: str, why: str) -> int:
        if self._store is not None:
            store = self._store
            try:
                await asyncio.to_thread(
                    lambda: store.audit(who=who, action="service.drain", subject="service", why=why)
                )
            except StoreError as error:
                # A server that cannot write must still be able to stop.
                log.warning("The drain is not in the audit trail: %s", error.message)
        self._begin_drain(timeout_s)
        return self._scheduler.waiting + self._scheduler.computing

    async def _warm(self, recipes: list[Recipe]) -> None:
        work = Work(
            call=lambda inspector, _: warm_up(inspector, recipes),
            size_bytes=0,
            client="administration",
            priority=Priority.NORMAL,
            kind=("warm", len(recipes)),
        )
        await self._scheduler.run(work, wait_for_room=True)

    async def _audit_recipes(self, changes: Sequence[RecipeChange], who: str, why: str) -> None:
        store = self._store
        if store is None:
            return

        def write() -> None:
            for change in changes:
                store.audit(
                    who=who,
                    action=f"recipe.{change.kind}",
                    subject=f"recipe:{change.recipe_id}",
                    old={"version": change.old_version, "sha256": change.old_sha256} if change.old_version else None,
                    new={"version": change.new_version, "sha256": change.new_sha256} if change.new_version else None,
                    why=why,
                )

        await asyncio.to_thread(write)
