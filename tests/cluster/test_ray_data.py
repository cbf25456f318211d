"""A batch report on Ray Data is the report of one process, and a second run has nothing left to inspect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="extra `ray`")

from auroraedge.data.samples import write_samples  # noqa: E402
from auroraedge.report import run_report  # noqa: E402
from auroraedge.runtime import Inspector  # noqa: E402
from service.ray_data import inspect_on_ray  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2,
        object_store_memory=200 << 20,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def test_a_report_on_ray_is_the_same(cluster: None, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    write_samples(parts, seed=3, n_per_kind=6)
    manifest = parts / "manifest.csv"
    summary = inspect_on_ray(manifest, tmp_path / "ray", None, engines=2, cpus=0.5)
    assert summary.inspected == 0, "every image was inspected on the cluster"
    with Inspector.open(threads=1) as inspector:
        alone = run_report(manifest, tmp_path / "alone", None, inspector, generated_at=datetime.now(UTC))

    def verdicts(folder: str) -> dict[str, tuple[str, float]]:
        lines = (tmp_path / folder / "results.jsonl").read_text().splitlines()
        found = {(each := json.loads(line))["key"]: each["result"] for line in lines}
        return {key: (result["verdict"], result["ng_probability"]) for key, result in found.items()}

    assert verdicts("ray") == verdicts("alone") and alone.inspected == len(verdicts("ray"))
    assert len((tmp_path / "ray" / "images.csv").read_text().splitlines()) == 1 + alone.inspected
    again = inspect_on_ray(manifest, tmp_path / "ray", None, engines=2, cpus=0.5)
    assert again.inspected == 0 and again.reused == alone.inspected
    print(f"\n{len(verdicts('ray'))} images on two engines: verdicts and probabilities as of one process")
