"""What the tests of reports share: making one, and reading it as a browser or a program would."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

from fake_inspector import STAMP, FakeInspector, write_part

from auroraedge.report import ReportSummary, run_report

OUTPUTS = ("images.csv", "defects.csv", "coco.json", "summary.json", "report.html")


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
        else:
            self.text += data

    def count(self, tag: str, **wanted: str) -> int:
        return sum(t == tag and all(a.get(k) == v for k, v in wanted.items()) for t, a in self.tags)


def make(folder: Path, source: Path | str, inspector: object | None = None, **options: object) -> ReportSummary:
    options = {"generated_at": STAMP, **options}
    recipe = options.pop("recipe", "magnetic_tile")
    return run_report(source, folder, recipe, inspector or FakeInspector(), **options)  # type: ignore[arg-type]


def page_of(summary: ReportSummary) -> Page:
    return Page(summary.page.read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def journal_lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_bytes().splitlines()]


def make_parts(folder: Path) -> Path:
    """Two good parts, one for REVIEW, two NG in a subfolder, a text file, and a file that is no image."""
    write_part(folder / "a.png", 0)
    write_part(folder / "b.png", 0, shade=1)
    write_part(folder / "c.png", 1)
    write_part(folder / "sub" / "d.png", 3, size=8)
    write_part(folder / "sub" / "e.png", 2, size=9)
    (folder / "notes.txt").write_text("hello", encoding="utf-8")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder
