"""One image: a verdict or an answer, and the picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.draw import draw_boxes, draw_result, save_picture
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.palette import with_extra_labels
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Answer, InspectionResult, RequestInfo
from auroraedge.report.backend import LocalBackend, ServerBackend
from auroraedge.report.journal import read_file


@dataclass(frozen=True, kw_only=True)
class SingleOutcome:
    """`result` for an inspection, `answer` for a prompt; `picture` where one was written."""

    recipe: Recipe
    result: InspectionResult | None = None
    answer: Answer | None = None
    picture: Path | None = None


def inspect_file(
    backend: LocalBackend | ServerBackend,
    image: Path,
    recipe: str,
    *,
    reference: Path | None = None,
    prompt: str | None = None,
    picture: Path | None = None,
    language: str = "en",
    request: RequestInfo | None = None,
) -> SingleOutcome:
    """Inspects one file, or asks `prompt` about it, and writes the annotated picture to `picture` (.png or .jpg).

    Raises AuroraEdgeError for what cannot be inspected, and InvalidRequestError when `picture` is one of the inputs.
    """
    chosen = backend.recipe(recipe)
    for given in (image, reference):
        if picture is not None and given is not None and picture.resolve() == given.resolve():
            raise InvalidRequestError(
                f"The picture would replace the input {given}.", field="out", remedy="Name another file."
            )
    content = read_file(image, "image")
    golden = read_file(reference, "reference") if reference is not None else None
    if prompt is not None:
        answer = backend.ask(content, prompt, chosen, reference=golden)
        outcome = SingleOutcome(recipe=chosen, answer=answer, picture=picture)
    else:
        result = backend.inspect(
            content, chosen, reference=golden, request=request or RequestInfo(), image_name=image.name
        )
        outcome = SingleOutcome(recipe=chosen, result=result, picture=picture)
    if picture is not None:
        _draw(outcome, content, golden, image.name, picture, language)
    return outcome


def _draw(
    outcome: SingleOutcome, content: bytes, golden: bytes | None, name: str, picture: Path, language: str
) -> None:
    labels = outcome.recipe.label_names
    titles = {spec.name: spec.title[language] for spec in outcome.recipe.labels if spec.title.get(language)}
    pixels = decode_image(content).pixels
    result = outcome.result or _as_result(outcome.answer, outcome.recipe, name)
    if result is not None:
        used = golden is not None and outcome.recipe.golden_reference != "none"
        reference = decode_image(golden, field="reference").pixels if used and golden is not None else None
        drawn = draw_result(pixels, result, labels=labels, reference=reference, titles=titles)
    else:
        assert outcome.answer is not None
        drawn = pixels.copy()
        defects = outcome.answer.defects
        draw_boxes(drawn, defects, with_extra_labels(labels, (d.label for d in defects)), titles=titles)
    save_picture(picture, drawn)


def _as_result(answer: Answer | None, recipe: Recipe, name: str) -> InspectionResult | None:
    """An answer with a verdict, in the form that can be drawn; None for free text, which has no verdict."""
    if answer is None or answer.verdict is None:
        return None
    return InspectionResult(
        verdict=answer.verdict,
        ng_probability=answer.ng_probability,
        recipe_id=recipe.id,
        recipe_version=recipe.version,
        defects=answer.defects,
        predicted_class=answer.predicted_class,
        image_name=f"{name}: {answer.prompt}",
    )
