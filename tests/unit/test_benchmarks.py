"""The benchmarks: intervals, comparison with a baseline, processes, the plant on paper, and the page they write."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from auroraedge.errors import EngineError, InvalidRequestError
from auroraedge.inspection.recipe import Tiling
from auroraedge.inspection.views import contrast, plan_views
from benchmarks.figures import compare, median_interval, ratio_interval, same_machine
from benchmarks.process import ContenderProcess, interleaved
from benchmarks.suite import Document, read_document, write_document


def _noisy(middle: float, seed: int, count: int = 40) -> list[float]:
    return list(middle * np.random.default_rng(seed).lognormal(0.0, 0.1, count))


def _document(middle: float, seed: int, *, probe: float = 10.0) -> Document:
    document = Document(suite="cpu", title="a test", environment={"cpu": "one"}, contenders={"ours": "us"})
    document.add("one view", "ours", "verdict", "ms", _noisy(middle, seed))
    document.add("one view", "ours", "throughput", "1/s", [1000 / ms for ms in _noisy(middle, seed + 1)], "more")
    document.probe_ms = _noisy(probe, seed + 2)
    return document


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = median_interval(_noisy(20.0, seed))
        held += found.low <= 20.0 <= found.high
    assert 180 <= held <= 200  # 95 % of 200 are 190


def test_paired_ratios_do_not_see_a_drift_that_both_share() -> None:
    drift = np.linspace(1.0, 3.0, 30)
    ours, theirs = drift * _noisy(10.0, 1, 30), drift * _noisy(25.0, 2, 30)
    paired = ratio_interval(theirs, ours, paired=True)
    assert paired.low < 2.5 < paired.high
    alone = ratio_interval(theirs, ours)
    assert paired.high - paired.low < 0.6 * (alone.high - alone.low)


# --- the baseline ----------------------------------------------------------------------------------------------------


def test_a_slower_run_is_flagged_and_an_equal_one_is_not() -> None:
    before = _document(20.0, 1)
    assert {change.finding for change in compare(_document(20.0, 10), before)} == {"same"}
    assert {change.finding for change in compare(_document(26.0, 10), before)} == {"slower"}
    assert {change.finding for change in compare(_document(14.0, 10), before)} == {"faster"}


def test_a_slower_machine_is_not_a_regression() -> None:
    before = _document(20.0, 1)
    assert {c.finding for c in compare(_document(30.0, 10, probe=15.0), before)} == {"same"}
    assert {c.finding for c in compare(_document(20.0, 10, probe=15.0), before)} == {"faster"}


def test_few_samples_are_never_a_regression_and_missing_figures_are_told() -> None:
    before, after = _document(20.0, 1), _document(60.0, 2)
    for measurement in after.measurements:
        measurement.samples = measurement.samples[:3]
    after.measurements[1].case = "another"
    changes = {(c.measurement.case, c.measurement.metric): c for c in compare(after, before)}
    assert changes["one view", "verdict"].finding == "same"
    assert not changes["one view", "verdict"].sure
    assert changes["another", "throughput"].finding == "new"
    assert changes["one view", "throughput"].finding == "gone"
    after.environment["cpu"] = "two"
    assert same_machine(after, before) == ["cpu: two, was one"]


def test_a_result_is_written_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    document = _document(20.0, 1)
    write_document(document, path)
    assert read_document(path) == document
    assert list(path.parent.iterdir()) == [path]
    path.write_text('{"suite": "cpu", "title": "x", "measurements": [{"case": "a"}]}', encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=r"measurements\.0"):
        read_document(path)
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_document(tmp_path / "absent.json")


def test_the_entry_returns_1_on_a_regression_and_2_for_a_file_that_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import __main__ as entry

    monkeypatch.setattr(entry, "_run", lambda options, console: _document(30.0, 5))
    for middle, code in ((20.0, 1), (30.0, 0), (45.0, 0)):
        write_document(_document(middle, 1), tmp_path / "before.json")
        assert entry.main(["--suite", "cpu", "--baseline", str(tmp_path / "before.json")]) == code
    assert entry.main(["--suite", "cpu", "--baseline", str(tmp_path / "absent.json")]) == 2


# --- processes -------------------------------------------------------------------------------------------------------


class Held:
    """A contender that holds `megabytes`, and stops working after a few measurements."""

    def __init__(self, *, megabytes: int, works: int = 100) -> None:
        self.block = np.ones(megabytes * 2**17)
        self.works = works

    def measure(self, case: str) -> dict[str, float]:
        self.works -= 1
        if self.works < 0:
            raise ValueError("worn out")
        return {"pid": float(os.getpid())}


def test_contenders_have_processes_of_their_own_and_one_that_fails_does_not_stop_the_others() -> None:
    place = f"{__name__}:Held"
    with (
        ContenderProcess("large", place, megabytes=200) as large,
        ContenderProcess("small", place, megabytes=1, works=2) as small,
    ):
        assert large.loaded_mb - small.loaded_mb > 150
        assert large.load_ms > 0
        samples, probes, failed = interleaved([large, small], "x", rounds=3, warmup=1)
    assert list(samples) == ["large"]
    assert len(probes) == 3
    assert len(set(samples["large"]["pid"])) == 1
    assert samples["large"]["pid"][0] != os.getpid()
    assert len(samples["large"]["processor time"]) == 3
    assert "worn out" in failed["small"]
    with pytest.raises(EngineError, match="megabyte"):
        ContenderProcess("wrong", place, megabyte=1)


# --- what is compared ------------------------------------------------------------------------------------------------


def test_the_shapes_of_others_run_and_the_detector_has_its_published_size() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.detector import YoloShaped, boxes_of, sizes
    from benchmarks.shapes import SHAPES, make

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads would wait for each other
    for shape in SHAPES:
        made = make(shape, device=torch.device("cpu"), dtype=torch.float32, tiny=True)
        with torch.no_grad():
            found = made.measure(prompt_tokens=4, new_tokens=2)
            logits = made.first(made.inputs(2, 4))
        assert 0 < found["verdict"] < found["answer"]
        assert logits.shape[0] == 2
        assert torch.isfinite(logits).all()
    parameters, gflops = sizes(YoloShaped())
    torch.set_num_threads(threads)
    assert parameters == pytest.approx(3.2, abs=0.1)
    assert gflops == pytest.approx(8.7, abs=0.1)
    boxes = np.zeros((1, 84, 4), dtype=np.float32)
    boxes[0, :4] = np.array([[10, 10, 8, 8], [11, 10, 8, 8], [40, 40, 8, 8], [70, 70, 8, 8]]).T
    boxes[0, 4, :] = [0.9, 0.8, 0.7, 0.1]
    assert boxes_of(boxes, limit=10) == [0, 2]


def test_the_prompt_has_the_length_that_the_benchmark_says() -> None:
    from auroraedge.inspection.tokenizer import InspectionTokenizer
    from auroraedge.runtime.inspector import DEFAULT_ENGINE
    from benchmarks.contenders import PROMPT_TOKENS, prompt

    tokenizer = InspectionTokenizer.load(DEFAULT_ENGINE / "tokenizer.json")
    made = prompt(tokenizer, ("crack", "pitting", "short"))
    assert len(tokenizer.encode(made.text)) == PROMPT_TOKENS == 64


def test_contrast_is_the_standard_deviation_over_all_views() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 3):
        views = [rng.integers(0, 40 * (i + 1), (256, 256, 3), dtype=np.uint8) for i in range(count)]
        assert contrast(views) == pytest.approx(float(np.stack(views)[..., 0].std()), rel=1e-9)
    assert contrast([np.full((256, 256, 3), 7, dtype=np.uint8)]) == 0.0


# --- the plant -------------------------------------------------------------------------------------------------------


def test_the_plant_counts_views_as_the_tiling_does_and_grows_with_its_cameras() -> None:
    pytest.importorskip("torch")
    from benchmarks.plant import Assumptions, plan

    for megapixels in (0.3, 1.2, 5.0, 12.0, 50.0):
        height = round((megapixels * 1e6 / 1.25) ** 0.5)
        tiling = Tiling(mode="square", size_px=1024, overlap_px=64, max_views=256)
        views = len(plan_views(round(1.25 * height), height, tiling))
        assert Assumptions(megapixels=megapixels).views == views
    small, large = plan(Assumptions(cameras=100)), plan(Assumptions(cameras=1000))
    assert large.store_tb == pytest.approx(10 * small.store_tb)
    assert large.camera_gbit_s == pytest.approx(10 * small.camera_gbit_s)
    for a, b in zip(small.estimates, large.estimates, strict=True):
        assert 10 * (a.devices - 1) < b.devices <= 10 * a.devices
    # By hand: 1,000 cameras x 2 frames/s x 5 MP x 8 bits = 80 Gbit/s.
    assert large.camera_gbit_s == pytest.approx(80.0)
    assert plan(Assumptions(batch=1)).estimates[0].seconds_an_answer > large.estimates[0].seconds_an_answer
    with pytest.raises(InvalidRequestError, match="rate"):
        Assumptions(rate=0)


def test_the_page_is_what_the_committed_results_say() -> None:
    pytest.importorskip("torch")
    from benchmarks.report import PAGE, render

    assert PAGE.read_text(encoding="utf-8") == render(), "write it again: python -m benchmarks report"
