"""Batch reports on Ray Data: the images of a folder are inspected by engines on all machines of a cluster.

    python -m service.ray_data parts/ --recipe magnetic_tile --out report --engines 4     # see docs/scale-out.md

Every result goes into the report's results.jsonl as it comes; then the report is written from there as `auroraedge
report` does, which inspects what is missing. So a run that was cut short is continued, by this command or by that one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auroraedge.errors import AuroraEdgeError, InvalidImageError, MissingDependencyError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import RequestInfo, Verdict, error_result
from auroraedge.report.backend import LocalBackend
from auroraedge.report.inputs import InputItem, collect_inputs
from auroraedge.report.journal import Journal, Record, read_file, record_key
from auroraedge.report.runner import RESULTS, ReportSummary, run_report
from auroraedge.runtime import Inspector

try:
    import ray
    import ray.data
except ImportError as error:
    raise MissingDependencyError("Ray Data is not installed.", remedy="pip install 'auroraedge[ray]'") from error


class Engine:
    """One engine in a process of its own; the folders of images must be mounted at the same place everywhere."""

    def __init__(self, engine: str | None, threads: int | None) -> None:
        self._inspector = Inspector.open(Path(engine) if engine else None, threads=threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Rows of `inspect_on_ray` to records of results.jsonl."""
        columns = [batch[name] for name in ("name", "path", "reference", "recipe", "request")]
        return {"record": [self._record(*map(str, row)).model_dump_json() for row in zip(*columns, strict=True)]}

    def _record(self, name: str, path: str, reference: str, recipe_json: str, request_json: str) -> Record:
        recipe = Recipe.model_validate_json(recipe_json)
        request = RequestInfo.model_validate_json(request_json)
        work = _Work(name, Path(path), Path(reference) if reference else None, recipe, request)
        if work.failure is not None:
            result = error_result(work.failure, recipe, request=request, image_name=name)
        else:
            assert work.image is not None
            golden = None if recipe.golden_reference == "none" else work.golden
            try:
                result = self._inspector.inspect(work.image, recipe, reference=golden, request=request, image_name=name)
            except AuroraEdgeError as error:
                result = error_result(error, recipe, request=request, image_name=name)
        return Record(
            key=work.key(self._inspector.engine.engine_sha256),
            file=name,
            reference=work.reference.name if work.reference else None,
            reference_sha256=_sha(work.golden),
            result=result,
        )


def _sha(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


class _Work:
    """The bytes of one item, or why they cannot be read, and its key in results.jsonl."""

    def __init__(self, name: str, path: Path, reference: Path | None, recipe: Recipe, request: RequestInfo) -> None:
        self._name, self.reference, self._recipe, self._request = name, reference, recipe, request
        self.image: bytes | None = None
        self.golden: bytes | None = None
        self.failure: InvalidImageError | None = None
        try:
            self.image = read_file(path, "image")
            if reference is not None:
                self.golden = read_file(reference, "reference")
        except InvalidImageError as error:
            self.failure = error

    def key(self, engine_sha256: str) -> str:
        return record_key(
            file=self._name,
            image_sha256=_sha(self.image) or "",
            reference_sha256=_sha(self.golden),
            recipe_sha256=self._recipe.sha256,
            engine_sha256=engine_sha256,
            request=self._request,
        )


def inspect_on_ray(
    source: str | Path,
    out_dir: Path,
    recipe: str | None,
    *,
    references: Path | None = None,
    recipe_dirs: Sequence[Path] = (),
    engine: Path | None = None,
    engines: int = 2,
    threads: int | None = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    batch: int = 8,
    title: str | None = None,
) -> ReportSummary:
    """A report as of auroraedge.report.run_report, inspected by `engines` processes of the connected Ray cluster.

    cpus, gpus: what Ray reserves for one engine. threads: CPU threads of one engine. batch: images that an engine is
    given at a time. Raises what run_report raises; an engine that dies is replaced by Ray and its images are repeated.
    """
    with Inspector.open(engine, threads=threads) as inspector:
        backend = LocalBackend(inspector, recipe_dirs)
        default = backend.recipe(recipe) if recipe is not None else None
        inputs = collect_inputs(source, references=references, exclude=out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        begun = (out_dir / RESULTS).exists()
        with Journal(out_dir / RESULTS) as journal:

            def is_done(item: InputItem, used: Recipe) -> bool:
                work = _Work(item.name, item.path, item.reference, used, item.request)
                record = journal.get(work.key(inspector.engine.engine_sha256))
                return record is not None and record.result.verdict is not Verdict.ERROR

            rows = []
            for item in inputs.items:
                used = backend.recipe(item.recipe) if item.recipe is not None else default
                # run_report says what is wrong with an item without a recipe, and reads the frames of a video.
                if used is None or item.frame is not None or (begun and is_done(item, used)):
                    continue
                rows.append(
                    {
                        "name": item.name,
                        "path": str(item.path.absolute()),
                        "reference": str(item.reference.absolute()) if item.reference else "",
                        "recipe": used.model_dump_json(),
                        "request": item.request.model_dump_json(),
                    }
                )
            if rows:
                blocks = max(1, min(len(rows), 4 * engines))
                results = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
                    Engine,
                    fn_constructor_args=(str(engine.absolute()) if engine else None, threads),
                    batch_size=batch,
                    compute=ray.data.ActorPoolStrategy(size=engines),
                    num_cpus=cpus,
                    num_gpus=gpus or None,
                )
                for row in results.iter_rows():
                    journal.append(Record.model_validate_json(row["record"]))
        return run_report(
            source, out_dir, recipe, inspector, references=references, recipe_dirs=recipe_dirs, title=title
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.ray_data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="folder, image, glob pattern or CSV manifest")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--recipe", help="recipe id, or a YAML file")
    parser.add_argument("--references", type=Path, help="folder with golden samples of the same names")
    parser.add_argument("--engine", type=Path, help="engine package; else the embedded one")
    parser.add_argument("--engines", type=int, default=2, help="engines on the cluster (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one engine (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of one engine; parts of one are allowed")
    parser.add_argument("--address", help="Ray cluster to join, e.g. auto; none: this machine alone")
    options = parser.parse_args()
    ray.init(address=options.address, include_dashboard=False, log_to_driver=False)
    try:
        summary = inspect_on_ray(
            options.source,
            options.out,
            options.recipe,
            references=options.references,
            engine=options.engine,
            engines=options.engines,
            threads=options.threads,
            cpus=float(options.threads),
            gpus=options.gpus,
        )
    except AuroraEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        ray.shutdown()
    counts = "  ".join(f"{verdict} {number}" for verdict, number in summary.counts.items())
    print(f"{sum(summary.counts.values())} images: {counts}\nreport: {summary.page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
