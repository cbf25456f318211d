"""The result store: results, defects, images, reviews, recipes, engines and the audit trail, kept for good.

SQLite by default, PostgreSQL by URL. `docs/store.md` is the guide. Names are loaded on first use, because SQLAlchemy
and pydantic take longer to import than most commands take to run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from auroraedge.errors import (
    DuplicateResultError,
    RequestIdConflictError,
    ResultNotFoundError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
)

if TYPE_CHECKING:
    from auroraedge.store.check import CheckReport, Finding
    from auroraedge.store.info import StoreInfo
    from auroraedge.store.retention import RetentionPolicy, RetentionReport
    from auroraedge.store.store import Store
    from auroraedge.store.transfer import TransferReport
    from auroraedge.store.types import (
        AuditEntry,
        EngineRecord,
        NewResult,
        Purpose,
        RecipeVersion,
        ResultFilter,
        Review,
        StoredResult,
        StudyRecord,
    )

_LAZY = {
    "AuditEntry": "types",
    "CheckReport": "check",
    "EngineRecord": "types",
    "Finding": "check",
    "NewResult": "types",
    "Purpose": "types",
    "RecipeVersion": "types",
    "ResultFilter": "types",
    "RetentionPolicy": "retention",
    "RetentionReport": "retention",
    "Review": "types",
    "Store": "store",
    "StoreInfo": "info",
    "StoredResult": "types",
    "StudyRecord": "types",
    "TransferReport": "transfer",
}

__all__ = [
    "AuditEntry",
    "CheckReport",
    "DuplicateResultError",
    "EngineRecord",
    "Finding",
    "NewResult",
    "Purpose",
    "RecipeVersion",
    "RequestIdConflictError",
    "ResultFilter",
    "ResultNotFoundError",
    "RetentionPolicy",
    "RetentionReport",
    "Review",
    "Store",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreInfo",
    "StoreLockedError",
    "StoreNotFoundError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "StoreVersionError",
    "StoredResult",
    "StudyRecord",
    "TransferReport",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"auroraedge.store.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
