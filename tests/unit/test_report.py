from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_inspector import FakeEngine, FakeInspector, write_part
from report_support import OUTPUTS, Page, make, make_parts, page_of, rows_of

from auroraedge.errors import (
    EngineIncompatibleError,
    InvalidRequestError,
    RecipeNotFoundError,
)
from auroraedge.inspection.recipe import LabelSpec, Recipe, load_recipe
from auroraedge.inspection.results import InspectionResult, Verdict
from auroraedge.report import PageLimits
from auroraedge.runtime import DEFAULT_ENGINE


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return make_parts(tmp_path / "parts")


def test_folder_with_good_bad_and_broken_files(tmp_path: Path, parts: Path) -> None:
    summary = make(tmp_path / "out", parts)
    assert summary.counts == {Verdict.OK: 2, Verdict.NG: 2, Verdict.REVIEW: 1, Verdict.ERROR: 1}
    assert [s.name for s in summary.report.skipped] == ["notes.txt"]
    page = page_of(summary)
    assert "2 of 5 OK" in page.text
    assert "40.0" in page.text
    assert "11.8" in page.text, "the lower end of the Wilson interval of 2 of 5"
    assert "not an image file (.txt)" in page.text
    assert page.count("li", **{"class": "card"}) == 5
    assert page.text.index("sub/d.png") < page.text.index("sub/e.png"), "worst first"
    assert [row["file"] for row in rows_of(tmp_path / "out" / "images.csv")] == [
        "a.png",
        "b.png",
        "bad.png",
        "c.png",
        "sub/d.png",
        "sub/e.png",
    ]
    figures = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    assert figures["verdicts"] == {"OK": 2, "NG": 2, "REVIEW": 1, "ERROR": 1}
    assert figures["yield"]["value"] == pytest.approx(0.4)


def test_page_needs_nothing_from_outside_and_runs_only_its_own_script(tmp_path: Path, parts: Path) -> None:
    page = page_of(make(tmp_path / "out", parts))
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:80])
        assert not [name for name in attributes if name.startswith("on")], tag
    assert tag_names(page).isdisjoint({"link", "iframe", "object", "embed", "base"})
    assert "url(http" not in page.text
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def tag_names(page: Page) -> set[str]:
    return {tag for tag, _ in page.tags}


def test_pictures_are_jpegs_of_bounded_size_with_boxes_above(tmp_path: Path) -> None:
    write_part(tmp_path / "in" / "big.png", 3, size=30, side=1500)
    page = page_of(make(tmp_path / "out", tmp_path / "in", limits=PageLimits(picture_px=300)))
    uri = next(a["src"] for t, a in page.tags if t == "img")
    assert uri is not None
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None
    assert max(picture.shape) == 300
    overlay = [a for t, a in page.tags if t == "svg" and a.get("class") == "boxes"]
    assert overlay[0]["viewbox"] == "0 0 1500 1500"
    assert page.count("rect", **{"class": "line"}) == 3


NASTY = "<img src=x onerror=alert(1)>\"'&.png"


