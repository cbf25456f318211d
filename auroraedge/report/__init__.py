"""Batch reports: many images in, results.jsonl, CSVs, COCO and one self-contained HTML page out. Torch-free."""

from __future__ import annotations

from auroraedge.report.gallery import PageLimits
from auroraedge.report.inputs import InputItem, InputSet, collect_inputs
from auroraedge.report.page import Report, render_page
from auroraedge.report.runner import ReportSummary, run_report, write_outputs
from auroraedge.report.statistics import Entry, wilson

__all__ = [
    "Entry",
    "InputItem",
    "InputSet",
    "PageLimits",
    "Report",
    "ReportSummary",
    "collect_inputs",
    "render_page",
    "run_report",
    "wilson",
    "write_outputs",
]
