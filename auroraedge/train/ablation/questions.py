"""Several questions about one view in one row, so that the visual tokens are read once for all of them.

    row = [C ; question 1 ; question 2 ; ...],  question = fused prompt, then the answer without its last token

A question sees the visual tokens and itself, not its neighbours, and its positions start after the visual tokens: each
gets the logits that it would get in a row of its own (tested).

Suffixes: B rows, L text places of a row, S = C + L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auroraedge.data.instructions import Target, answer_ids
from auroraedge.inspection.prompts import PromptKind, build_prompt
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.train.ablation.bank import Example

_IGNORED = -100
_MOST_BOXES = 2


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt about one label, with the answer that is taught: token ids, their loss weights.

    The prompts are the product's, less what costs tokens and tells nothing here: the question mark after the label
    (the verdict is read at the label itself) and the words about the reference.
    """

    kind: PromptKind
    label: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """ids, segment (0 padded, else the question's number from 1), position (within the question), is_prompt, targets
    (-100 where nothing is learnt) and weights, all [B, L]."""

    ids: torch.Tensor
    segment: torch.Tensor
    position: torch.Tensor
    is_prompt: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def seen(self) -> torch.Tensor:
        """[B, L, L] float: 1 where a place attends to another: itself and earlier ones of its question."""
        length = self.ids.shape[1]
        same = self.segment[:, :, None] == self.segment[:, None, :]
        return (same & torch.ones(length, length, dtype=torch.bool).tril()).float()


def _question(tokenizer: InspectionTokenizer, kind: PromptKind, label: str, example: Example) -> Question:
    prompt = build_prompt(kind, example.labels, label)
    targets = [Target(label=b[0], box=(b[1], b[2], b[3], b[4])) for b in example.boxes]
    answer = answer_ids(
        tokenizer,
        prompt,
        targets,
        image_class=example.image_class,
        describe="",
        defective=bool(example.there()),
    )[:-1]  # the end is implied by the grammar, or not asked for
    if kind is PromptKind.LOCATE:
        answer = answer[: 1 + _MOST_BOXES * (len(tokenizer.label_ids(label)) + 4)]
    weights = [2.0] + [1.0 if tokenizer.location_bin(i) is None else 0.6 for i in answer[1:]]
    words = tuple(tokenizer.encode(prompt.text.removesuffix("?")))
    return Question(kind=kind, label=label, prompt=words, answer=tuple(answer), weights=tuple(weights))


def all_exist(tokenizer: InspectionTokenizer, example: Example) -> list[Question]:
    """'is there: LABEL?' for every label of the recipe."""
    return [_question(tokenizer, PromptKind.EXISTS, label, example) for label in example.labels]


def teach(tokenizer: InspectionTokenizer, example: Example, rng: np.random.Generator) -> list[Question]:
    """What one row asks in training: whether each label is there, how many of one, and where one is."""
    questions = all_exist(tokenizer, example)
    if example.image_class is not None:
        return questions
    there = sorted(example.there())
    for kind in (PromptKind.COUNT, PromptKind.LOCATE):
        pool = there if there and rng.random() < 0.85 else list(example.labels)
        questions.append(_question(tokenizer, kind, pool[int(rng.integers(len(pool)))], example))
    return questions


def count_and_place(tokenizer: InspectionTokenizer, example: Example) -> tuple[list[Question], list[Question]]:
    """For scoring: a count and a locate question about every label that is there (none for image classes)."""
    labels = [] if example.image_class is not None else sorted(example.there())
    counts = [_question(tokenizer, PromptKind.COUNT, label, example) for label in labels]
    return counts, [_question(tokenizer, PromptKind.LOCATE, label, example) for label in labels]


def pack(rows: Sequence[Sequence[Question]], pad_id: int) -> Packed:
    """Questions of each row side by side, padded on the right."""
    length = max(sum(len(q.prompt) + len(q.answer) - 1 for q in row) for row in rows)
    shape = (len(rows), length)
    ids, segment = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    position, is_prompt = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    targets, weights = np.full(shape, _IGNORED, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    for r, row in enumerate(rows):
        at = 0
        for number, q in enumerate(row, start=1):
            words = (*q.prompt, *q.answer[:-1])
            end, answer = at + len(words), at + len(q.prompt) - 1
            ids[r, at:end], segment[r, at:end], position[r, at:end] = words, number, np.arange(len(words))
            is_prompt[r, at : at + len(q.prompt)] = True
            targets[r, answer:end], weights[r, answer:end] = q.answer, q.weights
            at = end
    arrays = (ids, segment, position, is_prompt, targets, weights)
    names = ("ids", "segment", "position", "is_prompt", "targets", "weights")
    return Packed(**{name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)})
