"""What a trained variant answers to the questions of a split: raw answers, from which every figure is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from auroraedge.evaluate.detection import iou_matrix
from auroraedge.inspection.grammar import MAX_COUNT
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.ablation.bank import Bank, Example, largest_side
from auroraedge.train.ablation.network import Reader, logits_at
from auroraedge.train.ablation.questions import Question, all_exist, count_and_place, pack

_BATCH = 24


@dataclass(frozen=True, kw_only=True)
class Asked:
    """All that a split asks, in a fixed order; one column of facts a list. exists: view, label and truth of every
    question; there: view, label, number and largest side (patches) of every label that is on a view."""

    groups: list[str]
    sets: list[str]
    defective: list[bool]
    exists: list[tuple[int, str, bool, float]]
    there: list[tuple[int, str, int, float]]


def asked(examples: Sequence[Example]) -> Asked:
    exists, there = [], []
    for i, example in enumerate(examples):
        present = example.there()
        for label in example.labels:
            exists.append((i, label, label in present, round(largest_side(example, label), 3)))
        if example.image_class is None:
            for label in sorted(present):
                number = sum(box[0] == label for box in example.boxes)
                there.append((i, label, number, round(largest_side(example, label), 3)))
    return Asked(
        groups=[f"{e.set_name}/{e.group}" for e in examples],
        sets=[e.set_name for e in examples],
        defective=[bool(e.there()) for e in examples],
        exists=exists,
        there=there,
    )


def features_of(bank: Bank, examples: Sequence[Example]) -> torch.Tensor:
    """float32 [B * frames, N, E] of the examples' views, each channel with mean 0 and deviation 1 over the bank."""
    views = [view for example in examples for view in example.views]
    return torch.from_numpy((bank.features[views].astype(np.float32) - bank.mean) / bank.deviation)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), _BATCH):
        yield items[first : first + _BATCH]


@torch.no_grad()
def answer(
    model: AuroraEdgeForConditionalGeneration,
    tokenizer: InspectionTokenizer,
    bank: Bank,
    examples: Sequence[Example],
    *,
    places: bool = True,
) -> dict[str, list[float]]:
    """Raw answers in the order of `asked`: P(there) of every exists question, and for every label that is there the
    number that is counted and the IoU of the first box that is named (greedy; verdict and label given; `places`)."""
    model.eval()
    exists: list[float] = []
    counted: list[float] = []
    placed: list[float] = []
    numbers = [tokenizer.label_ids(str(n)) for n in range(MAX_COUNT + 1)]
    single = [(n, ids[0]) for n, ids in enumerate(numbers) if len(ids) == 1]
    verdict = torch.tensor([tokenizer.ok_id, tokenizer.ng_id])
    for batch in _batches(examples):
        asked_of = [all_exist(tokenizer, e) for e in batch]
        counts = [count_and_place(tokenizer, e)[0] for e in batch]
        packed = pack([[*a, *c] for a, c in zip(asked_of, counts, strict=True)], tokenizer.pad_id)
        reader = Reader(model, features_of(bank, batch))
        hidden = reader.hidden(packed)
        for row, (questions, numbers_asked) in enumerate(zip(asked_of, counts, strict=True)):
            chosen = torch.zeros_like(packed.is_prompt)
            at = 0
            for q in questions:
                at += len(q.prompt)
                chosen[row, at - 1] = True
            exists += logits_at(model, hidden, chosen)[:, verdict].softmax(-1)[:, 1].tolist()
            chosen = torch.zeros_like(packed.is_prompt)
            for q in numbers_asked:
                at += len(q.prompt)
                chosen[row, at] = True  # the verdict's place, which predicts the number
                at += len(q.answer) - 1
            if numbers_asked:
                scores = logits_at(model, hidden, chosen)[:, [token for _, token in single]]
                counted += [float(single[i][0]) for i in scores.argmax(-1).tolist()]
        if places and any(counts):
            rows = [count_and_place(tokenizer, e)[1] for e in batch]
            boxes = iter(_first_boxes(model, tokenizer, reader, rows))
            for example, row_of in zip(batch, rows, strict=True):
                for question in row_of:
                    truth = [b[1:] for b in example.boxes if b[0] == question.label]
                    placed.append(float(iou_matrix([next(boxes)], truth).max()))
    return {"exists": exists, "counted": counted} | ({"placed": placed} if places else {})


def _first_boxes(
    model: AuroraEdgeForConditionalGeneration,
    tokenizer: InspectionTokenizer,
    reader: Reader,
    rows: Sequence[Sequence[Question]],
) -> list[tuple[float, float, float, float]]:
    """One box (0..1) a question, in order: greedy coordinates after '<NG> label', x2 > x1 and y2 > y1."""
    last = len(tokenizer.loc_ids) - 1
    bins: list[list[list[int]]] = [[[] for _ in row] for row in rows]
    loc_ids = torch.from_numpy(tokenizer.loc_ids)
    for step in range(4):
        grown = [
            [_begun(tokenizer, question, found) for question, found in zip(row, chosen, strict=True)]
            for row, chosen in zip(rows, bins, strict=True)
        ]
        packed = pack(grown, tokenizer.pad_id)
        hidden = reader.hidden(packed)
        places = torch.zeros_like(packed.is_prompt)
        for r, row in enumerate(grown):
            ends = np.cumsum([len(q.prompt) + len(q.answer) - 1 for q in row], dtype=np.int64)
            places[r, torch.from_numpy(ends) - 1] = True
        scores = logits_at(model, hidden, places)[:, loc_ids].numpy()
        for found, score in zip((f for row in bins for f in row), scores, strict=True):
            low, high = (0, last) if step < 2 else (found[step - 2] + 1, last + 1)
            found.append(low + int(score[low:high].argmax()))
    return [(f[0] / last, f[1] / last, f[2] / last, f[3] / last) for row in bins for f in row]


def _begun(tokenizer: InspectionTokenizer, question: Question, bins: Sequence[int]) -> Question:
    """A locate question whose answer is '<NG> label' and the bins found so far; the last token is to be predicted."""
    known = (tokenizer.ng_id, *tokenizer.label_ids(question.label), *(int(tokenizer.loc_ids[b]) for b in bins))
    answer = (*known, tokenizer.pad_id)
    return replace(question, answer=answer, weights=(0.0,) * len(answer))
