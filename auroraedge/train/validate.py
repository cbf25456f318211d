"""Validation during training: constrained greedy answers in torch on fixed views, scored view by view.

This steers training. The scores that are reported come from `auroraedge eval` on the built engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auroraedge.data.instructions import Sample
from auroraedge.inspection.grammar import AnswerGrammar, ParsedAnswer, parse_answer
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.batches import Batch

MATCH_IOU = 0.33


@dataclass(frozen=True)
class Answer:
    """One greedy answer and P(<NG>) of its verdict (nan for a free prompt)."""

    parsed: ParsedAnswer
    ng_probability: float


@torch.no_grad()
def greedy_answers(
    model: AuroraEdgeForConditionalGeneration,
    tokenizer: InspectionTokenizer,
    batch: Batch,
    *,
    max_new_tokens: int = 112,
) -> list[Answer]:
    """Constrained greedy answers to every prompt of a batch."""
    dtype = model.projector.fc1.weight.dtype
    visual, compressed, patch_mask = model.encode(batch.pixel_values.to(dtype))
    fused = model.fuse(batch.input_ids, batch.attention_mask, visual[batch.view], patch_mask[batch.view])
    inputs = model.decoder_inputs(compressed[batch.view], fused, batch.attention_mask)
    output = model.language_model(**inputs, use_cache=True, logits_to_keep=1)
    mask, position = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    prompts = [prompt for sample in batch.samples for prompt in sample.prompts]
    grammars = [AnswerGrammar(tokenizer, prompt, max_items=20) for prompt in prompts]
    states = [grammar.start() for grammar in grammars]
    ids: list[list[int]] = [[] for _ in grammars]
    probabilities: list[list[float]] = [[] for _ in grammars]
    ng = [float("nan")] * len(grammars)
    for _ in range(max_new_tokens):
        logits = output.logits[:, -1].float().numpy()
        token = np.full(len(grammars), tokenizer.pad_id)
        for r, (grammar, state) in enumerate(zip(grammars, states, strict=True)):
            if grammar.done(state):
                continue
            allowed = grammar.allowed(state)
            scores = np.exp(logits[r, allowed] - logits[r, allowed].max())
            scores /= scores.sum()
            if state.phase == "verdict":
                ng[r] = float(scores[list(allowed).index(tokenizer.ng_id)])
            best = int(scores.argmax())
            token[r] = allowed[best]
            ids[r].append(int(token[r]))
            probabilities[r].append(float(scores[best]))
            states[r] = grammar.advance(state, int(token[r]))
        if all(grammar.done(state) for grammar, state in zip(grammars, states, strict=True)):
            break
        mask = torch.cat([mask, mask.new_ones(len(grammars), 1)], dim=1)
        position = position + 1
        output = model.language_model(
            input_ids=torch.from_numpy(token)[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
    return [Answer(parse_answer(g, i, p), n) for g, i, p, n in zip(grammars, ids, probabilities, ng, strict=True)]


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0.0) * max(h, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common + 1e-12)


def score_views(samples: Sequence[Sample], answers: Sequence[Answer]) -> dict[str, float]:
    """Verdict accuracy, detection precision, recall, F-score (label and IoU > 0.33) and class accuracy, where defined.

    One prompt a sample is expected. `places`: F-score with labels ignored, to tell naming from finding.
    """
    right = total = hits = places = found = true = classed = named = 0
    for sample, answer in zip(samples, answers, strict=True):
        prompt = sample.prompts[0]
        if prompt.kind is PromptKind.CLASSIFY:
            classed += 1
            named += answer.parsed.label == sample.image_class
            continue
        if prompt.kind is not PromptKind.INSPECT:
            continue
        total += 1
        right += answer.parsed.defective == sample.defective
        found += len(answer.parsed.items)
        true += len(sample.targets)
        for with_label in (True, False):
            free = list(sample.targets)
            for item in sorted(answer.parsed.items, key=lambda i: -i.confidence):
                options = [(t, _iou(item.box, t.box)) for t in free if not with_label or t.label == item.label]
                best = max(options, key=lambda o: o[1], default=None)
                if best is not None and best[1] > MATCH_IOU:
                    free.remove(best[0])
                    hits, places = hits + with_label, places + (not with_label)
    scores: dict[str, float] = {}
    if total:
        scores |= {
            "verdict": right / total,
            "precision": hits / max(found, 1),
            "recall": hits / max(true, 1),
            "f": 2 * hits / max(found + true, 1),
            "places": 2 * places / max(found + true, 1),
        }
    if classed:
        scores["class"] = named / classed
    return scores
