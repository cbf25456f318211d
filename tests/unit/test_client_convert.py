"""Protobuf <-> typed objects: what goes over the wire comes back equal, and what cannot be used is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.client.models import ServerInfo, ServerLimits
from auroraedge.errors import AuroraEdgeError, InvalidImageError, InvalidRequestError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import LabelSpec, Recipe, Severity, Thresholds, Tiling, list_recipes
from auroraedge.inspection.results import (
    Answer,
    Box,
    Defect,
    ErrorDetail,
    GeneratedToken,
    InspectionResult,
    RequestInfo,
    StageTimings,
    Verdict,
)

unit = st.floats(0, 1)
amount = st.floats(0, 1e9)
text = st.text(max_size=40)
count = st.integers(0, 2**32 - 1)
moment = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3.5))]))
boxes = st.builds(Box, x1=amount, y1=amount, x2=amount, y2=amount)
defects = st.builds(Defect, label=text, severity=st.sampled_from(Severity), box=st.none() | boxes, confidence=unit)
timings = st.builds(StageTimings, **dict.fromkeys(StageTimings.model_fields, amount))
infos = st.builds(
    RequestInfo,
    **dict.fromkeys(("request_id", "part_id", "lot", "line", "station", "camera", "job"), text),
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
    model_id=text,
    engine_sha256=text,
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
    with pytest.raises(InvalidImageError, match="Pass a uint8 array"):
        convert.frame_to_proto(image)


def test_missing_file_is_named() -> None:
    with pytest.raises(InvalidImageError, match=r"missing\.png cannot be read: No such file"):
        convert.frame_to_proto("missing.png")
