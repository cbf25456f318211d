"""What changes something: login, reviews, recipes. Every change is audited by the store."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from auroraedge.errors import InvalidRequestError, PermissionDeniedError, StaleReviewError
from auroraedge.inspection.recipe import LabelName, Recipe, Thresholds
from auroraedge.inspection.results import Box, Defect, Verdict
from auroraedge.store import ResultFilter, StoredResult
from service.ui import queries
from service.ui.access import ADMIN, INSPECT, READ, Session
from service.ui.effect import as_json, boxes_hidden, effect, histogram
from service.ui.texts import LANGUAGES
from service.ui.web import (
    LANGUAGE_COOKIE,
    SESSION_COOKIE,
    Desk,
    check_csrf,
    check_same_site,
    desk_of,
    form_of,
    json_of,
    local_path,
    needs,
    render,
    set_session,
    text_field,
    whole_number,
    words_of,
)

log = logging.getLogger("auroraedge.ui")

_LABEL: TypeAdapter[str] = TypeAdapter(LabelName)
_MOST_BOXES = 500
_MOST_SCORES = 200_000
# Days of stored results that the effect of thresholds may be computed on; 0: all.
_DAYS = (1, 7, 30, 0)


# -- login ---------------------------------------------------------------------------------------------------------


async def login_page(request: Request) -> Response:
    following = local_path(request.query_params.get("next", "/"))
    if desk_of(request).sessions.tokens is None:
        return RedirectResponse(following, 303)
    return render(request, "login.html.j2", None, following=following, problem="", person="")


async def login(request: Request) -> Response:
    """Exchanges a token for a session. Wrong tokens are answered slowly, and after five an address must wait."""
    desk, words = desk_of(request), words_of(request)
    if desk.sessions.tokens is None:
        return RedirectResponse("/", 303)
    address = request.client.host if request.client else ""
    form: dict[str, str] = {}
    try:
        check_same_site(request)
        form = await form_of(request)
        following, person = local_path(form.get("next", "/")), form.get("person", "").strip()
        wait_s = desk.limiter.wait_s(address)
        if wait_s > 0:
            raise InvalidRequestError(words("login.wait", seconds=int(wait_s) + 1), field="wait")
        caller = await asyncio.to_thread(desk.sessions.tokens.identify, form.get("token", "").strip())
        if caller is None:
            desk.limiter.failed(address)
            log.warning("A login from %s was refused.", address)
            await asyncio.sleep(0.5)
            raise InvalidRequestError(words("login.wrong"))
        if READ not in caller.scopes:
            raise PermissionDeniedError(words("error.scope", scope=READ))
    except (InvalidRequestError, PermissionDeniedError) as error:
        status = 429 if error.field == "wait" else 403
        following = local_path(form.get("next", "/"))
        person = form.get("person", "")[:80]
        problem = error.message
        return render(request, "login.html.j2", None, status, following=following, problem=problem, person=person)
    desk.limiter.succeeded(address)
    response = RedirectResponse(following, 303)
    set_session(response, desk, desk.sessions.open(caller, person))
    return response


async def logout(request: Request) -> Response:
    desk = desk_of(request)
    session = desk.sessions.read(request.cookies.get(SESSION_COOKIE))
    if session is not None:
        try:
            check_same_site(request)
            check_csrf(session, (await form_of(request)).get("csrf", ""))
        except (InvalidRequestError, PermissionDeniedError) as error:
            return Response(f"{error.message}\n", 403)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(SESSION_COOKIE, secure=desk.config.https, httponly=True, samesite="strict")
    return response


async def language(request: Request) -> Response:
    response = RedirectResponse(local_path(request.query_params.get("next", "/")), 303)
    chosen = request.path_params["language"]
    if chosen in LANGUAGES:
        response.set_cookie(
            LANGUAGE_COOKIE,
            chosen,
            max_age=400 * 86400,
            secure=desk_of(request).config.https,
            httponly=True,
            samesite="strict",
        )
    return response


# -- reviews -------------------------------------------------------------------------------------------------------


def _number(value: Any, name: str) -> float:
    # bool is an int to Python; NaN and infinity are floats to its JSON reader.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise InvalidRequestError("A number is needed.", field=name)
    return float(value)


def _read_defects(desk: Desk, stored: StoredResult, given: Any) -> tuple[Defect, ...]:
    """The corrected list. Labels are those of the recipe, or that the result has; boxes lie in the picture."""
    if not isinstance(given, list) or len(given) > _MOST_BOXES:
        raise InvalidRequestError(f"A list of at most {_MOST_BOXES} defects is needed.", field="defects")
    result = stored.result
    known = desk.recipes.all().get(result.recipe_id)
    labels = set(known.recipe.label_names if known else ()) | {d.label for d in stored.effective_defects}
    return tuple(_read_defect(item, f"defects[{i}]", labels, stored) for i, item in enumerate(given))


def _read_defect(item: Any, field: str, labels: set[str], stored: StoredResult) -> Defect:
    if not isinstance(item, dict):
        raise InvalidRequestError("A defect is an object.", field=field)
    label = item.get("label")
    if labels and label not in labels:
        raise InvalidRequestError(f"'{str(label)[:48]}' is not a label of the recipe.", field=f"{field}.label")
    box = None
    if item.get("box") is not None:
        corners = item["box"]
        if not isinstance(corners, list) or len(corners) != 4:
            raise InvalidRequestError("A box has four corners.", field=f"{field}.box")
        x1, y1, x2, y2 = (_number(value, f"{field}.box") for value in corners)
        width, height = stored.result.image_width, stored.result.image_height
        x1, x2 = max(0.0, x1), min(float(width), x2)
        y1, y2 = max(0.0, y1), min(float(height), y2)
        if x2 - x1 < 1 or y2 - y1 < 1:
            raise InvalidRequestError("A box must cover at least one pixel of the picture.", field=f"{field}.box")
        box = Box(x1=x1, y1=y1, x2=x2, y2=y2)
    try:
        return Defect(
            label=_LABEL.validate_python(label),
            severity=item.get("severity", "major"),
            box=box,
            confidence=_number(item.get("confidence", 1.0), f"{field}.confidence"),
        )
    except ValidationError as error:
        raise InvalidRequestError(f"{error.errors()[0]['msg']}.", field=field) from error


@needs(INSPECT, api=True)
async def review(request: Request, session: Session) -> Response:
    """A person's decision about a result: {verdict, reason, person, defects | null, reviewNumber}."""
    desk, words = desk_of(request), words_of(request)
    content = await json_of(request)
    person = text_field(content, "person", 80)
    if person != session.person and (person or not session.caller):
        session = Session(**{**vars(session), "person": person})
    name = session.recorded_name
    if not name:
        raise InvalidRequestError(words("error.name"), field="person", remedy="")
    try:
        verdict = Verdict(str(content.get("verdict")))
    except ValueError as error:
        raise InvalidRequestError("The verdict must be OK, NG or REVIEW.", field="verdict") from error
    reason = text_field(content, "reason")

    def decide() -> int:
        stored = desk.store.get(request.path_params["result_id"])
        seen = content.get("reviewNumber", 0)
        if (stored.review.number if stored.review else 0) != seen:
            assert stored.review is not None
            raise StaleReviewError(
                words("error.meanwhile", who=stored.review.reviewer, verdict=words(f"verdict.{stored.review.verdict}"))
            )
        before = stored.effective_verdict
        if before is not Verdict.REVIEW and verdict is not before and not reason:
            raise InvalidRequestError(words("error.reason"), field="reason", remedy="")
        given = content.get("defects")
        defects = None if given is None else _read_defects(desk, stored, given)
        if verdict is Verdict.OK and (defects or (defects is None and stored.effective_defects)):
            # A good part has no defects: what the model marked was a false alarm.
            defects = ()
        found = desk.store.review(
            stored.result.result_id, verdict=verdict, reviewer=name, reason=reason, defects=defects
        )
        return found.number

    number = await asyncio.to_thread(decide)
    desk.live.changed()
    response = JSONResponse({"number": number, "reviewer": name})
    # The name is remembered for the next part.
    set_session(response, desk, session)
    return response


# -- recipes -------------------------------------------------------------------------------------------------------


def _read_recipe(content: Any, recipe_id: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{first['msg'].removeprefix('Value error, ')}.", field=where, remedy="") from error
    if recipe.id != recipe_id:
        raise InvalidRequestError("The id of a recipe cannot be changed.", field="id", remedy="")
    return recipe


@needs(ADMIN, api=True)
async def put_recipe(request: Request, session: Session) -> Response:
    """A new version: {recipe, expectedVersion, why, person}."""
    desk, words = desk_of(request), words_of(request)
    content = await json_of(request)
    person = text_field(content, "person", 80)
    if person:
        session = Session(**{**vars(session), "person": person})
    if not session.recorded_name:
        raise InvalidRequestError(words("error.name"), field="person", remedy="")
    why = text_field(content, "why")
    if not why:
        raise InvalidRequestError(words("error.why"), field="why", remedy="")
    expected = content.get("expectedVersion")
    if isinstance(expected, bool) or not isinstance(expected, int):
        raise InvalidRequestError("The version that was edited is missing.", field="expectedVersion")
    recipe = _read_recipe(content.get("recipe"), request.path_params["recipe_id"])

    def store() -> int:
        known = desk.recipes.get(recipe.id)
        # The first stored version of a recipe that came as a file follows the file's.
        floor = known.recipe.version + (1 if not known.stored_version else 0)
        changed = recipe.model_copy(update={"version": floor})
        if changed.model_copy(update={"version": known.recipe.version}) == known.recipe:
            return known.recipe.version
        return desk.store.put_recipe(changed, who=session.recorded_name, why=why, expected_version=expected)

    version = await asyncio.to_thread(store)
    desk.recipes.forget()
    response = JSONResponse({"version": version})
    set_session(response, desk, session)
    return response


def _label_limits(recipe: Recipe, thresholds: Thresholds) -> dict[str, float]:
    return {
        label.name: thresholds.defect_confidence if label.min_confidence is None else label.min_confidence
        for label in recipe.labels
    }


@needs(READ, api=True)
async def recipe_effect(request: Request, session: Session) -> Response:
    """What thresholds would have done to stored results, beside what the present ones do."""
    desk = desk_of(request)
    query = request.query_params
    days = whole_number(query.get("days", ""), "days", 30, 0, 30)
    if days not in _DAYS:
        raise InvalidRequestError(f"{days} days are not offered.", field="days")

    def read() -> dict[str, Any]:
        recipe = desk.recipes.get(request.path_params["recipe_id"]).recipe
        now = recipe.thresholds
        try:
            values = {name: float(query.get(name, getattr(now, name))) for name in Thresholds.model_fields}
            tried = Thresholds.model_validate(values)
        except (ValidationError, ValueError) as error:
            raise InvalidRequestError("Thresholds are numbers from 0 to 1, ok_below not above ng_above.") from error
        engine = queries.newest_engine(desk.store, recipe.id)
        where = ResultFilter(
            recipe_id=recipe.id,
            engine_sha256=engine or None,
            since=datetime.now(UTC) - timedelta(days=days) if days else None,
        )
        ok_below = {version: t.ok_below for version, t in desk.recipes.thresholds(recipe.id).items()}
        found = queries.scores(desk.store, where, ok_below, _MOST_SCORES)
        return {
            "results": len(found.p),
            "errors": found.errors,
            "truncated": found.truncated,
            "reviewed": {"OK": int((found.truth == 0).sum()), "NG": int((found.truth == 1).sum())},
            "engine": engine,
            "now": as_json(effect(found, now)),
            "tried": as_json(effect(found, tried)),
            "histogram": histogram(found),
            "boxes": boxes_hidden(queries.confidences(desk.store, where), _label_limits(recipe, tried)),
        }

    return JSONResponse(await asyncio.to_thread(read))
