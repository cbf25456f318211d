"""The pages: everything that is only looked at."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from auroraedge.errors import InvalidRequestError, ResultNotFoundError
from auroraedge.inspection.recipe import Severity
from auroraedge.inspection.results import Defect, Verdict
from auroraedge.store import ResultFilter, StoredResult
from service.ui import queries
from service.ui.access import INSPECT, READ, Session
from service.ui.filters import TEXT_FIELDS, PageFilter
from service.ui.live import WINDOWS, encode_event
from service.ui.present import defects_json, result_json
from service.ui.training_set import reviewed_filter, training_set
from service.ui.web import Desk, desk_of, needs, render, whole_number, words_of

_PAGE = 50
_CAMERA_DAYS = 7
_SESSION_CHECK_S = 15.0


def _hours(request: Request) -> int:
    hours = whole_number(request.query_params.get("hours", ""), "hours", 8, 1, 24)
    if hours not in WINDOWS:
        raise InvalidRequestError(f"{hours} hours are not offered.", field="hours", remedy="Use 1, 8 or 24.")
    return hours


@needs(READ)
async def live(request: Request, session: Session) -> Response:
    desk, words = desk_of(request), words_of(request)
    hours = _hours(request)

    def read() -> tuple[list[dict[str, Any]], dict[str, Any], int]:
        seq = desk.store.last_seq()
        since = datetime.now(UTC) - timedelta(days=_CAMERA_DAYS)
        newest = queries.newest_per_camera(desk.store, since)
        tiles = [result_json(desk.recipes, stored, words.language) for stored in newest]
        return tiles, desk.live.figures.read(hours), seq

    tiles, figures, seq = await asyncio.to_thread(read)
    start = {"tiles": tiles, "figures": figures, "seq": seq, "now": datetime.now(UTC).isoformat()}
    return render(request, "live.html.j2", session, start=start, hours=hours, windows=list(WINDOWS))


@needs(READ, api=True)
async def events(request: Request, session: Session) -> Response:
    """Server-sent events. The stream ends when the session does, e.g. because its token was withdrawn."""
    desk, words = desk_of(request), words_of(request)
    hours = _hours(request)
    if desk.live.full:
        return Response("Too many pages are open.\n", 503, {"retry-after": "10"})
    cookie = request.cookies.get("auroraedge_session")

    async def stream() -> Any:
        loop = asyncio.get_running_loop()
        checked = loop.time()
        yield b"retry: 2000\n\n"
        async for event, data, seq in desk.live.events(hours):
            if desk.sessions.tokens is not None and loop.time() - checked > _SESSION_CHECK_S:
                checked = loop.time()
                if await asyncio.to_thread(desk.sessions.read, cookie) is None:
                    yield encode_event("ended", {})
                    return
            if isinstance(data, StoredResult):
                data = await asyncio.to_thread(result_json, desk.recipes, data, words.language)
            yield encode_event(event, data, seq)

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


@needs(READ, api=True)
async def picture(request: Request, session: Session) -> Response:
    desk = desk_of(request)
    size = whole_number(request.query_params.get("size", ""), "size", 0, 0, 4096)
    found = await asyncio.to_thread(desk.pictures.get, request.path_params["sha256"], size)
    if found is None:
        return Response("There is no such picture.\n", 404)
    # The address is that of the content, so it can never be another picture.
    headers = {"cache-control": "private, max-age=86400, immutable"}
    return Response(found.content, media_type=found.media_type, headers=headers)


def _choices(desk: Desk) -> dict[str, list[str]]:
    return {name: queries.known_values(desk.store, name) for name in ("line", "station", "camera", "lot", "recipe_id")}


@needs(READ)
async def history(request: Request, session: Session) -> Response:
    desk, words = desk_of(request), words_of(request)
    chosen = PageFilter.of(request.query_params)
    where = chosen.to_filter()
    before = whole_number(request.query_params.get("before", ""), "before", 0, 0, 2**62)

    def read() -> dict[str, Any]:
        found = list(desk.store.results(where, after_seq=before, limit=_PAGE + 1, newest_first=True))
        rows = [result_json(desk.recipes, stored, words.language) for stored in found[:_PAGE]]
        return {
            "rows": rows,
            "older": found[_PAGE - 1].seq if len(found) > _PAGE else 0,
            "counts": desk.store.verdict_counts(where, effective=True),
            "choices": _choices(desk),
        }

    values = await asyncio.to_thread(read)
    return render(request, "history.html.j2", session, chosen=chosen, before=before, fields=TEXT_FIELDS, **values)


def _detail(desk: Desk, stored: StoredResult, language: str) -> dict[str, Any]:
    result = stored.result
    recipe = desk.recipes.version(result.recipe_id, result.recipe_version)
    known = desk.recipes.all().get(result.recipe_id)
    labels = known.recipe.labels if known else ()
    titles = desk.recipes.titles(result.recipe_id, language)
    styles = desk.recipes.styles(result.recipe_id, [d.label for d in stored.effective_defects])
    shown = result_json(desk.recipes, stored, language)
    has_reference = bool(stored.reference_sha256) and desk.store.image(stored.reference_sha256 or "") is not None
    shown["reference"] = stored.reference_sha256 if has_reference else None
    defects = shown["defects"]
    if not defects and result.predicted_class and stored.review is None:
        # A class that the model gave the whole frame can be corrected like a defect; it has no box.
        found = Defect(
            label=result.predicted_class,
            severity=known.recipe.label(result.predicted_class).severity
            if known and result.predicted_class in known.recipe.label_names
            else Severity.MAJOR,
            confidence=result.class_probability or 0.0,
        )
        defects = defects_json(desk.recipes, result.recipe_id, [found], language)
    return {
        "stored": stored,
        "shown": shown,
        "recipe": recipe,
        "reviews": desk.store.reviews(result.result_id),
        "editor": {
            **shown,
            "defects": defects,
            "labels": [
                {
                    "name": name,
                    "title": titles.get(name, name.replace("_", " ")),
                    "severity": next((label.severity.value for label in labels if label.name == name), "major"),
                    "color": style.hex,
                    "dash": list(style.dash),
                }
                for name, style in styles.items()
            ],
            "reviewNumber": stored.review.number if stored.review else 0,
        },
    }


@needs(READ)
async def result(request: Request, session: Session) -> Response:
    desk, words = desk_of(request), words_of(request)

    def read() -> dict[str, Any]:
        stored = desk.store.get(request.path_params["result_id"])
        older, newer = queries.neighbours(desk.store, stored.seq)
        return {**_detail(desk, stored, words.language), "older": older, "newer": newer}

    values = await asyncio.to_thread(read)
    return render(request, "result.html.j2", session, queue=None, **values)


@needs(READ)
async def review(request: Request, session: Session) -> Response:
    """The queue: the result named by `at`, else the oldest one that waits."""
    desk, words = desk_of(request), words_of(request)
    chosen = PageFilter.of({k: v for k, v in request.query_params.items() if k not in ("verdict", "reviewed")})
    # REVIEW after review too: a person may leave a part to someone else.
    where = ResultFilter(**{**vars(chosen.to_filter()), "effective_verdicts": (Verdict.REVIEW,)})
    after = whole_number(request.query_params.get("after", ""), "after", 0, 0, 2**62)
    decided = request.query_params.get("decided", "")

    def read() -> dict[str, Any]:
        waiting = desk.store.count(where)
        found = list(desk.store.results(where, after_seq=after, limit=13))
        values: dict[str, Any] = {"waiting": waiting, "choices": _choices(desk)}
        values["next_after"] = found[0].seq if found else 0
        values["upcoming"] = [result_json(desk.recipes, stored, words.language) for stored in found[1:]]
        try:
            values["decided"] = desk.store.get(decided) if decided else None
        except ResultNotFoundError:
            values["decided"] = None
        return values | (_detail(desk, found[0], words.language) if found else {})

    values = await asyncio.to_thread(read)
    name = "result.html.j2" if "stored" in values else "review_empty.html.j2"
    queue = {key: values.pop(key) for key in ("waiting", "next_after", "upcoming", "choices", "decided")}
    queue |= {"chosen": chosen, "after": after}
    return render(request, name, session, queue=queue, older="", newer="", **values)


@needs(READ)
async def recipes(request: Request, session: Session) -> Response:
    desk = desk_of(request)
    known = await asyncio.to_thread(desk.recipes.all)
    state = await asyncio.to_thread(desk.probe.read)
    return render(request, "recipes.html.j2", session, known=list(known.values()), state=state)


@needs(READ)
async def recipe(request: Request, session: Session) -> Response:
    desk, words = desk_of(request), words_of(request)

    def read() -> dict[str, Any]:
        # Whoever edits starts from the newest version.
        desk.recipes.forget()
        known = desk.recipes.get(request.path_params["recipe_id"])
        history = list(reversed(desk.store.recipe_history(known.recipe.id)))
        return {"known": known, "history": history, "titles": desk.recipes.titles(known.recipe.id, words.language)}

    values = await asyncio.to_thread(read)
    state = await asyncio.to_thread(desk.probe.read)
    used = state.recipes.get(values["known"].recipe.id)
    return render(request, "recipe.html.j2", session, used=used, **values)


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)} if len(values) else {}


@needs(READ)
async def engine(request: Request, session: Session) -> Response:
    desk = desk_of(request)

    def read() -> dict[str, Any]:
        latencies = queries.latencies(desk.store)
        return {
            "state": desk.probe.read(),
            "history": list(reversed(desk.store.engines())),
            "latencies": {name: _percentiles(values) for name, values in latencies.items()},
            "measured": len(latencies["total_ms"]),
            "last_seq": desk.store.last_seq(),
            "store_shown": desk.store.database.shown,
        }

    return render(request, "engine.html.j2", session, **await asyncio.to_thread(read))


@needs(READ)
async def audit(request: Request, session: Session) -> Response:
    desk = desk_of(request)
    before = whole_number(request.query_params.get("before", ""), "before", 0, 0, 2**62)
    chosen = {name: request.query_params.get(name, "").strip()[:256] for name in ("who", "action", "subject")}
    found = await asyncio.to_thread(
        lambda: queries.audit_page(desk.store, before=before or None, limit=_PAGE + 1, **chosen)
    )
    older = found[_PAGE - 1].number if len(found) > _PAGE else 0
    return render(request, "audit.html.j2", session, entries=found[:_PAGE], older=older, chosen=chosen, before=before)


@needs(READ)
async def training(request: Request, session: Session) -> Response:
    desk = desk_of(request)
    chosen = PageFilter.of(request.query_params)
    where = reviewed_filter(chosen.to_filter())

    def read() -> dict[str, Any]:
        return {"counts": desk.store.verdict_counts(where, effective=True), "choices": _choices(desk)}

    return render(
        request, "training.html.j2", session, chosen=chosen, fields=TEXT_FIELDS, **await asyncio.to_thread(read)
    )


@needs(INSPECT)
async def training_download(request: Request, session: Session) -> Response:
    """The set as a zip. Audited: pictures leave the house with it."""
    desk = desk_of(request)
    chosen = PageFilter.of(request.query_params)
    where = chosen.to_filter()

    def note() -> int:
        number = desk.store.count(reviewed_filter(where))
        desk.store.audit(
            who=session.recorded_name or "operator's page",
            action="training_set.export",
            subject="results",
            new={"filter": chosen.values, "results": number},
        )
        return number

    await asyncio.to_thread(note)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    headers = {"content-disposition": f'attachment; filename="training-set-{stamp}.zip"'}
    return StreamingResponse(training_set(desk.store, where), media_type="application/zip", headers=headers)
