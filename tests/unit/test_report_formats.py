"""PDF, XLSX, languages, templates, and the sources that are no images: store, results.jsonl, video."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import openpyxl
import pypdf
import pytest
from fake_inspector import FakeInspector
from report_support import Page, make, make_parts, rows_of
from requires import require_tool

import auroraedge.report
from auroraedge.errors import InvalidRequestError, MissingDependencyError
from auroraedge.inspection.results import Box, Defect, InspectionResult, RequestInfo, StageTimings, Verdict
from auroraedge.report import ReportOptions, Sampling, fonts, run_results_report, run_store_report
from auroraedge.report.languages import TEXTS
from auroraedge.report.outputs import FILES
from auroraedge.report.statistics import GROUP_FIELDS, STAGES
from auroraedge.report.words import GLOSSES, Words
from auroraedge.store import NewResult, Purpose, ResultFilter, Store

ALL = tuple(FILES)
NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def _png(shade: int, spot: bool) -> bytes:
    pixels = np.full((60, 80), shade, np.uint8)
    if spot:
        pixels[20:30, 50:64] = 10
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()


def _result(number: int, verdict: Verdict, *, line: str = "L1", minutes: int = 0, job: str = "") -> InspectionResult:
    defects = (
        ()
        if verdict is Verdict.OK
        else (Defect(label="open", severity="critical", box=Box(x1=50, y1=20, x2=64, y2=30), confidence=0.8),)
    )
    image = _png(100 + number, verdict is not Verdict.OK)
    return InspectionResult(
        result_id=f"00000000-0000-4000-8000-{number:012d}",
        created_at=NOON + timedelta(minutes=minutes),
        verdict=verdict,
        ng_probability={Verdict.OK: 0.05, Verdict.REVIEW: 0.5, Verdict.NG: 0.97}[verdict],
        defects=defects,
        recipe_id="pcb",
        recipe_version=1,
        recipe_sha256="a" * 64,
        model_id="nano",
        engine_sha256="e" * 64,
        image_sha256=hashlib.sha256(image).hexdigest(),
        image_width=80,
        image_height=60,
        image_name=f"{number:03d}.png",
        reference_used=True,
        timings=StageTimings(total_ms=40 + number, service_ms=45 + number),
        request=RequestInfo(part_id=f"P{number // 2}", lot="Los-ä", line=line, request_id=f"r{number}", job=job),
        text="NG: open circuit at the edge.",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ten results of two lines over three hours: 6 OK, 2 REVIEW and 2 NG, of which a person passed one each."""
    verdicts = [Verdict.OK] * 6 + [Verdict.REVIEW] * 2 + [Verdict.NG] * 2
    opened = Store.open(tmp_path / "store")
    golden = _png(90, False)
    for number, verdict in enumerate(verdicts):
        result = _result(number, verdict, line=f"L{1 + number % 2}", minutes=18 * number)
        opened.record(result, image=_png(100 + number, verdict is not Verdict.OK), reference=golden)
    opened.record_many([NewResult(result=_result(50, Verdict.NG, job="study:x"), purpose=Purpose.STUDY)])
    for number, reason in ((6, "Staub"), (8, "nur Staub, 灰尘")):
        identity = f"00000000-0000-4000-8000-{number:012d}"
        opened.review(identity, verdict=Verdict.OK, reviewer="Jörg", reason=reason)
    return opened


def _report(store: Store, out: Path, where: ResultFilter = ResultFilter(), **options: object) -> Path:
    summary = run_store_report(store, where, out, ReportOptions(**{"formats": ALL, **options}))  # type: ignore[arg-type]
    assert not list(out.glob(".*")), "nothing half-written is left"
    return summary.out_dir


def _pdf_text(path: Path) -> str:
    # pypdf gives two-byte codes of some fonts with their leading zero.
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages).replace("\0", "")


