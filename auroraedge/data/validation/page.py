"""The report of the checks: a table for the terminal and one HTML file with pictures of the problems."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group
from rich.table import Table
from rich.text import Text

import auroraedge
from auroraedge.data.importers import RawObject, Severity
from auroraedge.data.pack import load_image
from auroraedge.data.validation.checks import CheckedDataset
from auroraedge.data.validation.common import item_classes
from auroraedge.errors import AuroraEdgeError

PICTURES = 12  # of a finding; the names of all are listed
_NAMES = 100
_SAMPLES = 4  # of a class
_PICTURE_PX = 320
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
_SIGNS = {Severity.ERROR: "✕", Severity.WARNING: "!", Severity.NOTE: "·"}


def check_table(checked: CheckedDataset) -> Group:
    """Everything to print: what was read, the splits, and every finding with its remedy."""
    facts = Text(" ".join(checked.raw.notes))
    counts = checked.counts()
    classes = list(dict.fromkeys(name for row in counts.values() for name in row))
    amounts = Table(title=f"{len(checked.items)} images")
    amounts.add_column("split")
    for name in classes:
        amounts.add_column(name, justify="right")
    for split, row in counts.items():
        amounts.add_row(split, *(str(row.get(name, 0)) for name in classes))
    parts: list[Text | Table] = [facts, amounts, Text(checked.split_note)]
    if checked.findings:
        table = Table(title="Checks", show_lines=False)
        for column in ("", "check", "what was found", "what to do"):
            table.add_column(column, overflow="fold")
        for finding in checked.findings:
            shown = ", ".join(finding.names[:3]) + (", ..." if len(finding.names) > 3 else "")
            text = f"{finding.message} {shown}".strip() if finding.severity is not Severity.NOTE else finding.message
            style = _STYLES[finding.severity]
            table.add_row(Text(finding.severity.value, style=style), finding.code, Text(text), Text(finding.remedy))
        parts.append(table)
    errors = len(checked.errors)
    warnings = sum(finding.severity is Severity.WARNING for finding in checked.findings)
    verdict = f"{errors} errors, {warnings} warnings."
    parts.append(Text(verdict, style="bold red" if errors else "bold green" if not warnings else "yellow"))
    return Group(*parts)


def picture(path: Path, objects: Sequence[RawObject] = ()) -> str:
    """A small JPEG of an image with its boxes as a data URI; "" for a file that cannot be read.

    A box that leaves the image is shown on a grey margin.
    """
    try:
        rgb = load_image(path)
    except AuroraEdgeError:
        return ""
    height, width = rgb.shape[:2]
    corners = [[float(np.clip(v, -width - height, 2 * (width + height))) for v in item.bbox] for item in objects]
    margin = int(max([0.0] + [max(-x1, -y1, x2 - width, y2 - height, 0.0) for x1, y1, x2, y2 in corners]))
    if margin:
        margin = min(margin + 8, max(width, height))
        rgb = np.pad(rgb, ((margin, margin), (margin, margin), (0, 0)), constant_values=128)
    scale = _PICTURE_PX / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    for x1, y1, x2, y2 in corners:
        first, second = ((int((x + margin) * scale), int((y + margin) * scale)) for x, y in ((x1, y1), (x2, y2)))
        cv2.rectangle(small, first, second, (0, 0, 0), 3)
        cv2.rectangle(small, first, second, (255, 120, 0), 1)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(bytes(data)).decode() if done else ""


def check_page(checked: CheckedDataset) -> str:
    """The page: one file that needs no network."""
    loader = Environment(
        loader=PackageLoader("auroraedge.data.validation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = checked.counts()
    findings: list[dict[str, Any]] = []
    for finding in checked.findings:
        findings.append(
            {
                "finding": finding,
                "sign": _SIGNS[finding.severity],
                "pictures": [(picture(e.path, e.objects), e.caption) for e in finding.examples[:PICTURES]],
                "more": max(0, len(finding.examples) - PICTURES),
                "names": finding.names[:_NAMES],
                "names_more": max(0, len(finding.names) - _NAMES),
            }
        )
    classes = list(dict.fromkeys(name for row in counts.values() for name in row))
    samples = []
    for name in classes:
        shown = [item for item in checked.items if name in item_classes(item)][:_SAMPLES]
        samples.append((name, [(picture(item.path, item.objects), item.name) for item in shown]))
    return loader.get_template("check.html.j2").render(
        checked=checked,
        counts=counts,
        classes=classes,
        findings=findings,
        samples=samples,
        version=auroraedge.__version__,
    )
