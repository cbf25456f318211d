"""What every route shares: the session, scopes, languages, errors as answers, and the security headers."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import jinja2
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from auroraedge import __version__
from auroraedge.errors import AuroraEdgeError, InvalidRequestError, PermissionDeniedError
from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.store import Store
from service.ui.access import LoginLimiter, Session, Sessions
from service.ui.config import UiConfig
from service.ui.engine_state import EngineProbe
from service.ui.live import Live
from service.ui.pictures import Pictures
from service.ui.recipes import Recipes
from service.ui.texts import LANGUAGES, Texts, choose_language, texts

FOLDER = Path(__file__).resolve().parent
SESSION_COOKIE, LANGUAGE_COOKIE = "auroraedge_session", "auroraedge_language"
MAX_BODY_BYTES = 256 * 1024
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "UNAVAILABLE": 503,
    "RESOURCE_EXHAUSTED": 503,
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the routes work on."""

    config: UiConfig
    store: Store
    recipes: Recipes
    pictures: Pictures
    live: Live
    probe: EngineProbe
    sessions: Sessions
    limiter: LoginLimiter
    templates: jinja2.Environment


def make_templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"languages": LANGUAGES, "version": __version__, "verdicts": list(VERDICT_STYLES)}
    environment.filters["query"] = lambda values: urlencode([(k, v) for k, v in values.items() if v not in ("", None)])
    environment.filters["when"] = lambda moment: moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return environment


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def words_of(request: Request) -> Texts:
    cookie = request.cookies.get(LANGUAGE_COOKIE)
    return texts(choose_language(cookie, request.headers.get("accept-language", "")))


def render(request: Request, name: str, session: Session | None, status_code: int = 200, **values: Any) -> HTMLResponse:
    desk, words = desk_of(request), words_of(request)
    path = request.url.path
    values |= {
        "t": words,
        "session": session,
        "login_needed": desk.sessions.tokens is not None,
        "title_of_plant": desk.config.title,
        "path": path,
        "here": f"{path}?{request.url.query}" if request.url.query else path,
        "script_texts": json.dumps(words.for_script, ensure_ascii=False),
    }
    return HTMLResponse(desk.templates.get_template(name).render(values), status_code)


def local_path(text: str) -> str:
    """`text` if it is a path of this page, else "/": a link must not lead elsewhere after a login."""
    parts = urlsplit(text)
    fine = text.startswith("/") and not text.startswith(("//", "/\\")) and not parts.netloc and "\\" not in text
    return text if fine and text.isprintable() else "/"


# -- sessions ------------------------------------------------------------------------------------------------------


def set_session(response: Response, desk: Desk, session: Session) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        desk.sessions.write(session),
        max_age=round(desk.sessions.lifetime_s),
        secure=desk.config.https,
        httponly=True,
        samesite="strict",
    )


Route = Callable[[Request, Session], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def needs(scope: str, *, api: bool = False) -> Callable[[Route], Endpoint]:
    """A route for sessions with this scope. Others are sent to the login, or get 401 and 403 from the API."""

    def decorate(route: Route) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            desk = desk_of(request)
            session = await asyncio.to_thread(desk.sessions.read, request.cookies.get(SESSION_COOKIE))
            fresh = session is None and desk.sessions.tokens is None
            if fresh:
                session = desk.sessions.open(None, "")
            if session is None:
                if api:
                    return JSONResponse({"reason": "LOGIN_REQUIRED", "message": words_of(request)("login.needed")}, 401)
                here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/login?next={quote(here)}", 303)
            try:
                if not session.may(scope):
                    raise PermissionDeniedError(words_of(request)("error.scope", scope=scope))
                if request.method not in ("GET", "HEAD"):
                    check_same_site(request)
                    check_csrf(session, request.headers.get("x-csrf-token", ""))
                response = await route(request, session)
            except AuroraEdgeError as error:
                response = error_answer(request, error, session, api=api)
            if fresh:
                set_session(response, desk, session)
            return response

        return endpoint

    return decorate


def error_answer(request: Request, error: AuroraEdgeError, session: Session | None, *, api: bool) -> Response:
    status = _STATUS.get(error.grpc_code, 500)
    if api:
        content = {
            "reason": error.reason,
            "message": error.message,
            "remedy": error.remedy,
            "field": error.field,
        }
        return JSONResponse(content, status)
    return render(request, "error.html.j2", session, status, error=error, status=status)


def check_same_site(request: Request) -> None:
    """Raises PermissionDeniedError for a change that another site asks for."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise PermissionDeniedError("The request comes from another site.", remedy="Use the page itself.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise PermissionDeniedError("The request comes from another site.", remedy="Use the page itself.")


def check_csrf(session: Session, token: str) -> None:
    if not hmac.compare_digest(token.encode(), session.csrf.encode()):
        raise PermissionDeniedError("The form is not from this session.", remedy="Load the page again.")


# -- reading requests ----------------------------------------------------------------------------------------------


async def body_of(request: Request) -> bytes:
    """Raises InvalidRequestError beyond MAX_BODY_BYTES."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise InvalidRequestError("The request is too large.")
    return bytes(content)


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON object that was sent. Raises InvalidRequestError."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise InvalidRequestError("The request is not JSON.")
    try:
        content = json.loads(await body_of(request))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("The request is not valid JSON.") from error
    if not isinstance(content, dict):
        raise InvalidRequestError("The request is not a JSON object.")
    return content


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form, the first value of each."""
    try:
        fields = parse_qs((await body_of(request)).decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise InvalidRequestError("The form cannot be read.") from error
    return {name: values[0] for name, values in fields.items()}


def text_field(content: dict[str, Any], name: str, most: int = 1024) -> str:
    """Raises InvalidRequestError for what is no text or too long."""
    value = content.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise InvalidRequestError(f"A text of at most {most} characters is needed.", field=name)
    return " ".join(value.split())


def whole_number(text: str, name: str, default: int, low: int, high: int) -> int:
    """A number of a query, `default` when it is empty. Raises InvalidRequestError."""
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19 and low <= int(text) <= high):
        raise InvalidRequestError(f"'{text[:20]}' is not a number from {low} to {high}.", field=name)
    return int(text)


def local_time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


# -- middleware ----------------------------------------------------------------------------------------------------


class Guard:
    """Security headers on every answer. Without a login, requests must name this machine: a foreign page whose name
    was pointed at 127.0.0.1 (DNS rebinding) names itself."""

    def __init__(self, app: ASGIApp, *, https: bool, local_only: bool) -> None:
        self._app = app
        self._local_only = local_only
        self._headers = dict(_HEADERS)
        if https:
            self._headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if self._local_only:
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name.strip("[]") not in ("localhost", "127.0.0.1", "::1"):
                await Response("This page answers to localhost only.\n", 421)(scope, receive, guarded)
                return
        await self._app(scope, receive, guarded)
