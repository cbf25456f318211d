"""The recipe editor in the browser: the effect of thresholds on stored results, new versions, conflicts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from seeding import Inspected, as_new
from watching import until

from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import Verdict
from auroraedge.store import Store


@pytest.fixture
def judged(store: Store, parts: list[Inspected]) -> list[tuple[float, str]]:
    """200 boards with known probabilities, of which people decided 100; as (P(NG), truth or "")."""
    board = next(p for p in parts if p.result.recipe_id == "pcb")
    thresholds = load_recipe("pcb").thresholds
    rng = np.random.default_rng(3)
    found, entries = [], []
    for number in range(200):
        truth = ("OK", "NG", "", "")[number % 4]
        p = float(rng.beta(5, 2) if truth == "NG" else rng.beta(2, 5))

        def change(values: dict[str, Any], p: float = p) -> None:
            decided = Verdict.OK if p < thresholds.ok_below else Verdict.NG
            values |= {
                "ng_probability": p,
                "verdict": Verdict.REVIEW if thresholds.ok_below <= p < thresholds.ng_above else decided,
            }

        entries.append(as_new(board, number, datetime.now(UTC), change=change))
        found.append((p, truth))
    for stored, (_, truth) in zip(store.record_many(entries), found, strict=True):
        if truth:
            store.review(stored.result.result_id, verdict=Verdict(truth), reviewer="Q", reason="sample")
    return found


def test_preview_agrees_with_the_stored_results(
    store: Store, judged: list[tuple[float, str]], serve: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page()
    page.goto(serve(store).url + "recipes/pcb")
    until(page, "document.querySelector('#basis').textContent.includes('200 results')")
    basis = page.locator("#basis").inner_text()
    assert "reviewed 50 as OK and 50 as NG" in basis
    page.get_by_label("OK below").nth(1).fill("0.4")
    page.get_by_label("NG from").nth(1).fill("0.5")

    def shown(name: str, which: str = "tried") -> str:
        return str(page.locator(f"[data-rate={name}] .{which}").inner_text())

    escape = sum(p < 0.4 for p, truth in judged if truth == "NG")
    overkill = sum(p >= 0.5 for p, truth in judged if truth == "OK")
    review = sum(0.4 <= p < 0.5 for p, _ in judged)
    assert min(overkill, review) > 0
    until(page, f"document.querySelector('[data-rate=review] .tried').innerText.includes('{review} / 200')")
    assert f"{escape} / 50" in shown("escape") and f"{overkill} / 50" in shown("overkill")
    now = load_recipe("pcb").thresholds
    passed = sum(p < now.ok_below for p, truth in judged if truth == "NG")
    unsure = sum(now.ok_below <= p < now.ng_above for p, _ in judged)
    assert unsure != review
    assert f"{passed} / 50" in shown("escape", "now") and f"{unsure} / 200" in shown("review", "now")
    ok, ng = sum(p < 0.4 for p, _ in judged), sum(p >= 0.5 for p, _ in judged)
    assert shown("counts") == f"{ok} / {review} / {ng}"
    # Thresholds that contradict each other are not computed with.
    page.get_by_label("OK below").nth(1).fill("0.9")
    page.wait_for_selector("#threshold-problem:not([hidden])")


def test_a_new_version(store: Store, serve: Any, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.goto(serve(store).url + "recipes/pcb")
    page.get_by_label("OK below").nth(1).fill("0.4")
    page.locator("#labels tr").nth(1).get_by_label("Severity").select_option("minor")
    page.get_by_role("button", name="Add a defect kind").click()
    page.locator("#labels tr").last.get_by_label("Label").fill("scratch")
    page.locator("#labels tr").last.get_by_label("Name in Deutsch").fill("Kratzer")
    page.get_by_label("Why").fill("fewer escapes")
    page.get_by_label("Your name").fill("Quinn")
    page.get_by_role("button", name="Store as version 2").click()
    until(page, "document.querySelector('.headline .hint')?.textContent.includes('Version 2')")
    stored, file = store.recipe("pcb"), load_recipe("pcb")
    assert stored.version == 2 and stored.thresholds.ok_below == 0.4
    assert stored.thresholds.ng_above == file.thresholds.ng_above
    assert stored.labels[1].severity == "minor" and stored.labels[0] == file.labels[0]
    assert (stored.labels[-1].name, stored.labels[-1].title) == ("scratch", {"de": "Kratzer"})
    assert stored.tiling == file.tiling and stored.reference_shift_px == file.reference_shift_px
    entry = next(iter(store.audit_trail(subject="recipe:pcb")))
    assert (entry.who, entry.why) == ("Quinn", "fewer escapes")
    # Someone else stores a version while this one is edited.
    page.get_by_label("OK below").nth(1).fill("0.5")
    changed = stored.model_copy(update={"title": "Another"})
    store.put_recipe(changed, who="Zoe", why="title", expected_version=2)
    page.get_by_label("Why").fill("once more")
    page.get_by_role("button", name="Store as version 3").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "someone else changed it" in page.locator("#problem").inner_text()
    assert store.recipe("pcb").thresholds.ok_below == 0.4
    # An earlier version comes back as a new one.
    page.reload()
    page.get_by_role("button", name="Load into the form").last.click()
    page.get_by_label("Why").fill("back")
    page.get_by_role("button", name="Store as version 4").click()
    until(page, "document.querySelector('.headline .hint')?.textContent.includes('Version 4')")
    assert store.recipe("pcb").title == stored.title and store.recipe("pcb").labels == stored.labels


def test_a_recipe_that_cannot_work_is_refused(store: Store, serve: Any, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.goto(serve(store).url + "recipes/pcb")
    page.locator("#labels tr").nth(1).get_by_role("button").click()
    page.get_by_role("button", name="Add a defect kind").click()
    page.locator("#labels tr").last.get_by_label("Label").fill("open")
    page.get_by_label("Why").fill("test")
    page.get_by_label("Your name").fill("Quinn")
    page.get_by_role("button", name="Store as version 2").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "labels named twice: open" in page.locator("#problem").inner_text()
    assert store.recipes() == []
