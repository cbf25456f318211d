"""A short soak: the long one is `python -m benchmarks.service_load soak --requests 20000`."""

from __future__ import annotations

import argparse

from benchmarks.service_load import soak


def test_short_soak_loses_doubles_and_mixes_up_nothing() -> None:
    options = argparse.Namespace(
        requests=500, clients=64, blocks=1, engine="fixed", recipe="steel_strip", keep_images="not-ok", pictures=50
    )
    figures = soak(options)
    assert figures["codes"] == {"OK": 500}
    assert (figures["stored"], figures["lost"], figures["duplicated"], figures["mismatched"]) == (500, 0, 0, 0)
    assert figures["attempts"] > 500, "64 clients are more than the queue takes: some were refused, and came again"
