"""Protobuf <-> typed objects: what goes over the wire comes back equal, and what cannot be used is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auroraedge._proto.inspection.v1 import admin_pb2, results_pb2
from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert, convert_stored
from auroraedge.client.models import (
    EngineSwap,
    RawPixels,
    RecipeChange,
    ResultPage,
    ResultQuery,
    Review,
    ServerInfo,
    ServerLimits,
    ServerStatus,
    StoredImage,
    StoredResult,
)
from auroraedge.errors import AuroraEdgeError, InvalidImageError, InvalidRequestError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.raw import PIXEL_FORMATS
from auroraedge.inspection.recipe import LabelSpec, Recipe, Severity, Thresholds, Tiling, list_recipes
from auroraedge.inspection.results import (
    Answer,
    Box,
    Defect,
    ErrorDetail,
    GeneratedToken,
    InspectionResult,
    Receipt,
    Region,
    RegionVerdict,
    RequestInfo,
    StageTimings,
    Verdict,
)
from auroraedge.store.types import ResultFilter
from auroraedge.store.types import Review as StoreReview
from auroraedge.store.types import StoredResult as StoreRow

unit = st.floats(0, 1)
amount = st.floats(0, 1e9)
text = st.text(max_size=40)
count = st.integers(0, 2**32 - 1)
moment = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3.5))]))
boxes = st.builds(Box, x1=amount, y1=amount, x2=amount, y2=amount)
defects = st.builds(
    Defect, label=text, severity=st.sampled_from(Severity), box=st.none() | boxes, confidence=unit, region=text
)
regions = st.builds(
    Region, name=text, x=count, y=count, width=st.integers(1, 2**32 - 1), height=st.integers(1, 2**32 - 1)
)
found_regions = st.builds(
    RegionVerdict, region=regions, verdict=st.sampled_from(Verdict), ng_probability=unit, views=count
)
stamps = moment.filter(lambda m: 2 < m.year < 9998)
receipts = st.builds(
    Receipt, stored=st.booleans(), seq=st.integers(0, 2**63), stored_at=st.none() | stamps, replayed=st.booleans()
)
timings = st.builds(StageTimings, **dict.fromkeys(StageTimings.model_fields, amount))
infos = st.builds(
    RequestInfo,
    **dict.fromkeys(("request_id", "part_id", "lot", "line", "station", "camera", "job", "trigger_id"), text),
    exposure_us=st.none() | amount,
    captured_at=st.none() | moment.filter(lambda m: 2 < m.year < 9998),
)


@st.composite
def threshold_sets(draw: st.DrawFn) -> Thresholds:
    low, high = sorted((draw(unit), draw(unit)))
    return Thresholds(ok_below=low, ng_above=high, defect_confidence=draw(unit))


results = st.builds(
    InspectionResult,
    created_at=moment.filter(lambda m: 2 < m.year < 9998),
    request=infos,
    verdict=st.sampled_from(Verdict),
    ng_probability=st.none() | unit,
    recipe_version=count,
    thresholds=st.none() | threshold_sets(),
    defects=st.lists(defects, max_size=3).map(tuple),
    predicted_class=st.none() | text,
    class_probability=st.none() | unit,
    image_width=count,
    image_height=count,
    views=count,
    is_partial=st.booleans(),
    is_simulated=st.booleans(),
    reference_used=st.booleans(),
    timings=timings,
    warnings=st.lists(text, max_size=3).map(tuple),
    error=st.none() | st.builds(ErrorDetail, reason=text, message=text, remedy=text, field=text),
    regions=st.lists(found_regions, max_size=2).map(tuple),
    receipt=st.none() | receipts,
    **dict.fromkeys(
        (
            "result_id",
            "recipe_id",
            "recipe_sha256",
            "answer_text",
            "text",
            "model_id",
            "engine_sha256",
            "image_sha256",
            "image_name",
        ),
        text,
    ),
)

answers = st.builds(
    Answer,
    kind=st.sampled_from(PromptKind),
    prompt=text,
    text=text,
    verdict=st.none() | st.sampled_from(Verdict),
    ng_probability=st.none() | unit,
    defects=st.lists(defects, max_size=3).map(tuple),
    count=st.none() | count,
    predicted_class=st.none() | text,
    timings=timings,
    request=infos,
    recipe_id=text,
    recipe_version=count,
    recipe_sha256=text,
    model_id=text,
    engine_sha256=text,
    image_sha256=text,
    image_width=count,
    image_height=count,
)


@settings(max_examples=60, deadline=None)
@given(results)
def test_result_comes_back_equal(result: InspectionResult) -> None:
    message = pb.InspectionResult.FromString(convert.result_to_proto(result).SerializeToString())
    assert convert.result_from_proto(message) == result


@settings(max_examples=30, deadline=None)
@given(answers)
def test_answer_comes_back_equal(answer: Answer) -> None:
    message = pb.Answer.FromString(convert.answer_to_proto(answer).SerializeToString())
    assert convert.answer_from_proto(message) == answer


def test_token_comes_back_equal() -> None:
    token = GeneratedToken(text=" ü", token_id=7, index=3, done=True)
    assert convert.token_from_proto(convert.token_to_proto(token)) == token


def test_every_result_field_is_on_the_wire() -> None:
    """A field added to InspectionResult and forgotten in the .proto would be lost without a word."""
    for model, message in (
        (InspectionResult, pb.InspectionResult),
        (RequestInfo, pb.RequestInfo),
        (Defect, pb.Defect),
        (Box, pb.Box),
        (StageTimings, pb.StageTimings),
        (Thresholds, pb.Thresholds),
        (ErrorDetail, pb.ErrorDetail),
        (Tiling, pb.Tiling),
        (LabelSpec, pb.Label),
        (Answer, pb.Answer),
        (GeneratedToken, pb.GenerateResponse),
        (ServerInfo, pb.GetServerInfoResponse),
        (ServerLimits, pb.ServerLimits),
        (Region, pb.Region),
        (RegionVerdict, pb.RegionVerdict),
        (Receipt, pb.Receipt),
        (ServerStatus, admin_pb2.GetStatusResponse),
        (RecipeChange, admin_pb2.RecipeChange),
        (EngineSwap, admin_pb2.SwapEngineResponse),
        (ResultQuery, results_pb2.ResultFilter),
        (StoredResult, results_pb2.StoredResult),
        (StoredImage, results_pb2.GetImageResponse),
        (ResultPage, results_pb2.ListResultsResponse),
    ):
        assert set(model.model_fields) == set(message.DESCRIPTOR.fields_by_name), model.__name__
    assert set(Recipe.model_fields) == set(pb.Recipe.DESCRIPTOR.fields_by_name) - {"sha256"}


def test_recipes_come_back_equal_with_their_hash() -> None:
    own = Recipe(
        id="own",
        version=7,
        title="Überprüfung",
        task="classify",
        labels=(LabelSpec(name="kratzer", severity=Severity.MINOR, title={"zh": "划伤"}, min_confidence=0.0),),
        thresholds=Thresholds(ok_below=0.1, ng_above=0.9, defect_confidence=0.3),
        golden_reference="optional",
        tiling=Tiling(mode="square", size_px=100, overlap_px=7, max_views=3),
        merge_iou=0.25,
        reference_shift_px=3,
    )
    recipes = [*list_recipes(), own]
    assert len(recipes) > 4
    for recipe in recipes:
        message = convert.recipe_to_proto(recipe)
        assert convert.recipe_from_proto(message) == recipe
        assert message.sha256 == recipe.sha256


def test_server_info_comes_back_equal() -> None:
    info = ServerInfo(
        server_version="1",
        model_id="m",
        engine_sha256="ab",
        target="cpu",
        precision={"vision": "int8"},
        ready_at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        start_seconds=1.25,
        limits=ServerLimits(
            max_message_bytes=2**40,
            max_pixels=2**33,
            queue_frames=3,
            queue_bytes=2**41,
            max_batch=2,
            stream_window=5,
            max_new_tokens=6,
        ),
    )
    assert convert.server_info_from_proto(convert.server_info_to_proto(info)) == info


@pytest.mark.parametrize("number", [0, 99])
def test_unset_or_unknown_verdict_is_never_a_verdict(number: int) -> None:
    message = convert.result_to_proto(InspectionResult(verdict=Verdict.OK))
    message.verdict = number  # type: ignore[assignment]
    with pytest.raises(AuroraEdgeError, match="VERDICT"):
        convert.result_from_proto(message)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.RequestInfo(part_id="x" * 257), "info.part_id"),
        (pb.RequestInfo(exposure_us=-1.0), "info.exposure_us"),
        (pb.RequestInfo(exposure_us=float("nan")), "info.exposure_us"),
    ],
)
def test_request_info_is_checked(message: pb.RequestInfo, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        convert.request_info_from_proto(message)
    assert caught.value.field == field


def test_timestamp_out_of_range_is_refused() -> None:
    message = pb.RequestInfo()
    message.captured_at.seconds = 10**15
    with pytest.raises(InvalidRequestError) as caught:
        convert.request_info_from_proto(message)
    assert caught.value.field == "info.captured_at"


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)],
)
def test_arrays_that_are_no_frames(image: np.ndarray) -> None:
    with pytest.raises(InvalidImageError, match="Pass uint8"):
        convert.frame_to_proto(image)


def test_pixel_formats_are_the_same_everywhere() -> None:
    names = {name.removeprefix("PIXEL_FORMAT_") for name in pb.PixelFormat.DESCRIPTOR.values_by_name}
    assert names - {"UNSPECIFIED"} == set(PIXEL_FORMATS)


@pytest.mark.parametrize(
    ("image", "pixel_format", "expected"),
    [
        (np.zeros((4, 6), np.uint8), "rgb8", pb.PIXEL_FORMAT_MONO8),
        (np.zeros((4, 6), np.uint8), "bayer_gb8", pb.PIXEL_FORMAT_BAYER_GB8),
        (np.full((4, 6), 258, np.uint16), "mono12", pb.PIXEL_FORMAT_MONO12),
        (np.full((4, 6), 258, ">u2"), "bayer_rg16", pb.PIXEL_FORMAT_BAYER_RG16),
        (np.zeros((4, 6, 3), np.uint8), "bgr8", pb.PIXEL_FORMAT_BGR8),
        (RawPixels(data=bytes(36), width=6, height=4, pixel_format="mono12p"), "rgb8", pb.PIXEL_FORMAT_MONO12P),
    ],
)
def test_arrays_say_what_they_are(image: np.ndarray | RawPixels, pixel_format: str, expected: int) -> None:
    raw = convert.frame_to_proto(image, pixel_format=pixel_format).raw
    assert (raw.width, raw.height, raw.pixel_format) == (6, 4, expected)
    if getattr(image, "dtype", None) == np.uint16:
        assert raw.pixels == b"\x02\x01" * 24


@pytest.mark.parametrize("pixel_format", ["mono12p", "mono10", "rgb8p", "yuv", ""])
def test_arrays_of_another_format_are_refused(pixel_format: str) -> None:
    with pytest.raises(InvalidImageError):
        convert.frame_to_proto(np.zeros((4, 4), np.uint8), pixel_format=pixel_format)


# --- stored results and administration -------------------------------------------------------------------------------


queries = st.builds(
    ResultQuery,
    since=st.none() | stamps,
    until=st.none() | stamps,
    **dict.fromkeys(("lot", "line", "station", "camera", "job", "part_id", "recipe_id", "engine_sha256"), text),
    verdicts=st.lists(st.sampled_from(Verdict), max_size=3).map(tuple),
    simulated=st.none() | st.booleans(),
    reviewed=st.none() | st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(queries)
def test_query_comes_back_equal(query: ResultQuery) -> None:
    message = results_pb2.ResultFilter.FromString(convert_stored.filter_to_proto(query).SerializeToString())
    assert convert_stored.query_from_proto(message) == query


def test_a_query_is_understood_by_the_store() -> None:
    query = ResultQuery(lot="L", verdicts=(Verdict.NG,), reviewed=False, since=datetime(2026, 1, 1, tzinfo=UTC))
    conditions = ResultFilter(**convert_stored.store_conditions(query))
    assert (conditions.lot, conditions.line, conditions.reviewed) == ("L", None, False)
    assert conditions.effective_verdicts == (Verdict.NG,) and conditions.since == query.since


def test_stored_results_come_back_with_receipt_and_review() -> None:
    result = InspectionResult(verdict=Verdict.NG, image_sha256="a" * 64)
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    defect = Defect(label="x", severity=Severity.MAJOR, confidence=0.5)
    for corrected in (None, (), (defect,)):
        review = StoreReview(
            number=1,
            result_id=result.result_id,
            at=at,
            reviewer="R",
            verdict=Verdict.OK,
            reason="dust",
            defects=corrected,
        )
        row = StoreRow(
            seq=9, result=result, stored_at=at, has_image=True, image_sha256="b" * 64, review=review, replayed=True
        )
        message = results_pb2.StoredResult.FromString(convert_stored.stored_to_proto(row).SerializeToString())
        assert convert_stored.stored_from_proto(message) == StoredResult(
            result=result.model_copy(update={"receipt": Receipt(stored=True, seq=9, stored_at=at, replayed=True)}),
            effective_verdict=Verdict.OK,
            review=Review(verdict=Verdict.OK, reviewer="R", reason="dust", created_at=at, defects=corrected),
            has_image=True,
            image_sha256="b" * 64,
        )


def test_status_and_changes_come_back_equal() -> None:
    status = ServerStatus(
        state="draining", started_at=datetime(2026, 1, 2, tzinfo=UTC), server_version="1", model_id="m",
        engine_sha256="e", queue_frames=1, queue_bytes=2**40, computing=2, streams=3, verdicts={"OK": 5},
        refused={"QUEUE_FULL": 6}, dropped=7, replayed=8, store="failing", store_error="full", last_seq=2**40,
        shared_memory_leases=9, shared_memory_bytes=10, rss_bytes=2**35,
    )  # fmt: skip
    assert convert_stored.status_from_proto(convert_stored.status_to_proto(status)) == status
    change = RecipeChange(recipe_id="r", kind="removed", old_version=3, new_version=0, old_sha256="o", new_sha256="")
    assert convert_stored.change_from_proto(convert_stored.change_to_proto(change)) == change
    with pytest.raises(InvalidRequestError):
        convert_stored.change_from_proto(admin_pb2.RecipeChange(recipe_id="r"))


def test_missing_file_is_named() -> None:
    with pytest.raises(InvalidImageError, match=r"missing\.png cannot be read: No such file"):
        convert.frame_to_proto("missing.png")
