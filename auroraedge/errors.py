"""The one exception tree. Every error names what was wrong, the field, and the remedy.

`reason` is an UPPER_SNAKE identifier that is part of the public API (google.rpc.ErrorInfo.reason); `grpc_code` is the
name of a grpc.StatusCode, kept as text so that this module needs no gRPC.
"""

from __future__ import annotations

from typing import ClassVar


class AuroraEdgeError(Exception):
    """Base of every error that this project raises on purpose."""

    reason: ClassVar[str] = "INTERNAL"
    grpc_code: ClassVar[str] = "INTERNAL"
    default_remedy: ClassVar[str] = "Report this with the log of the run."
    # Seconds after which the same call may succeed; None where it will not (google.rpc.RetryInfo).
    retry_after_s: float | None = None

    def __init__(self, message: str, *, field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy or self.default_remedy

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.message} {self.remedy}"


class InvalidRequestError(AuroraEdgeError):
    reason = "INVALID_REQUEST"
    grpc_code = "INVALID_ARGUMENT"
    default_remedy = "Correct the request and send it again."


class InvalidImageError(InvalidRequestError):
    """Bytes or pixels that are not a usable image (empty, truncated, not an image, wrong shape or dtype)."""

    reason = "INVALID_IMAGE"
    default_remedy = "Send a complete JPEG, PNG, BMP, TIFF or WebP file, or raw pixels of a documented format."


class UnsupportedImageError(InvalidImageError):
    reason = "UNSUPPORTED_IMAGE_FORMAT"


class ImageTooLargeError(InvalidImageError):
    reason = "IMAGE_TOO_LARGE"
    default_remedy = "Crop or downscale the frame, or raise the pixel limit of the service."


class ReferenceRequiredError(InvalidRequestError):
    """The recipe compares with a golden sample and none was given, or one of another size was."""

    reason = "REFERENCE_REQUIRED"
    default_remedy = "Send the golden reference image of the part, aligned and of the same size as the frame."


class UnknownLabelError(InvalidRequestError):
    reason = "UNKNOWN_LABEL"
    default_remedy = "Use a label of the recipe, or add the label to the recipe."


class RecipeError(InvalidRequestError):
    """A recipe file that cannot be used as it is."""

    reason = "INVALID_RECIPE"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "Correct the recipe file; `auroraedge recipes show ID` prints a valid one."


class RecipeVersionError(RecipeError):
    """The caller relies on another version of a recipe than the one that is loaded."""

    reason = "RECIPE_VERSION_MISMATCH"
    default_remedy = "Ask for the loaded version, or for version 0 to take whichever it is."


class RecipeNotFoundError(AuroraEdgeError):
    reason = "RECIPE_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    default_remedy = "List the known recipes with `auroraedge recipes`."


class EngineError(AuroraEdgeError):
    reason = "ENGINE_ERROR"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "Build the engine again: `python engine_build/build.py --target cpu --model nano`."


class EngineNotFoundError(EngineError):
    reason = "ENGINE_NOT_FOUND"


class EngineDamagedError(EngineError):
    reason = "ENGINE_DAMAGED"


class EngineIncompatibleError(EngineError):
    reason = "ENGINE_INCOMPATIBLE"


class QueueFullError(AuroraEdgeError):
    reason = "QUEUE_FULL"
    grpc_code = "RESOURCE_EXHAUSTED"
    default_remedy = "Retry after the delay in RetryInfo, or lower the frame rate."


class DeadlineExceededError(AuroraEdgeError):
    reason = "DEADLINE_EXCEEDED"
    grpc_code = "DEADLINE_EXCEEDED"
    default_remedy = "Raise the deadline, or lower the load of the server."


class ServerUnavailableError(AuroraEdgeError):
    reason = "SERVER_UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    default_remedy = "Check that the server runs (`python -m service`) and that the address is right, then retry."


class DatasetError(AuroraEdgeError):
    """A dataset folder, annotation or split that cannot be read."""

    reason = "INVALID_DATASET"
    grpc_code = "INVALID_ARGUMENT"
    default_remedy = "Correct the dataset; docs/training.md describes the format."


class TrainingError(AuroraEdgeError):
    reason = "TRAINING_ERROR"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "See docs/training.md."


class MissingDependencyError(AuroraEdgeError):
    reason = "MISSING_DEPENDENCY"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "Install the extra that the message names."


def error_classes() -> dict[str, type[AuroraEdgeError]]:
    """All errors of the tree by `reason`, to rebuild one from a google.rpc.ErrorInfo."""
    found: dict[str, type[AuroraEdgeError]] = {}
    pending: list[type[AuroraEdgeError]] = [AuroraEdgeError]
    while pending:
        cls = pending.pop()
        found.setdefault(cls.reason, cls)
        pending.extend(cls.__subclasses__())
    return found
