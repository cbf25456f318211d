"""Reviewing in the browser: with keys alone, with the pointer, and what the store has afterwards."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from seeding import Inspected, as_new, as_review, fill
from watching import until

from auroraedge.data.pack import load_pack_set
from auroraedge.inspection.results import Verdict
from auroraedge.store import ResultFilter, Store


@pytest.fixture
def boards(parts: list[Inspected]) -> list[Inspected]:
    """Boards with several defects."""
    return [part for part in parts if part.result.recipe_id == "pcb" and len(part.result.defects) >= 2]


def queue_up(store: Store, part: Inspected, count: int) -> list[str]:
    now = datetime.now(UTC)
    stored = store.record_many([as_new(part, number, now, change=as_review) for number in range(count)])
    return [entry.result.result_id for entry in stored]


def test_keyboard_alone(store: Store, boards: list[Inspected], serve: Any, open_page: Callable[..., Any]) -> None:
    first, second, third = queue_up(store, boards[0], 3)
    before = store.get(first).result.defects
    page = open_page()
    page.goto(serve(store).url)
    press = page.keyboard.press
    press("g")
    press("r")
    page.wait_for_url("**/review")
    page.wait_for_selector("#defects li")
    # NG: the first box a pixel to the right and ten down, another label, the second box away, and a new one.
    press("]")
    press("ArrowRight")
    press("Control+ArrowDown")
    press("Shift+ArrowRight")
    press("3")
    press("]")
    press("Delete")
    press("a")
    press("n")
    page.keyboard.press("Tab")
    page.keyboard.type("Defect confirmed")
    page.keyboard.press("Tab")
    page.keyboard.type("Mei Lin")
    press("Enter")
    page.wait_for_url("**decided=" + first)
    # OK: the model's boxes were false alarms. The name is remembered.
    page.wait_for_selector("#defects li")
    press("o")
    assert page.locator("#ok-note").inner_text() == f"OK removes the {len(before)} marked defects."
    press("Enter")
    page.wait_for_url("**decided=" + second)
    press("s")
    page.wait_for_selector(".done")
    assert "You skipped 1" in page.locator(".done").inner_text()

    decided = store.get(first)
    assert decided.review is not None and decided.review.reviewer == "Mei Lin"
    assert (decided.review.verdict, decided.review.reason) == (Verdict.NG, "Defect confirmed")
    boxes = decided.review.defects
    assert boxes is not None and len(boxes) == len(before)
    old, new = before[0].box, boxes[0].box
    assert old is not None and new is not None
    assert new.x1 == pytest.approx(old.x1 + 1, abs=0.06) and new.y1 == pytest.approx(old.y1 + 10, abs=0.06)
    assert new.x2 == pytest.approx(old.x2 + 2, abs=0.11) and boxes[0].label == "mousebite"
    assert boxes[0].severity.value == "major" and boxes[0].confidence == 1
    assert [d.box for d in boxes[1:-1]] == [d.box for d in before[2:]]
    # The new one lies in the middle of the picture.
    added = boxes[-1].box
    assert added is not None
    assert (added.x1 + added.x2) / 2 == pytest.approx(decided.result.image_width / 2, abs=0.2)

    good = store.get(second)
    assert good.effective_verdict is Verdict.OK and good.effective_defects == () and good.review is not None
    assert good.review.reviewer == "Mei Lin"
    assert store.get(third).review is None
    entry = next(iter(store.audit_trail(subject=f"result:{first}")))
    assert (entry.who, entry.action, entry.old, entry.why) == (
        "Mei Lin",
        "result.review",
        {"verdict": "REVIEW"},
        "Defect confirmed",
    )


def test_draw_move_and_undo(store: Store, boards: list[Inspected], serve: Any, open_page: Callable[..., Any]) -> None:
    (only,) = queue_up(store, boards[0], 1)
    count = len(store.get(only).result.defects)
    page = open_page()
    page.goto(serve(store).url + "review")
    page.wait_for_selector("#defects li")
    frame = page.locator("#frame").bounding_box()
    scale = float(page.evaluate("document.getElementById('frame').viewBox.baseVal.width")) / frame["width"]
    left, top = page.evaluate("[frame.viewBox.baseVal.x, frame.viewBox.baseVal.y]")

    def to_picture(x: float, y: float) -> tuple[float, float]:
        return left + (x - frame["x"]) * scale, top + (y - frame["y"]) * scale

    # A place without boxes: the corner of the picture.
    x0, y0 = frame["x"] + frame["width"] * 0.93, frame["y"] + frame["height"] * 0.9
    page.get_by_role("button", name="Draw box").click()
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x0 - 60, y0 - 40, steps=4)
    page.mouse.up()
    assert page.locator("#defects li").count() == count + 1
    # Moved by its middle, then taken back.
    page.mouse.move(x0 - 30, y0 - 20)
    page.mouse.down()
    page.mouse.move(x0 - 80, y0 - 20, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Undo").click()
    page.locator("#review input[value=NG]").check(force=True)
    page.get_by_label("Your name").fill("Otto")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector(".done")
    review = store.get(only).review
    assert review is not None and review.defects is not None
    box = review.defects[-1].box
    assert box is not None
    (x1, y1), (x2, y2) = to_picture(x0 - 60, y0 - 40), to_picture(x0, y0)
    assert [box.x1, box.y1, box.x2, box.y2] == pytest.approx([x1, y1, x2, y2], abs=1.5 * scale)


def test_two_people_at_once(store: Store, boards: list[Inspected], serve: Any, open_page: Callable[..., Any]) -> None:
    (only,) = queue_up(store, boards[0], 1)
    page = open_page()
    page.goto(serve(store).url + "review")
    page.wait_for_selector("#defects li")
    store.review(only, verdict=Verdict.NG, reviewer="Zoe", reason="")
    page.keyboard.press("o")
    page.get_by_label("Your name").fill("Otto")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "Zoe decided NG meanwhile" in page.locator("#problem").inner_text()
    assert len(store.reviews(only)) == 1


def test_zoom_pan_and_golden_sample(
    store: Store, boards: list[Inspected], serve: Any, open_page: Callable[..., Any]
) -> None:
    (only,) = queue_up(store, boards[0], 1)
    page = open_page()
    page.goto(serve(store).url + f"results/{only}")
    view = "[...document.querySelectorAll('.canvas')].map((c) => c.getAttribute('viewBox'))"
    both = page.evaluate(view)
    assert len(both) == 2 and both[0] == both[1]
    page.locator("#golden").hover()
    page.mouse.wheel(0, -400)
    until(page, f"({view})[0] !== '{both[0]}'")
    zoomed = page.evaluate(view)
    # The two stay in step, so that the same place is seen in both.
    assert zoomed[0] == zoomed[1]
    assert float(zoomed[0].split()[2]) < float(both[0].split()[2])
    page.keyboard.press("0")
    assert page.evaluate(view) == both
    page.keyboard.press("m")
    assert not page.locator("#golden-pane").is_visible()
    page.keyboard.press("c")
    assert page.locator("#frame image").nth(1).get_attribute("visibility") == "visible"
    page.keyboard.press("Escape")
    assert page.locator("#frame image").nth(1).get_attribute("visibility") == "hidden"
    # Really loaded, not a broken picture: the pixels of the frame as stored.
    loaded = page.evaluate(
        "async () => { const i = new Image(); i.src = document.querySelector('#frame image').getAttribute('href');"
        " await i.decode(); return [i.naturalWidth, i.naturalHeight]; }"
    )
    result = store.get(only).result
    assert loaded == [result.image_width, result.image_height]


def test_training_set(
    store: Store, parts: list[Inspected], tmp_path: Path, serve: Any, open_page: Callable[..., Any]
) -> None:
    ids = fill(store, parts, len(parts), every_review=0)
    found = {entry.result.result_id: entry for entry in store.results()}
    board = next(i for i in ids if found[i].result.recipe_id == "pcb" and found[i].result.defects)
    strip = next(i for i in ids if found[i].result.recipe_id == "steel_strip")
    good = next(i for i in ids if i not in (board, strip))
    store.review(board, verdict=Verdict.NG, reviewer="A", reason="", defects=found[board].result.defects[:1])
    store.review(strip, verdict=Verdict.NG, reviewer="A", reason="")
    store.review(good, verdict=Verdict.OK, reviewer="B", reason="dust", defects=())
    page = open_page()
    page.goto(serve(store).url + "training-set")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the set").click()
    content = Path(download.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        coco = json.loads(archive.read("coco.json"))
        archive.extractall(tmp_path / "pack" / "reviewed")
        for image in coco["images"]:
            stored = found[image["auroraedge"]["result_id"]]
            assert archive.read(image["file_name"]) == store.image(stored.image_sha256 or "")
    by_id = {image["auroraedge"]["result_id"]: image for image in coco["images"]}
    assert set(by_id) == {board, strip, good}
    (annotation,) = coco["annotations"]
    box = found[board].result.defects[0].box
    assert box is not None and annotation["image_id"] == by_id[board]["id"]
    assert annotation["bbox"] == pytest.approx([box.x1, box.y1, box.width, box.height])
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names[annotation["category_id"]] == found[board].result.defects[0].label
    assert by_id[board]["auroraedge"]["boxes_by"] == "person" and by_id[strip]["auroraedge"]["boxes_by"] == "model"
    # The same zip in the format that training reads, read by the reader of training.
    items = {item.extra["result_id"]: item for item in load_pack_set(tmp_path / "pack", "reviewed", "train")}
    assert items[good].image_label == "ok" and items[strip].image_label == found[strip].result.predicted_class
    assert items[board].reference is not None and items[board].reference.is_file()
    assert next(iter(store.audit_trail())).action == "training_set.export"


def test_class_of_a_strip_is_corrected(
    store: Store, parts: list[Inspected], serve: Any, open_page: Callable[..., Any]
) -> None:
    strip = next(part for part in parts if part.result.predicted_class)
    (only,) = queue_up(store, strip, 1)
    page = open_page()
    page.goto(serve(store).url + "review")
    select = page.locator("#defects select")
    assert select.input_value() == strip.result.predicted_class
    values = select.locator("option").evaluate_all("options => options.map((option) => option.value)")
    other = next(value for value in values if value != select.input_value())
    select.select_option(other)
    page.keyboard.press("Escape")
    page.locator("#review input[value=NG]").check(force=True)
    page.get_by_label("Your name").fill("Otto")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector(".done")
    review = store.get(only).review
    assert review is not None and [(d.label, d.box) for d in review.defects or ()] == [(other, None)]


def test_a_changed_verdict_needs_a_reason(
    store: Store, parts: list[Inspected], serve: Any, open_page: Callable[..., Any]
) -> None:
    bad = next(part for part in parts if part.result.verdict is Verdict.NG)
    only = store.record_many([as_new(bad, 1, datetime.now(UTC))])[0].result.result_id
    page = open_page("de-DE")
    page.goto(serve(store).url + f"results/{only}")
    page.keyboard.press("o")
    page.locator("[name=person]").fill("Jörg Müller")
    page.get_by_role("button", name="Speichern").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "Begründung" in page.locator("#problem").inner_text()
    assert store.get(only).review is None
    page.locator("[name=reason]").fill("Staub")
    page.get_by_role("button", name="Speichern").click()
    page.wait_for_selector(".reviews li")
    assert store.get(only).effective_verdict is Verdict.OK
    assert store.count(ResultFilter(reviewed=True)) == 1
    assert "Jörg Müller" in page.locator(".reviews").inner_text()
