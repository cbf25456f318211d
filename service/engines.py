"""Another engine while the server runs: load, verify, warm, take over between batches, close the old one.

The engine at work stays whenever anything is wrong with the new one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from auroraedge.errors import AuroraEdgeError, EngineIncompatibleError, EngineNotFoundError, InvalidRequestError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult

if TYPE_CHECKING:
    from auroraedge.runtime import Inspector
    from auroraedge.store import Store
    from service.scheduler import Scheduler

log = logging.getLogger("auroraedge.service")


def _probe_frames() -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """A grey frame and a textured one, the same every time."""
    texture = np.random.default_rng(7).integers(90, 170, (256, 256, 1), np.uint8).repeat(3, axis=2)
    texture[100:140, 60:120] = 20
    return {"grey": np.full((256, 256, 3), 128, np.uint8), "texture": texture}


def warm_up(inspector: Inspector, recipes: Sequence[Recipe]) -> dict[str, float]:
    """Inspects two frames with every recipe, so that the first real one finds every graph loaded and its memory
    allocated. Returns P(NG) by recipe and frame.

    Raises EngineIncompatibleError when the engine cannot do what a recipe asks.
    """
    found = {}
    for recipe in recipes:
        for name, frame in _probe_frames().items():
            reference = None if recipe.golden_reference == "none" else frame
            try:
                result = inspector.inspect(frame, recipe, reference=reference)
            except AuroraEdgeError as error:
                raise EngineIncompatibleError(
                    f"The engine cannot inspect with recipe '{recipe.id}': {error.message}", remedy=error.remedy
                ) from error
            _check(result, inspector, recipe)
            found[f"{recipe.id}/{name}"] = float(result.ng_probability or 0.0)
    return found


def _check(result: InspectionResult, inspector: Inspector, recipe: Recipe) -> None:
    """What every engine's answer must have. Raises EngineIncompatibleError."""
    probability = result.ng_probability
    if probability is None or not 0.0 <= probability <= 1.0:
        raise EngineIncompatibleError(f"The engine gives no probability with recipe '{recipe.id}'.")
    if result.engine_sha256 != inspector.engine.engine_sha256:
        raise EngineIncompatibleError("The engine's results name another engine.")


def find_engine(name: str, folders: Sequence[Path]) -> Path:
    """The package folder `name` below one of `folders`; nothing else is ever opened. Raises EngineNotFoundError."""
    parts = Path(name).parts
    if not name or Path(name).is_absolute() or ".." in parts or "\0" in name or len(name) > 255:
        raise InvalidRequestError(
            "The engine's name is no folder's name.",
            field="engine",
            remedy="Name a package folder below one of the server's engine folders (--engines).",
        )
    for folder in folders:
        root = folder.resolve()
        path = (root / name).resolve()
        if path != root and path.is_relative_to(root) and (path / "manifest.json").is_file():
            return path
    known = sorted({found.parent.name for folder in folders for found in folder.glob("*/manifest.json")})
    raise EngineNotFoundError(
        f"There is no engine '{name[:64]}' (known: {', '.join(known) or 'none'}).",
        field="engine",
        remedy="Copy the package into one of the server's engine folders (--engines).",
    )


@dataclass(frozen=True, kw_only=True)
class Swap:
    old_sha256: str
    new_sha256: str
    model_id: str
    load_ms: float


class Engines:
    """The engine at work. One change at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        open_engine: Callable[[Path | None], Inspector],
        recipes: Callable[[], Sequence[Recipe]],
        store: Store | None,
        on_change: Callable[[Inspector], None],
    ) -> None:
        self._scheduler, self._open, self._recipes = scheduler, open_engine, recipes
        self._store, self._on_change = store, on_change
        self._changing = asyncio.Lock()

    async def swap(self, path: Path | None, *, expected_sha256: str = "", who: str, why: str) -> Swap:
        """Raises EngineError and its kin; then the engine at work stays."""
        async with self._changing:
            old = self._scheduler.inspector
            started = time.monotonic()
            new, probes = await asyncio.to_thread(self._load, path, expected_sha256)
            load_ms = (time.monotonic() - started) * 1000.0
            try:
                # Noted before it takes over: no verdict of an engine that the history does not know.
                await asyncio.to_thread(self._note, old, new, probes, load_ms, who, why)
            except BaseException:
                new.close()
                raise
            self._on_change(new)
            retired = await self._scheduler.swap(new)
            await asyncio.to_thread(retired.close)
            log.info("The engine is now %s (was %s).", new.engine.engine_sha256[:12], old.engine.engine_sha256[:12])
            return Swap(
                old_sha256=old.engine.engine_sha256,
                new_sha256=new.engine.engine_sha256,
                model_id=new.engine.model_id,
                load_ms=load_ms,
            )

    def _load(self, path: Path | None, expected_sha256: str) -> tuple[Inspector, dict[str, float]]:
        new = self._open(path)
        try:
            found = new.engine.engine_sha256
            if expected_sha256 and found != expected_sha256.lower():
                raise EngineIncompatibleError(
                    f"The engine's hash is {found}, not {expected_sha256[:64]}.",
                    field="engine_sha256",
                    remedy="Name the hash in the manifest of the package that you mean.",
                )
            return new, warm_up(new, self._recipes())
        except BaseException:
            new.close()
            raise

    def _note(
        self, old: Inspector, new: Inspector, probes: dict[str, float], load_ms: float, who: str, why: str
    ) -> None:
        if self._store is None:
            return
        self._store.record_engine(
            engine_sha256=new.engine.engine_sha256,
            model_id=new.engine.model_id,
            target=new.engine.target,
            who=who,
            why=why,
            details={
                "replaces": old.engine.engine_sha256,
                "precision": dict(new.engine.precision),
                "load_ms": round(load_ms, 1),
                "probe_ng_probability": {name: round(value, 6) for name, value in probes.items()},
            },
        )