def test_names_labels_and_manifest_text_are_escaped(tmp_path: Path) -> None:
    write_part(tmp_path / "in" / NASTY, 3, size=8)
    write_part(tmp_path / "in" / "ok.png", 0)
    with (tmp_path / "in" / "list.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "part_id", "lot"])
        writer.writerow([NASTY, '"><script>alert(2)</script>', "=HYPERLINK(1)"])
        writer.writerow(["ok.png", "{{ 7*7 }}", "Größe 断路"])

    class Nasty(FakeInspector):
        def inspect(self, *args: object, **options: object) -> InspectionResult:
            result = super().inspect(*args, **options)  # type: ignore[arg-type]
            defects = tuple(d.model_copy(update={"label": "</title><svg onload=alert(3)>"}) for d in result.defects)
            return result.model_copy(update={"defects": defects, "warnings": ("<b>warned</b>",)})

    summary = make(tmp_path / "out", tmp_path / "in" / "list.csv", Nasty(), title="<h1>T</h1>")
    page = page_of(summary)
    assert page.count("script") == 1
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.count("b") == 0
    assert {a.get("src", "")[:10] for t, a in page.tags if t == "img"} == {"data:image"}
    for text in (NASTY, '"><script>alert(2)</script>', "{{ 7*7 }}", "Größe 断路", "<b>warned</b>", "<h1>T</h1>"):
        assert text in page.text, text
    assert any("onload=alert(3)" in (a.get("data-kinds") or "") for _, a in page.tags)
    assert rows_of(tmp_path / "out" / "images.csv")[0]["lot"] == "'=HYPERLINK(1)"
    assert json.loads((tmp_path / "out" / "coco.json").read_bytes())["images"][0]["file_name"] == NASTY


def test_labels_in_other_languages(tmp_path: Path, parts: Path) -> None:
    page = page_of(make(tmp_path / "out", parts, language="zh"))
    assert "气孔" in page.text
    assert "(blowhole)" in page.text
    own = Recipe(id="own", labels=(LabelSpec(name="裂纹"), LabelSpec(name="Riß")))
    other = make(tmp_path / "own", parts, recipe=own)
    assert "裂纹" in page_of(other).text
    names = [c["name"] for c in json.loads((tmp_path / "own" / "coco.json").read_bytes())["categories"]]
    assert names == ["裂纹", "Riß"]


def test_same_input_gives_the_same_bytes(tmp_path: Path, parts: Path) -> None:
    (parts / "bad.png").unlink()  # a failure's result has an id and a time of its own
    make(tmp_path / "one", parts)
    first = {name: (tmp_path / "one" / name).read_bytes() for name in OUTPUTS}
    make(tmp_path / "two", parts)
    make(tmp_path / "one", parts)
    for name in OUTPUTS:
        assert (tmp_path / "one" / name).read_bytes() == first[name], f"{name} changed in a second run"
        assert (tmp_path / "two" / name).read_bytes() == first[name], f"{name} differs in another folder"


def test_coco_is_consistent(tmp_path: Path, parts: Path) -> None:
    make(tmp_path / "out", parts)
    coco = json.loads((tmp_path / "out" / "coco.json").read_bytes())
    images = {image["id"]: image for image in coco["images"]}
    assert len(images) == len(coco["images"]) == 5, "the broken file is left out: it is not a good image"
    assert "bad.png" not in {image["file_name"] for image in images.values()}
    assert [c["name"] for c in coco["categories"]] == list(load_recipe("magnetic_tile").label_names)
    categories = {category["id"] for category in coco["categories"]}
    assert sorted(a["id"] for a in coco["annotations"]) == list(range(1, 7))
    for annotation in coco["annotations"]:
        image = images[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert 0 <= x < x + w <= image["width"]
        assert 0 <= y < y + h <= image["height"]
        assert annotation["area"] == pytest.approx(w * h)
        assert annotation["category_id"] in categories
        assert 0 <= annotation["score"] <= 1
        assert annotation["iscrowd"] == 0
    first = next(a for a in coco["annotations"] if images[a["image_id"]]["file_name"] == "sub/d.png")
    assert first["bbox"] == [6, 6, 8, 8]
    defects = rows_of(tmp_path / "out" / "defects.csv")
    assert len(defects) == 6
    assert [defects[0][k] for k in ("file", "x1", "y1", "x2", "y2")] == ["c.png", "6", "6", "10", "10"]


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    summary = make(tmp_path / "out", tmp_path / "in")
    page = page_of(summary)
    assert "Nothing to report" in page.text
    assert "n/a" in page.text
    assert "Not complete" not in page.text
    assert json.loads((tmp_path / "out" / "coco.json").read_bytes())["images"] == []
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == b""


def test_no_defects_at_all(tmp_path: Path) -> None:
    for index in range(3):
        write_part(tmp_path / "in" / f"{index}.png", 0, shade=index)
    page = page_of(make(tmp_path / "out", tmp_path / "in"))
    assert "No defects were found." in page.text
    assert "No defect has a place." in page.text
    assert "100.0" in page.text
    assert "Rejected parts" not in page.text
    assert rows_of(tmp_path / "out" / "defects.csv") == []


def test_only_broken_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(b"")
    page = page_of(make(tmp_path / "out", tmp_path / "in"))
    assert "No image has a verdict." in page.text
    assert "1 image could not be inspected and is not OK." in page.text


def test_two_hundred_images_stay_within_the_page_limits(tmp_path: Path) -> None:
    for index in range(200):
        write_part(tmp_path / "in" / f"{index:03d}.png", index % 4, size=8, shade=index % 60, side=96 + index // 60)
    limits = PageLimits(pictures_ng=20, pictures_review=5, pictures_ok=3, table_rows=150)
    summary = make(tmp_path / "out", tmp_path / "in", limits=limits)
    assert sum(summary.counts.values()) == 200
    page = page_of(summary)
    shown = [min(limit, summary.counts[v]) for v, limit in ((Verdict.NG, 20), (Verdict.REVIEW, 5), (Verdict.OK, 3))]
    assert page.count("li", **{"class": "card"}) == sum(shown)
    assert f"Showing 20 of {summary.counts[Verdict.NG]}; images.csv has all." in page.text
    assert "The first 150 of 200; images.csv has all." in page.text
    assert len(rows_of(tmp_path / "out" / "images.csv")) == 200
    small = make(tmp_path / "out", tmp_path / "in", limits=PageLimits(pictures_mb=0.004))
    assert small.reused == 200
    assert 0 < page_of(small).count("li", **{"class": "card"}) < 8


def test_manifest_with_references_recipes_and_part_data(tmp_path: Path) -> None:
    write_part(tmp_path / "img" / "a.png", 1)
    write_part(tmp_path / "gold" / "a.png", 0)
    (tmp_path / "list.csv").write_text(
        "\ufeffImage;Reference;recipe;part_id;lot;line;operator\n"
        "img/a.png;gold/a.png;pcb;S1;L1;产线;x\n"
        "img/a.png;;magnetic_tile;S2;L2;Linie;x\n"
        "img/a.png;;magnetic_tile;S2;L2;Linie;x\n"
        "img/a.png;;nope;S3;L1;;x\n"
        "img/none.png;;magnetic_tile;S4;L1;;x\n"
        f"img/a.png;;magnetic_tile;{'S' * 300};;;x\n"
        ";;;S5;;;\n",
        encoding="utf-8",
    )
    summary = make(tmp_path / "out", tmp_path / "list.csv", recipe=None)
    rows = rows_of(tmp_path / "out" / "images.csv")
    assert [(r["part_id"], r["recipe_id"], r["verdict"], r["reference_used"]) for r in rows] == [
        ("S1", "pcb", "REVIEW", "true"),
        ("S2", "magnetic_tile", "REVIEW", "false"),
        ("S4", "magnetic_tile", "ERROR", "false"),
    ]
    page = page_of(summary)
    assert "repeats an earlier line" in page.text
    assert "There is no recipe 'nope'" in page.text
    assert "no image named" in page.text
    assert "list.csv, line 7: part_id" in page.text
    assert "Manifest columns that were not used: operator." in page.text
    for heading in ("Yield by lot", "Yield by line", "Yield by recipe"):
        assert heading in page.text
    assert "Yield by camera" not in page.text
    assert page.count("img", alt="Golden sample"), "the golden sample is beside the part"


def test_references_folder_by_name_and_reports_what_is_missing(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "c.png"):
        write_part(tmp_path / "in" / name, 1)
    write_part(tmp_path / "in" / "gold" / "a.png", 0)
    write_part(tmp_path / "in" / "gold" / "b.bmp.png", 0)
    write_part(tmp_path / "in" / "gold" / "b.png", 0)
    summary = make(tmp_path / "out", tmp_path / "in", recipe="pcb", references=tmp_path / "in" / "gold")
    found = {e.item.name: e.result.verdict for e in summary.report.entries}
    assert found == {"a.png": Verdict.REVIEW, "c.png": Verdict.ERROR, "sub/b.png": Verdict.REVIEW}
    assert "1 of 3 images have no golden sample of their name" in page_of(summary).text
    with pytest.raises(InvalidRequestError, match="references: There is no references folder"):
        make(tmp_path / "out", tmp_path / "in", references=tmp_path / "nope")


def test_a_recipe_without_golden_sample_is_not_given_one(tmp_path: Path) -> None:
    write_part(tmp_path / "in" / "a.png", 1)
    write_part(tmp_path / "gold" / "a.png", 0)
    summary = make(tmp_path / "out", tmp_path / "in", references=tmp_path / "gold")
    assert not summary.report.entries[0].result.reference_used


def test_glob_and_single_file_and_missing_source(tmp_path: Path, parts: Path) -> None:
    found = make(tmp_path / "out", f"{parts}/**/*.png")
    assert [e.item.name for e in found.report.entries][-1] == "sub/e.png"
    assert [e.item.name for e in make(tmp_path / "one", parts / "a.png").report.entries] == ["a.png"]
    with pytest.raises(InvalidRequestError, match="inputs: There is no file or folder"):
        make(tmp_path / "out", tmp_path / "nope")
    (tmp_path / "bad.csv").write_text("file,lot\nx,1\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="has no column 'image'"):
        make(tmp_path / "out", tmp_path / "bad.csv")
    with pytest.raises(RecipeNotFoundError):
        make(tmp_path / "out", parts, recipe="nope")
    with pytest.raises(InvalidRequestError, match=r"recipe: No recipe for a\.png"):
        make(tmp_path / "out", parts, recipe=None)


def test_report_folder_inside_the_image_folder_is_not_an_input(tmp_path: Path, parts: Path) -> None:
    make(parts / "report", parts)
    again = make(parts / "report", parts)
    assert again.inspected == 1, "only the broken file is tried again"
    assert [s.name for s in again.report.skipped] == ["notes.txt"]


# ---- servers, the real engine, a real browser ------------------------------------------------------------------------


class FakeClient:
    """As auroraedge.client.InspectionClient, over the fake inspector."""

    def __init__(self, recipes: list[Recipe]) -> None:
        self._recipes, self._inspector = recipes, FakeInspector()

    def server_info(self) -> FakeEngine:
        return self._inspector.engine

    def recipes(self) -> list[Recipe]:
        return self._recipes

    def inspect(self, image: bytes, recipe_id: str, *, recipe_version: int, **options: object) -> InspectionResult:
        recipe = next(r for r in self._recipes if (r.id, r.version) == (recipe_id, recipe_version))
        return self._inspector.inspect(image, recipe, **options)  # type: ignore[arg-type]


def test_a_server_inspects_with_its_own_recipes(tmp_path: Path, parts: Path) -> None:
    recipe = load_recipe("magnetic_tile")
    client = FakeClient([recipe])
    assert make(tmp_path / "out", parts, client).counts[Verdict.NG] == 2
    assert make(tmp_path / "out", parts, client, recipe=recipe).reused == 5
    with pytest.raises(RecipeNotFoundError, match="The server has no recipe 'pcb'"):
        make(tmp_path / "out", parts, client, recipe="pcb")
    other = recipe.model_copy(update={"merge_iou": 0.123})
    with pytest.raises(EngineIncompatibleError, match="not the same as the file"):
        make(tmp_path / "out", parts, client, recipe=Recipe.model_validate(other.model_dump()))


@pytest.mark.skipif(not (DEFAULT_ENGINE / "manifest.json").is_file(), reason="the embedded engine is not built")
def test_with_the_embedded_engine(tmp_path: Path) -> None:
    from auroraedge.data.samples import write_samples
    from auroraedge.runtime import Inspector

    write_samples(tmp_path / "samples", seed=1, n_per_kind=2)
    with Inspector.open(threads=1) as inspector:
        first = make(tmp_path / "out", tmp_path / "samples" / "manifest.csv", inspector, recipe=None)
        assert first.counts[Verdict.ERROR] == 0
        assert len(first.report.entries) == 6
        page = (tmp_path / "out" / "report.html").read_bytes()
        again = make(tmp_path / "out", tmp_path / "samples" / "manifest.csv", inspector, recipe=None)
        assert again.reused == 6
        assert (tmp_path / "out" / "report.html").read_bytes() == page
        assert inspector.engine.engine_sha256.encode() in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_the_script_runs_under_the_policy_of_the_page(tmp_path: Path, parts: Path) -> None:
    summary = make(tmp_path / "out", parts)
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-background-networking"
    command = ["chromium", *options.split(), "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, summary.page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert "6 of 6 shown" in Page(done.stdout).text
