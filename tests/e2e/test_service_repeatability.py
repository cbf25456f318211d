"""The service answers as the library does, whatever its batching worker puts together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from service_harness import encoded, running_server

from auroraedge.client import InspectionClient
from auroraedge.data.synthetic import generate_ground_surface, generate_rolled_surface
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import InspectionResult
from auroraedge.runtime import Inspector

RECIPES = ("magnetic_tile", "steel_strip")


def test_a_part_gets_the_same_answer_alone_in_company_and_through_the_service() -> None:
    rng = np.random.default_rng(0)
    parts = [generate_ground_surface(rng).image, generate_rolled_surface(rng).image] * 2
    parts = [np.roll(part, 3 * index, axis=1) for index, part in enumerate(parts)]
    with Inspector.open(threads=1) as inspector:
        alone = [inspector.inspect(part, load_recipe(RECIPES[i % 2])) for i, part in enumerate(parts)]
    images = [encoded(part) for part in parts]
    with (
        running_server(make_inspector=lambda *_: Inspector.open(threads=1)) as server,
        InspectionClient(server.address) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(turn: int) -> InspectionResult:
            return client.inspect(images[turn % 4], RECIPES[turn % 2])

        found = list(pool.map(ask, range(20)))  # eight at a time: the worker batches what waits
    for turn, result in enumerate(found):
        first = alone[turn % 4]
        assert (result.verdict, result.predicted_class) == (first.verdict, first.predicted_class)
        # The wire has 32-bit floats.
        assert result.ng_probability == pytest.approx(first.ng_probability, rel=1e-6, abs=1e-9)
        assert [d.label for d in result.defects] == [d.label for d in first.defects]
        for mine, theirs in zip(result.defects, first.defects, strict=True):
            assert mine.box is not None and theirs.box is not None
            corners = (mine.box.x1, mine.box.y1, mine.box.x2, mine.box.y2)
            assert corners == pytest.approx((theirs.box.x1, theirs.box.y1, theirs.box.x2, theirs.box.y2), abs=1e-3)
        assert result.ng_probability == found[turn % 4].ng_probability, "the same part, the same number"
