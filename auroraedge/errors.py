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


class CalibrationError(EngineError):
    """The calibration views or what was measured on them cannot be used."""

    reason = "CALIBRATION_ERROR"
    default_remedy = "Calibrate with frames of the parts that the engine will see: --calibration DIR."


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


class UnauthenticatedError(AuroraEdgeError):
    """The call does not say who it is from, or the token is not (or no longer) accepted."""

    reason = "UNAUTHENTICATED"
    grpc_code = "UNAUTHENTICATED"
    default_remedy = "Send a valid token: metadata `authorization: Bearer TOKEN`."


class PermissionDeniedError(AuroraEdgeError):
    """The caller is known, and may not do this."""

    reason = "PERMISSION_DENIED"
    grpc_code = "PERMISSION_DENIED"
    default_remedy = "Use a token or certificate with the scope that the message names."


class TooManyFailedLoginsError(AuroraEdgeError):
    """This address sends wrong tokens faster than the server answers them."""

    reason = "TOO_MANY_FAILED_LOGINS"
    grpc_code = "RESOURCE_EXHAUSTED"
    default_remedy = "Stop the client that sends a wrong token; a right token is accepted at any time."


class SharedMemoryError(AuroraEdgeError):
    """Shared memory cannot be had or used."""

    reason = "SHARED_MEMORY_UNAVAILABLE"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "Send the frame's bytes instead; shared memory is for clients on the server's own host."


class SharedMemoryExhaustedError(SharedMemoryError):
    """The allowance of the client or of the server is used up."""

    reason = "SHARED_MEMORY_EXHAUSTED"
    grpc_code = "RESOURCE_EXHAUSTED"
    default_remedy = "Release leases, ask for fewer or smaller slots, or raise the server's allowance."
    retry_after_s = 1.0


class SharedMemoryLeaseError(SharedMemoryError):
    """The lease has ended or never was this client's."""

    reason = "SHARED_MEMORY_LEASE_ENDED"
    grpc_code = "NOT_FOUND"
    default_remedy = "Acquire shared memory again and send the frame once more."


class SharedMemoryOverwrittenError(SharedMemoryError):
    """The slot does not hold the frame that the request means, or was written to while the frame was read."""

    reason = "SHARED_MEMORY_OVERWRITTEN"
    grpc_code = "ABORTED"
    default_remedy = "Leave a slot alone until its frame is answered; acquire more slots if frames come faster."


class CameraLostError(ServerUnavailableError):
    """The camera, stream or producer does not answer; it is tried again."""

    reason = "CAMERA_LOST"
    default_remedy = "Check the camera, its cable and its address."


class StoreError(AuroraEdgeError):
    """The result store cannot do what was asked."""

    reason = "STORE_ERROR"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "See docs/store.md; `auroraedge store check` examines a store."


class StoreNotFoundError(StoreError):
    reason = "STORE_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    default_remedy = "Correct the address of the store, or create one: `auroraedge store migrate`."


class StoreUnavailableError(StoreError):
    """The database or the image folder does not answer. Nothing was stored."""

    reason = "STORE_UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    default_remedy = "Check that the database runs and that the disk is mounted, then retry."
    retry_after_s = 1.0


class StoreLockedError(StoreUnavailableError):
    """Another process holds the write lock for longer than the busy timeout."""

    reason = "STORE_LOCKED"
    default_remedy = "Retry; if it stays locked, end the program that holds the store open for writing."


class StoreFullError(StoreError):
    """The disk, a quota or a size limit is exhausted. Nothing was stored."""

    reason = "STORE_FULL"
    grpc_code = "RESOURCE_EXHAUSTED"
    default_remedy = "Free disk space, e.g. with `auroraedge store retain`, then retry."
    retry_after_s = 30.0


class StoreReadOnlyError(StoreError):
    reason = "STORE_READ_ONLY"
    default_remedy = "Make the folder and the database writable for this user, or name another store."


class StoreDamagedError(StoreError):
    """The database or a stored document is not what was written."""

    reason = "STORE_DAMAGED"
    grpc_code = "DATA_LOSS"
    default_remedy = "Examine it with `auroraedge store check`; restore a backup or import the last export."


class StoreVersionError(StoreError):
    """The schema of the store is newer than this program."""

    reason = "STORE_VERSION"
    default_remedy = "Update AuroraEdge to the version that wrote the store, or open another store."


class ResultNotFoundError(AuroraEdgeError):
    reason = "RESULT_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    default_remedy = "List the results with `auroraedge store results`."


class RequestIdConflictError(InvalidRequestError):
    """The request id was used before, for another request."""

    reason = "REQUEST_ID_CONFLICT"
    default_remedy = "Send a new request_id for another frame; repeat one only to repeat the same request."


class StaleReviewError(AuroraEdgeError):
    """Someone else reviewed the result since the reviewer loaded it."""

    reason = "REVIEWED_MEANWHILE"
    grpc_code = "FAILED_PRECONDITION"
    default_remedy = "Load the result again."


class DuplicateResultError(InvalidRequestError):
    """Another result is stored under this result_id."""

    reason = "DUPLICATE_RESULT"
    default_remedy = "Give every result an id of its own."


class StudyError(InvalidRequestError):
    """Data that a study cannot be made from."""

    reason = "INVALID_STUDY"
    default_remedy = "docs/studies.md describes the input of each study."


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
