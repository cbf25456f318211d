"""Checks of a dataset before training: duplicates, leakage, boxes, labels, amounts; with a report people can read."""

from __future__ import annotations

from auroraedge.data.validation.checks import CheckedDataset, check_dataset
from auroraedge.data.validation.page import check_page, check_table

__all__ = ["CheckedDataset", "check_dataset", "check_page", "check_table"]
