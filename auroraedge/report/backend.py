"""One face for what inspects: an engine in this process, or a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from auroraedge.errors import EngineIncompatibleError, MissingDependencyError, RecipeNotFoundError
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import InspectionResult, RequestInfo


class Backend(Protocol):
    """Inspects encoded images. `engine_sha256` and `model_id` say who gives the verdicts."""

    model_id: str
    engine_sha256: str

    def recipe(self, id_or_path: str) -> Recipe:
        """The recipe that will be used for this id. Raises RecipeNotFoundError or RecipeError."""
        ...

    def inspect(
        self, image: bytes, recipe: Recipe, *, reference: bytes | None, request: RequestInfo, image_name: str
    ) -> InspectionResult:
        """Raises AuroraEdgeError; never a result that looks good for an image that was not inspected."""
        ...

    def ask(self, image: bytes, prompt: str, recipe: Recipe, *, reference: bytes | None) -> Any:
        """The answer to one prompt: an object with text, verdict, ng_probability, defects, count."""
        ...


class LocalBackend:
    """An auroraedge.runtime.Inspector, or anything with its `engine`, `inspect` and `ask`."""

    def __init__(self, inspector: Any, recipe_dirs: Sequence[Path] = ()) -> None:
        self._inspector = inspector
        self._recipe_dirs = tuple(recipe_dirs)
        self.model_id: str = inspector.engine.model_id
        self.engine_sha256: str = inspector.engine.engine_sha256

    def recipe(self, id_or_path: str) -> Recipe:
        return load_recipe(id_or_path, self._recipe_dirs)

    def inspect(
        self, image: bytes, recipe: Recipe, *, reference: bytes | None, request: RequestInfo, image_name: str
    ) -> InspectionResult:
        result: InspectionResult = self._inspector.inspect(
            image, recipe, reference=reference, request=request, image_name=image_name
        )
        return result

    def ask(self, image: bytes, prompt: str, recipe: Recipe, *, reference: bytes | None) -> Any:
        return self._inspector.ask(image, prompt, recipe, reference=reference)


class ServerBackend:
    """An auroraedge.client.InspectionClient. Recipes are the server's."""

    def __init__(self, client: Any) -> None:
        self._client = client
        info = client.server_info()
        self.model_id: str = info.model_id
        self.engine_sha256: str = info.engine_sha256
        self._recipes: dict[str, Recipe] = {recipe.id: recipe for recipe in client.recipes()}

    def recipe(self, id_or_path: str) -> Recipe:
        if id_or_path in self._recipes:
            return self._recipes[id_or_path]
        if not id_or_path.endswith((".yaml", ".yml")):
            known = ", ".join(sorted(self._recipes)) or "none"
            raise RecipeNotFoundError(
                f"The server has no recipe '{id_or_path}' (it has: {known}).",
                field="recipe",
                remedy="Name a recipe of the server, or put the file into the server's recipe folder.",
            )
        return self.check(load_recipe(id_or_path))

    def check(self, recipe: Recipe) -> Recipe:
        """`recipe`, if the server has the very same one. Raises EngineIncompatibleError."""
        own = self._recipes.get(recipe.id)
        if own is None or own.sha256 != recipe.sha256:
            raise EngineIncompatibleError(
                f"The server's recipe '{recipe.id}' is {'missing' if own is None else 'not the same as the file'}.",
                field="recipe",
                remedy="Put the file into the server's recipe folder, or name it by its id to use the server's.",
            )
        return own

    def inspect(
        self, image: bytes, recipe: Recipe, *, reference: bytes | None, request: RequestInfo, image_name: str
    ) -> InspectionResult:
        result: InspectionResult = self._client.inspect(
            image,
            recipe.id,
            reference=reference,
            request=request,
            recipe_version=recipe.version,
            # The service takes at most 1024 characters.
            image_name=image_name[-1024:],
        )
        return result

    def ask(self, image: bytes, prompt: str, recipe: Recipe, *, reference: bytes | None) -> Any:
        return self._client.ask(image, prompt, recipe.id, reference=reference, recipe_version=recipe.version)


def as_backend(inspector_or_client: Any, recipe_dirs: Sequence[Path] = ()) -> LocalBackend | ServerBackend:
    """A backend over an Inspector or an InspectionClient (told apart by `server_info`); a backend stays as it is."""
    if isinstance(inspector_or_client, LocalBackend | ServerBackend):
        return inspector_or_client
    if hasattr(inspector_or_client, "server_info"):
        return ServerBackend(inspector_or_client)
    return LocalBackend(inspector_or_client, recipe_dirs)


@contextmanager
def open_backend(
    *,
    server: str | None = None,
    engine: Path | None = None,
    threads: int | None = None,
    recipe_dirs: Sequence[Path] = (),
) -> Iterator[LocalBackend | ServerBackend]:
    """The server at `server` (host:port), else the engine package `engine`, else the embedded one."""
    if server is not None:
        try:
            from auroraedge.client import InspectionClient
        except ImportError as error:
            raise _missing(error) from error
        with InspectionClient(server) as client:
            yield ServerBackend(client)
        return
    try:
        from auroraedge.runtime import Inspector
    except ImportError as error:
        raise _missing(error) from error
    with Inspector.open(engine, threads=threads) as inspector:
        yield LocalBackend(inspector, recipe_dirs)


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"The package '{error.name}' is not installed.", remedy="Install AuroraEdge again: pip install auroraedge"
    )