def test_reviews_change_the_effective_verdict_and_are_shown(store: Store, tmp_path: Path) -> None:
    out = _report(store, tmp_path / "out", takt_ms=52.0)
    figures = json.loads((out / "summary.json").read_bytes())
    assert figures["verdicts"] == {"OK": 8, "NG": 1, "REVIEW": 1, "ERROR": 0}
    assert figures["model"]["verdicts"] == {"OK": 6, "NG": 2, "REVIEW": 2, "ERROR": 0}
    assert figures["yield"]["value"] == pytest.approx(0.8)
    assert figures["reviewed"] == 2
    assert figures["parts"] == {"OK": 3, "NG": 1, "REVIEW": 1, "ERROR": 0}
    assert figures["defects"] == [{"label": "open", "count": 2, "images": 2}], "a part that a person passed has none"
    assert figures["takt"]["late"] == 2, "service times above 52 ms: 53 and 54"
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "changed 1 between OK and NG" in page.text
    assert "Reviewed: the model said NG." in page.text
    assert "Jörg" in page.text
    assert "nur Staub, 灰尘" in page.text
    assert "The model alone: yield 60.0" in page.text
    assert "1 golden-part checks and study results are not counted." in page.text
    assert "Written by the model, not checked" in page.text
    assert page.count("img", alt="Golden sample") >= 2
    assert "2 of 10 images (20.0\N{NO-BREAK SPACE}%) took longer than the takt of 52.0 ms." in page.text
    rows = rows_of(out / "images.csv")
    assert [(r["verdict"], r["model_verdict"], r["reviewer"]) for r in rows][8] == ("OK", "NG", "Jörg")


