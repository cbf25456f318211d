"""The application: routes and what they work on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from auroraedge.errors import ResultNotFoundError
from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.store import Store
from service.ui import actions, pages
from service.ui.access import LoginLimiter, Sessions, Tokens, load_key
from service.ui.config import UiConfig
from service.ui.engine_state import EngineProbe
from service.ui.live import Live
from service.ui.pictures import Pictures
from service.ui.recipes import Recipes
from service.ui.web import FOLDER, Desk, Guard, error_answer, make_templates


async def palette(request: Request) -> Response:
    """The colours of the verdicts, from the one place that knows them."""
    rules = [
        f".v-{verdict.value} {{ --verdict: rgb{style.color}; --ink: rgb{style.ink}; }}"
        for verdict, style in VERDICT_STYLES.items()
    ]
    return Response("\n".join(rules) + "\n", media_type="text/css", headers={"cache-control": "private, max-age=3600"})


async def alive(request: Request) -> Response:
    """For a supervisor: the process answers. Says nothing else."""
    return PlainTextResponse("ok\n")


async def not_found(request: Request, error: Exception) -> Response:
    missing = ResultNotFoundError(f"There is no page {request.url.path[:80]}.", remedy="Follow a link of the page.")
    return error_answer(request, missing, None, api=request.url.path.startswith("/api/"))


def create_app(config: UiConfig, store: Store, tokens: Tokens | None = None) -> Starlette:
    """The page on an open store. tokens: who may log in; None: everyone may do everything.

    Raises RecipeError for a recipe file that cannot be used, InvalidRequestError for a faulty key file.
    """
    desk = Desk(
        config=config,
        store=store,
        recipes=Recipes(store, config.recipes),
        pictures=Pictures(store),
        live=Live(store),
        probe=EngineProbe(config.server, ca=config.server_ca, token=config.server_token),
        sessions=Sessions(tokens, load_key(config.session_key), lifetime_s=config.session_hours * 3600),
        limiter=LoginLimiter(),
        templates=make_templates(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await desk.live.stop()
        desk.probe.close()

    get, post = ["GET"], ["POST"]
    app = Starlette(
        routes=[
            Route("/", pages.live, methods=get),
            Route("/history", pages.history, methods=get),
            Route("/results/{result_id}", pages.result, methods=get),
            Route("/review", pages.review, methods=get),
            Route("/recipes", pages.recipes, methods=get),
            Route("/recipes/{recipe_id}", pages.recipe, methods=get),
            Route("/engine", pages.engine, methods=get),
            Route("/audit", pages.audit, methods=get),
            Route("/training-set", pages.training, methods=get),
            Route("/training-set.zip", pages.training_download, methods=get),
            Route("/picture/{sha256}", pages.picture, methods=get),
            Route("/api/events", pages.events, methods=get),
            Route("/api/results/{result_id}/review", actions.review, methods=post),
            Route("/api/recipes/{recipe_id}", actions.put_recipe, methods=post),
            Route("/api/recipes/{recipe_id}/effect", actions.recipe_effect, methods=get),
            Route("/login", actions.login_page, methods=get),
            Route("/login", actions.login, methods=post),
            Route("/logout", actions.logout, methods=post),
            Route("/language/{language}", actions.language, methods=get),
            Route("/palette.css", palette, methods=get),
            Route("/alive", alive, methods=get),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        middleware=[
            Middleware(Guard, https=config.https, local_only=tokens is None and not config.allow_insecure),
        ],
        exception_handlers={404: not_found},
        lifespan=lifespan,
    )
    app.state.desk = desk
    return app
