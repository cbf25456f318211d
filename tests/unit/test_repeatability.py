"""The same part gets the same answer: a hundred times, alone, in any batch, and through the service."""

from __future__ import annotations

import numpy as np
import pytest

from auroraedge.data.synthetic import generate_board, generate_ground_surface, generate_rolled_surface
from auroraedge.evaluate.repeatability import measure_repeatability
from auroraedge.inspection.recipe import load_recipe
from auroraedge.runtime import InspectionJob, Inspector


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def inspector(request: pytest.FixtureRequest) -> Inspector:
    """With two threads, views run side by side or together, depending on the company."""
    return Inspector.open(threads=request.param)


def _jobs(count: int) -> list[InspectionJob]:
    """Ground tiles, each with its four mirror images, and strips: good and defective ones."""
    tile, strip = load_recipe("magnetic_tile"), load_recipe("steel_strip")
    jobs = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        if seed % 2:
            jobs.append(InspectionJob(image=generate_ground_surface(rng).image, recipe=tile))
        else:
            jobs.append(InspectionJob(image=generate_rolled_surface(rng).image, recipe=strip))
    return jobs


def test_one_part_a_hundred_times(inspector: Inspector) -> None:
    strip = load_recipe("steel_strip")
    image = generate_rolled_surface(np.random.default_rng(4)).image
    report = measure_repeatability(inspector, [InspectionJob(image=image, recipe=strip)], times=100, batches=1)
    assert report.inspections == 101
    assert (report.verdicts, report.classes, report.boxes, report.largest_difference) == (0, 0, 0, 0.0)


def test_alone_and_in_batches_of_any_size_and_company(inspector: Inspector) -> None:
    report = measure_repeatability(inspector, _jobs(6), times=1, batches=3)
    assert report.inspections == 6 * 4
    assert report.largest_batch > 2
    assert (report.verdicts, report.classes, report.boxes) == (0, 0, 0)
    assert report.largest_difference == 0.0, "a neighbour in the batch changed a probability"


def test_a_board_beside_its_golden_sample_in_company(inspector: Inspector) -> None:
    recipe = load_recipe("pcb")
    parts = [generate_board(np.random.default_rng(seed), size=352, n_defects=3 * seed) for seed in range(2)]
    jobs = [InspectionJob(image=part.image, recipe=recipe, reference=part.reference) for part in parts]
    report = measure_repeatability(inspector, jobs, times=1, batches=1)
    assert (report.verdicts, report.boxes, report.largest_difference) == (0, 0, 0.0)


def test_the_check_sees_a_part_that_changes(inspector: Inspector) -> None:
    """An inspector that drifts is found out."""

    class Drifting:
        engine = inspector.engine
        calls = 0

        def inspect(self, image, recipe, *, reference=None):  # type: ignore[no-untyped-def]
            Drifting.calls += 1
            found = inspector.inspect(image, recipe, reference=reference)
            return found.model_copy(update={"ng_probability": (found.ng_probability or 0) / Drifting.calls})

        def inspect_batch(self, jobs):  # type: ignore[no-untyped-def]
            return [self.inspect(job.image, job.recipe) for job in jobs]

    report = measure_repeatability(Drifting(), _jobs(2), times=1, batches=1)  # type: ignore[arg-type]
    assert report.largest_difference > 0
