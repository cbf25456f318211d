"""Batch reports: many results in; one page, PDF, tables and COCO out. Torch-free; docs/reports.md is the guide.

Names are loaded on first use, because the command line imports this package for every command.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auroraedge.report.gallery import PageLimits
    from auroraedge.report.inputs import InputItem, InputSet, Sampling, collect_inputs
    from auroraedge.report.outputs import ReportOptions
    from auroraedge.report.page import Report
    from auroraedge.report.runner import ReportSummary, run_report
    from auroraedge.report.statistics import Entry, Figures, wilson
    from auroraedge.report.stored import run_results_report, run_store_report

_LAZY = {
    "Entry": "statistics",
    "Figures": "statistics",
    "InputItem": "inputs",
    "InputSet": "inputs",
    "PageLimits": "gallery",
    "Report": "page",
    "ReportOptions": "outputs",
    "ReportSummary": "runner",
    "Sampling": "inputs",
    "collect_inputs": "inputs",
    "run_report": "runner",
    "run_results_report": "stored",
    "run_store_report": "stored",
    "wilson": "statistics",
}

__all__ = [
    "Entry",
    "Figures",
    "InputItem",
    "InputSet",
    "PageLimits",
    "Report",
    "ReportOptions",
    "ReportSummary",
    "Sampling",
    "collect_inputs",
    "run_report",
    "run_results_report",
    "run_store_report",
    "wilson",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"auroraedge.report.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
