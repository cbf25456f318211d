"""From a request to the job of the inspector; shared by the unary calls and the camera sessions."""

from __future__ import annotations

import numpy as np

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import AuroraEdgeError, InvalidImageError, InvalidRequestError
from auroraedge.inspection.images import ImageLimits, raw_pixels
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import RequestInfo
from auroraedge.runtime import InspectionJob

MAX_NAME_CHARS = 1024


def check_name(image_name: str) -> str:
    if len(image_name) > MAX_NAME_CHARS:
        raise InvalidRequestError(
            f"The name has {len(image_name)} characters; the limit is {MAX_NAME_CHARS}.", field="image_name"
        )
    return image_name


def source_of(frame: pb.Frame, field: str, limits: ImageLimits) -> bytes | np.ndarray:
    """The bytes of an image file, undecoded, or a checked view of raw pixels: nothing that takes time.

    Raises InvalidImageError for no frame and for sizes that do not agree, UnsupportedImageError, ImageTooLargeError.
    """
    source = frame.WhichOneof("source")
    if source is None:
        raise InvalidImageError("There is no image.", field=field)
    if source == "encoded":
        return frame.encoded
    raw = frame.raw
    known = pb.PixelFormat.values()
    name = pb.PixelFormat.Name(raw.pixel_format) if raw.pixel_format in known else str(raw.pixel_format)
    return raw_pixels(
        raw.pixels,
        raw.width,
        raw.height,
        raw.stride,
        name.removeprefix("PIXEL_FORMAT_"),
        limits,
        field=f"{field}.raw",
    )


def reference_of(
    request: pb.InspectRequest | pb.GenerateRequest | pb.StreamSession, limits: ImageLimits
) -> bytes | np.ndarray | None:
    return source_of(request.reference, "reference", limits) if request.HasField("reference") else None


def job_from(request: pb.InspectRequest | pb.GenerateRequest, recipe: Recipe, limits: ImageLimits) -> InspectionJob:
    """The checked job behind a request. Raises InvalidRequestError and its kin for a field that cannot be used."""
    return InspectionJob(
        image=source_of(request.frame, "frame", limits),
        recipe=recipe,
        reference=reference_of(request, limits),
        request=convert.request_info_from_proto(request.info) if request.HasField("info") else RequestInfo(),
        image_name=check_name(request.image_name) if isinstance(request, pb.InspectRequest) else "",
    )


def compares(job: InspectionJob) -> bool:
    """Whether the model sees a golden sample beside the frame; the prompt has to say so."""
    return job.reference is not None and job.recipe.golden_reference != "none"


def in_request_terms(error: AuroraEdgeError) -> AuroraEdgeError:
    """The inspector calls the frame `image`; the request calls it `frame`, and so must the error that names it."""
    if error.field == "image" or error.field.startswith("image."):
        error.field = f"frame{error.field.removeprefix('image')}"
    return error