def test_filters_choose_by_time_line_and_reviewed_verdict(store: Store, tmp_path: Path) -> None:
    def count(name: str, **conditions: object) -> int:
        where = ResultFilter(**conditions)  # type: ignore[arg-type]
        summary = run_store_report(store, where, tmp_path / name, ReportOptions(formats=("json", "html")))
        return summary.report.figures.total

    assert count("line", line="L2") == 5
    assert count("time", since=NOON + timedelta(hours=1), until=NOON + timedelta(hours=2)) == 3
    assert count("verdict", effective_verdicts=(Verdict.OK,)) == 8
    assert count("none", lot="nope") == 0
    assert "Nothing to report" in (tmp_path / "none" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_every_file_has_the_same_bytes_again(store: Store, tmp_path: Path, language: str) -> None:
    if language == "zh" and fonts._chinese()[0] is None:
        require_tool("a Chinese font (fonts-noto-cjk)")
    first = _report(store, tmp_path / "one", language=language, time_zone="Europe/Berlin")
    second = _report(store, tmp_path / "two", language=language, time_zone="Europe/Berlin")
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(name for files in FILES.values() for name in files)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(
    ("template", "heading"), [("shift", "Schichtbericht"), ("lot", "Losbericht"), ("part", "Teile")]
)
def test_templates_in_german(store: Store, tmp_path: Path, template: str, heading: str) -> None:
    out = _report(store, tmp_path / "out", template=template, language="de", time_zone="Europe/Berlin")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert '<html lang="de">' in page
    assert heading in page
    assert "Erstdurchlauf-Ausbeute" in page
    assert "80,0\N{NO-BREAK SPACE}%" in page
    assert "04.03.2026 13:00" in page, "noon in UTC is one o'clock in Berlin"
    assert "Unterbrechung" in page, "the recipe's title of the label"
    text = _pdf_text(out / "report.pdf")
    for expected in ("Erstdurchlauf-Ausbeute", "80,0 %", "Los-ä", "Unterbrechung", "e" * 64):
        assert expected in text, expected
    assert ("Übergeben von" in text) == (template == "shift")
    assert ('id="all"' in page) == (template != "shift"), "a shift report has no long table"
    assert ('id="every"' in page) == (template == "part")


def test_chinese_pdf_embeds_its_fonts(store: Store, tmp_path: Path) -> None:
    if fonts._chinese()[0] is None:
        require_tool("a Chinese font (fonts-noto-cjk)")
    out = _report(store, tmp_path / "out", language="zh", formats=("pdf", "html"))
    text = _pdf_text(out / "report.pdf")
    for expected in ("一次合格率", "断路", "灰尘"):
        assert expected in text, expected
    embedded = set()
    for page in pypdf.PdfReader(out / "report.pdf").pages:
        for font in page["/Resources"]["/Font"].values():  # type: ignore[index]
            descriptor = font.get_object()["/DescendantFonts"][0].get_object()["/FontDescriptor"].get_object()
            assert {"/FontFile", "/FontFile2", "/FontFile3"} & set(descriptor), "every font travels with the file"
            embedded.add(str(descriptor["/FontName"]))
    assert any("CJK" in name or "SC" in name for name in embedded), embedded
    assert (out / "report.pdf").stat().st_size < 1_000_000, "only the characters in use are embedded"


def test_without_a_chinese_font(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "font_folders", lambda: (tmp_path / "no-fonts",))
    with pytest.raises(MissingDependencyError, match="No font with Chinese characters") as caught:
        _report(store, tmp_path / "zh", language="zh")
    assert "fonts-noto-cjk" in caught.value.remedy
    assert not (tmp_path / "zh").exists(), "said before any work"
    _report(store, tmp_path / "html", language="zh", formats=("html",))
    out = _report(store, tmp_path / "en", formats=("pdf",), template="part")
    assert "characters have no glyph in the fonts at hand" in _pdf_text(out / "report.pdf")
    with pytest.raises(InvalidRequestError, match="is no font file"):
        _report(store, tmp_path / "bad", font=tmp_path / "x.ttf")
    _report(store, tmp_path / "own", formats=("pdf",), font=fonts.SHIPPED / "DejaVuSans.ttf")


def test_spreadsheet_reads_back(store: Store, tmp_path: Path) -> None:
    out = _report(store, tmp_path / "out", language="de")
    book = openpyxl.load_workbook(out / "report.xlsx")
    assert book.sheetnames == ["Übersicht", "Bilder", "Fehler"]
    images = list(book["Bilder"].iter_rows(values_only=True))
    assert len(images) == 11
    assert images[9][:3] == ("008.png", "OK", "NG")
    assert len(list(book["Fehler"].iter_rows())) == 3
    cells = [cell for row in book["Übersicht"].iter_rows(values_only=True) for cell in row]
    assert 0.8 in cells
    assert "e" * 64 in cells
    assert len(book["Übersicht"]._charts) == 2


def test_text_in_a_spreadsheet_is_never_a_formula(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        result = _result(1, Verdict.NG)
        request = result.request.model_copy(update={"part_id": "=HYPERLINK(1)", "lot": "http://x", "line": "a\x01b"})
        store.record(result.model_copy(update={"request": request}))
        out = _report(store, tmp_path / "out", formats=("xlsx",))
    row = list(openpyxl.load_workbook(out / "report.xlsx")["Images"].iter_rows())[1]
    assert {cell.data_type for cell in row if cell.value is not None} <= {"s", "n"}
    assert "=HYPERLINK(1)" in [cell.value for cell in row]
    assert not any(cell.hyperlink for cell in row)


def test_a_stop_in_the_middle_leaves_the_earlier_report(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _report(store, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    everything = store.results

    def stops(*args: object, **options: object) -> object:
        for number, stored in enumerate(everything(*args, **options)):  # type: ignore[arg-type]
            if number == 4:
                raise KeyboardInterrupt
            yield stored

    monkeypatch.setattr(store, "results", stops)
    with pytest.raises(KeyboardInterrupt):
        _report(store, out, takt_ms=1.0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_results_of_an_earlier_report(store: Store, tmp_path: Path) -> None:
    first = _report(store, tmp_path / "first")
    path = tmp_path / "copy.jsonl"
    path.write_bytes((first / "results.jsonl").read_bytes() + b"nonsense\n")
    summary = run_results_report(path, tmp_path / "again", ReportOptions(formats=("json", "html", "csv")))
    figures, before = (json.loads((p / "summary.json").read_bytes()) for p in (tmp_path / "again", first))
    for name in ("verdicts", "model", "yield", "reviewed", "defects", "latency_ms"):
        assert figures[name] == before[name], name
    assert [s.name for s in summary.report.skipped] == ["copy.jsonl:11"]
    with pytest.raises(InvalidRequestError, match="lies in the report's folder"):
        run_results_report(first / "results.jsonl", first, ReportOptions())


def test_results_of_an_inspection_with_its_pictures(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "parts")
    first = make(tmp_path / "first", parts)
    options = ReportOptions(formats=("html",), template="part")
    again = run_results_report(tmp_path / "first" / "results.jsonl", tmp_path / "again", options, images=parts)
    assert again.counts == first.counts
    page = Page(again.page.read_text(encoding="utf-8"))
    assert page.count("img") == 5


def test_video_frames(tmp_path: Path) -> None:
    path = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    assert writer.isOpened()
    for number in range(40):
        frame = np.full((64, 64, 3), 150 + number, np.uint8)
        if 20 <= number < 30:
            frame[20:36, 20:36] = 5
        writer.write(frame)
    writer.release()
    inspector = FakeInspector()
    summary = make(tmp_path / "out", path, inspector, sampling=Sampling(every=10))
    assert inspector.calls == [f"belt.avi#{n:06d}" for n in (0, 10, 20, 30)]
    assert summary.counts[Verdict.ERROR] == 0
    assert summary.counts[Verdict.OK] == 3
    page = Page(summary.page.read_text(encoding="utf-8"))
    assert page.count("img") == 4, "frames are decoded again for the page"
    again = FakeInspector()
    assert make(tmp_path / "out", path, again, sampling=Sampling(every=10)).reused == 4
    assert again.calls == []
    assert len(make(tmp_path / "second", path, sampling=Sampling(per_second=2)).report.entries) == 8
    assert len(make(tmp_path / "default", path).report.entries) == 4
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(InvalidRequestError, match="cannot be opened as a video"):
        make(tmp_path / "out2", tmp_path / "broken.mp4")
    with pytest.raises(InvalidRequestError, match="Both every and per_second"):
        Sampling(every=1, per_second=1)


def test_options_are_checked_before_any_work(store: Store, tmp_path: Path) -> None:
    for options, message in (
        ({"formats": ("docx",)}, "no format 'docx'"),
        ({"template": "nope"}, "no template 'nope'"),
        ({"time_zone": "Mars/Base"}, "no time zone 'Mars/Base'"),
        ({"takt_ms": -1.0}, "takt time has to be above 0"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            _report(store, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# ---- languages -------------------------------------------------------------------------------------------------------


def _keys() -> set[str]:
    """Every text that the report translates: first arguments of t(...) and both forms of t.plural(...)."""
    folder = Path(auroraedge.report.__file__).parent
    template = (folder / "templates" / "report.html.j2").read_text(encoding="utf-8")
    found = set(re.findall(r'\b(?:t|view\.cut)\("([^"]+)"[,)]', template))
    for pair in re.findall(r't\.plural\("([^"]+)", "([^"]+)"', template):
        found.update(pair)
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            count = 1 if name in ("t", "self.t", "self._t", "self.view.cut") else 2 if name.endswith("t.plural") else 0
            for argument in node.args[:count]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.add(argument.value)
    found.update(title for _, title in (*STAGES, *GROUP_FIELDS))
    found.update(f"Yield by {title.lower()}" for _, title in GROUP_FIELDS)
    found.update(f"Trend by {unit}" for unit in ("hour", "day", "week", "month"))
    found.update(GLOSSES.values())
    found.update(("critical", "major", "minor"))
    return found


@pytest.mark.parametrize("language", sorted(TEXTS))
def test_no_text_is_missing_in_a_language(language: str) -> None:
    keys = _keys()
    assert len(keys) > 150
    assert sorted(keys - set(TEXTS[language])) == []
    for english, text in TEXTS[language].items():
        names = re.findall(r"{(\w+)}", english)
        assert sorted(names) == sorted(re.findall(r"{(\w+)}", text)), english


def test_numbers_and_times_follow_the_language() -> None:
    german, chinese = Words("de", "Europe/Berlin"), Words("zh-CN", "Asia/Shanghai")
    assert german.count(1234567) == "1.234.567"
    assert german.percent(0.5) == "50,0\N{NO-BREAK SPACE}%"
    assert german.time(NOON) == "04.03.2026 13:00"
    assert chinese.time(NOON) == "2026-03-04 20:00"
    assert chinese.html_language == "zh-Hans"
    assert Words("fr")("Lot") == "Lot"
