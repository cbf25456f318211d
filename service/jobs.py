"""From a request to the job of the inspector; shared by the unary calls and the camera sessions."""

from __future__ import annotations

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.inspection.prompts import parse_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Answer, ErrorDetail, InspectionResult, RequestInfo, error_result
from auroraedge.runtime import FrameItem, InspectionJob, Inspector
from service.frames import Intake, in_request_terms, regions_from
from service.recipes import RecipeBook

MAX_NAME_CHARS = 1024
MAX_ITEMS = 32

Outcome = InspectionResult | Answer | ErrorDetail


def check_name(image_name: str) -> str:
    if len(image_name) > MAX_NAME_CHARS:
        raise InvalidRequestError(
            f"The name has {len(image_name)} characters; the limit is {MAX_NAME_CHARS}.", field="image_name"
        )
    return image_name


def info_from(request: pb.InspectRequest | pb.GenerateRequest | pb.InspectManyRequest) -> RequestInfo:
    return convert.request_info_from_proto(request.info) if request.HasField("info") else RequestInfo()


def job_from(request: pb.InspectRequest | pb.GenerateRequest, recipe: Recipe, intake: Intake) -> InspectionJob:
    """The checked job behind a request. Raises InvalidRequestError and its kin for a field that cannot be used."""
    inspects = isinstance(request, pb.InspectRequest)
    return InspectionJob(
        image=intake.source(request.frame, "frame"),
        recipe=recipe,
        reference=intake.reference(request),
        request=info_from(request),
        image_name=check_name(request.image_name) if inspects else "",
        regions=regions_from(request.regions) if inspects else (),
    )


def compares(job: InspectionJob) -> bool:
    """Whether the model sees a golden sample beside the frame; the prompt has to say so."""
    return job.compares


class ManyJob:
    """Several recipes and prompts on one frame: what can be checked at once is checked here."""

    def __init__(self, request: pb.InspectManyRequest, recipes: RecipeBook, intake: Intake) -> None:
        """Raises InvalidRequestError and its kin for what concerns all items; an item's own fault is kept for later."""
        if not 1 <= len(request.items) <= MAX_ITEMS:
            raise InvalidRequestError(
                f"There are {len(request.items)} items; 1 to {MAX_ITEMS} can be had.", field="items"
            )
        self.image = intake.source(request.frame, "frame")
        self.reference = intake.reference(request)
        self.info = info_from(request)
        self.image_name = check_name(request.image_name)
        self._request, self._recipes = request, recipes
        self._shared_regions = regions_from(request.regions)
        self._known: list[Recipe | None] = []
        self._infos: list[RequestInfo] = []
        self._items: list[FrameItem | AuroraEdgeError] = []
        for index, item in enumerate(request.items):
            recipe = None
            info = self.info.model_copy(update={"request_id": ""})
            try:
                info = self._info(index, item)
                recipe = recipes.get(item.recipe_id, item.recipe_version)
                found: FrameItem | AuroraEdgeError = self._item(item, recipe, info)
            except AuroraEdgeError as error:
                found = error
            self._known.append(recipe)
            self._infos.append(info)
            self._items.append(found)

    @property
    def infos(self) -> list[RequestInfo]:
        """Where each item's outcome comes from, with its own request id."""
        return self._infos

    def _info(self, index: int, item: pb.InspectItem) -> RequestInfo:
        own = item.request_id or (f"{self.info.request_id}/{index}" if self.info.request_id else "")
        message = pb.RequestInfo()
        message.CopyFrom(self._request.info)
        message.request_id = own
        return convert.request_info_from_proto(message)

    def _item(self, item: pb.InspectItem, recipe: Recipe, info: RequestInfo) -> FrameItem:
        compared = self.reference is not None and recipe.golden_reference != "none"
        return FrameItem(
            recipe=recipe,
            prompt=parse_prompt(item.prompt, recipe, reference=compared) if item.prompt else None,
            regions=regions_from(item.regions) or self._shared_regions,
            request=info,
        )

    def run(self, inspector: Inspector) -> list[Outcome]:
        """One outcome for each item, in order. Raises AuroraEdgeError for a frame that cannot be used."""
        wanted = [item for item in self._items if isinstance(item, FrameItem)]
        found = iter(
            inspector.inspect_many(self.image, wanted, reference=self.reference, image_name=self.image_name)
            if wanted
            else []
        )
        outcomes = (next(found) if isinstance(item, FrameItem) else item for item in self._items)
        return [self._outcome(index, outcome) for index, outcome in enumerate(outcomes)]

    def _outcome(self, index: int, outcome: InspectionResult | Answer | AuroraEdgeError) -> Outcome:
        if not isinstance(outcome, AuroraEdgeError):
            return outcome
        error = in_request_terms(outcome)
        if error.field and not error.field.startswith(("frame", "reference", "items[")):
            error.field = f"items[{index}].{error.field}"
        if self._request.items[index].prompt:
            return ErrorDetail.of(error)
        return error_result(error, self._known[index], request=self._infos[index], image_name=self.image_name)


def many_to_proto(outcomes: list[Outcome]) -> pb.InspectManyResponse:
    response = pb.InspectManyResponse()
    for outcome in outcomes:
        message = response.outcomes.add()
        if isinstance(outcome, InspectionResult):
            message.result.CopyFrom(convert.result_to_proto(outcome))
        elif isinstance(outcome, Answer):
            message.answer.CopyFrom(convert.answer_to_proto(outcome))
        else:
            message.error.CopyFrom(pb.ErrorDetail(**outcome.model_dump()))
    return response
