"""lmms-eval itself runs the model `auroraedge` on two tiny tasks made here. Skipped where lmms-eval is not installed.

It has many dependencies with exact versions, so it is not in the development environment; see
docs/benchmarks-of-the-field.md for one of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own")
from PIL import Image

from auroraedge.errors import InvalidRequestError
from auroraedge.evaluate.lmms import AuroraEdge, manifest
from auroraedge.evaluate.respondent import Respondent, montage
from auroraedge.runtime import DEFAULT_ENGINE

UTILS = """
from pathlib import Path

from PIL import Image


def visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def choices(doc):
    return doc["choices"]


def target(doc):
    return doc["answer"]


def score(doc, results):
    return {"said": float(bool(results[0]))}


def mean(values):
    return sum(values) / len(values)
"""
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs}}}}}
test_split: test
task: {task}
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: !function utils.target
"""
CHOICE = (
    COMMON
    + """
output_type: multiple_choice
target_delimiter: ""
doc_to_choice: !function utils.choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
)
GENERATE = (
    COMMON
    + """
output_type: generate_until
generation_kwargs: {{max_new_tokens: 5, until: ["\\n"]}}
process_results: !function utils.score
metric_list:
  - {{metric: said, aggregation: !function utils.mean, higher_is_better: true}}
"""
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three questions each, the right choice being the one that the embedded nano finds likeliest."""
    respondent = Respondent.open(DEFAULT_ENGINE, threads=1)
    docs = []
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, size=(40, 60, 3), dtype=np.uint8)
        picture = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(picture)
        question, options = f"what is it, {index}?", ["short", "2 open", "board: no defects"]
        likely = respondent.log_likelihoods(montage([pixels]), question, options)
        best = max(range(3), key=lambda i: likely[i].per_token)
        answer = best if index < 2 else (best + 1) % 3  # the third is wrong on purpose
        docs.append({"picture": str(picture), "question": question, "choices": options, "answer": answer})
    file = tmp_path / "docs.json"
    file.write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    (tmp_path / "utils.py").write_text(UTILS, encoding="utf-8")
    for task, body in (("tiny_choice", CHOICE), ("tiny_words", GENERATE)):
        (tmp_path / f"{task}.yaml").write_text(body.format(task=task, docs=file), encoding="utf-8")
    return tmp_path


def test_its_evaluator_runs_both_kinds_of_task(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval import evaluator, models
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tasks / "hf"))
    models.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    assert models.get_model("auroraedge") is AuroraEdge
    found = evaluator.simple_evaluate(
        model="auroraedge",
        model_args="threads=1",
        tasks=["tiny_choice", "tiny_words"],
        task_manager=TaskManager(include_path=str(tasks)),
        batch_size=1,
        log_samples=False,
        bootstrap_iters=0,
    )
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert found["results"]["tiny_words"]["said,none"] == 1.0


def test_what_it_cannot_show_is_refused() -> None:
    model = AuroraEdge(threads=1)
    model.task_dict = {"t": {"test": [{"video": "a.mp4"}]}}
    request = SimpleNamespace(args=("what happens?", {}, lambda doc: [doc["video"]], 0, "t", "test"))
    with pytest.raises(InvalidRequestError, match="cannot be shown"):
        model.generate_until([request])
    with pytest.raises(InvalidRequestError, match="no argument"):
        AuroraEdge(temperature=2)
