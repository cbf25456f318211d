"""AuroraEdge as a model of lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval), which runs the benchmarks of the field.

    python -m lmms_eval --model auroraedge --model_args engine=DIR --tasks mme --batch_size 1

lmms-eval finds it by the entry point group `lmms_eval.models` of this package. `engine` is an engine package or a model
folder (what `auroraedge assemble` and training write). Only lmms-eval imports this module, and it needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from auroraedge.errors import InvalidRequestError
from auroraedge.evaluate.respondent import Respondent, montage
from auroraedge.runtime import DEFAULT_ENGINE

DEFAULT_NEW_TOKENS = 64


def manifest() -> ModelManifest:
    """What the entry point hands to lmms-eval."""
    return ModelManifest(model_id="auroraedge", simple_class_path=f"{__name__}.AuroraEdge")


def _pixels(picture: Any) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a PIL image or an array, which is what image tasks hand over."""
    if isinstance(picture, np.ndarray):
        return picture
    if not hasattr(picture, "convert"):
        raise InvalidRequestError(
            f"A {type(picture).__name__} cannot be shown to AuroraEdge.",
            field="visuals",
            remedy="Choose tasks about pictures: sound and video files are not supported.",
        )
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)


class AuroraEdge(lmms):  # type: ignore[misc]
    """One picture and a question; several pictures are put side by side, and none is a grey frame.

    Decoding is greedy whatever temperature a task asks for, and `until`, `max_new_tokens` are honoured.
    """

    is_simple = True

    def __init__(
        self,
        engine: str = "",
        threads: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **unknown: Any,
    ) -> None:
        """engine: empty for the embedded nano. device, batch_size: lmms-eval passes them; requests go one by one."""
        super().__init__()
        unknown = {key: value for key, value in unknown.items() if value is not None and key != "max_batch_size"}
        if unknown:
            raise InvalidRequestError(
                f"AuroraEdge has no argument {', '.join(sorted(unknown))}.",
                field="model_args",
                remedy="It takes engine, threads and max_new_tokens.",
            )
        path = Path(engine) if engine else DEFAULT_ENGINE
        self._respondent = Respondent.open(path, threads=None if threads is None else int(threads))
        self._max_new_tokens = int(max_new_tokens)
        self.batch_size = 1

    def _picture(self, doc_to_visual: Any, doc: Any) -> np.ndarray:
        shown = doc_to_visual(doc) if doc_to_visual is not None else None
        if shown is None:
            return montage([])
        pictures = shown if isinstance(shown, Sequence) and not isinstance(shown, (str, bytes)) else [shown]
        return montage([_pixels(picture) for picture in pictures if picture is not None])

    def _bar(self, requests: Sequence[Any]) -> Any:
        return tqdm(requests, disable=self.rank != 0, desc="AuroraEdge")

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = []
        for request in self._bar(requests):
            prompt, settings, doc_to_visual, doc_id, task, split = request.args
            until = settings.get("until") or ()
            answers.append(
                self._respondent.generate(
                    self._picture(doc_to_visual, self.task_dict[task][split][doc_id]),
                    prompt,
                    max_new_tokens=int(settings.get("max_new_tokens") or self._max_new_tokens),
                    until=(until,) if isinstance(until, str) else tuple(until),
                )
            )
            self.cache_hook.add_partial("generate_until", (prompt, settings), answers[-1])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """lmms-eval ranks the choices of a multiple-choice task by the first value and takes the *lowest* for the
        answer (its models return losses), so this is the mean negative log-likelihood a token."""
        found = []
        for request in self._bar(requests):
            prompt, target, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            text = target if isinstance(target, str) else target(doc)
            likelihood = self._respondent.log_likelihoods(self._picture(doc_to_visual, doc), prompt, [text])[0]
            # The evaluator of 0.7.3 turns whatever is neither text nor of this class into text, bare pairs too.
            found.append(GenerationResult(text=(-likelihood.per_token, likelihood.greedy)))
        return found

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("AuroraEdge answers single questions; leave multi-round tasks out.")
