"""Batches as a pure function of (seed, stage, step): training resumed at a step sees what it would have seen."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auroraedge.data.instructions import Sample, Source, make_sample
from auroraedge.inspection.prompts import Prompt, PromptKind
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import patchify

LOCATION_SIGMA_BINS = 1.2


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B views and R >= B prompts about them. Prompts are padded on the left, answers on the right.

    pixel_values [B, 256, 768] float32 in -1..1; view [R]: the view of each prompt; input_ids, attention_mask [R, t];
    answer_ids, answer_mask [R, a]: the answer without its last token; labels, weights [R, a + 1]. presence [R, t]: 1
    where the prompt's token is a label that is on the view, 0 where it is one that is not, -1 for all other tokens.
    """

    samples: tuple[Sample, ...]
    pixel_values: torch.Tensor
    view: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    answer_ids: torch.Tensor
    answer_mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    presence: torch.Tensor


def _presence(sample: Sample, prompt: Prompt, ids: Sequence[int], tokenizer: InspectionTokenizer) -> list[float]:
    named = {tokenizer.label_ids(label): label for label in prompt.labels}
    there = {target.label for target in sample.targets} | {sample.image_class}
    return [float(named[(i,)] in there) if (i,) in named else -1.0 for i in ids]


def collate(samples: Sequence[Sample], tokenizer: InspectionTokenizer, weight_of: np.ndarray) -> Batch:
    """weight_of [vocab] float32: loss weight by token id; the first token of an answer has that of its verdict."""
    rows = [
        (i, prompt, tokenizer.encode(prompt.text), answer)
        for i, sample in enumerate(samples)
        for prompt, answer in zip(sample.prompts, sample.answers, strict=True)
    ]
    t = max(len(words) for _, _, words, _ in rows)
    a = max(len(answer) for _, _, _, answer in rows)
    ids = np.full((len(rows), t), tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), t), dtype=np.int64)
    labels = np.full((len(rows), a), tokenizer.pad_id, dtype=np.int64)
    real = np.zeros((len(rows), a), dtype=np.int64)
    presence = np.full((len(rows), t), -1.0, dtype=np.float32)
    for r, (i, prompt, words, answer) in enumerate(rows):
        ids[r, t - len(words) :], mask[r, t - len(words) :] = words, 1
        presence[r, t - len(words) :] = _presence(samples[i], prompt, words, tokenizer)
        labels[r, : len(answer)], real[r, : len(answer)] = answer, 1
    pixels = patchify(np.stack([sample.pixels for sample in samples]))
    return Batch(
        samples=tuple(samples),
        pixel_values=torch.from_numpy(pixels).float().div_(127.5).sub_(1.0),
        view=torch.tensor([row[0] for row in rows]),
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        answer_ids=torch.from_numpy(labels[:, :-1].copy()),
        answer_mask=torch.from_numpy(real[:, :-1].copy()),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weight_of[labels] * real),
        presence=torch.from_numpy(presence),
    )


def token_weights(tokenizer: InspectionTokenizer, vocab: int) -> np.ndarray:
    """Loss weights [vocab]: the verdict decides, a box has four tokens, so one of them counts less."""
    weights = np.ones(vocab, dtype=np.float32)
    weights[[tokenizer.ok_id, tokenizer.ng_id]] = 2.0
    weights[tokenizer.loc_ids] = 0.6
    weights[tokenizer.eos_id] = 1.0
    return weights


def soft_location_targets(tokenizer: InspectionTokenizer, vocab: int) -> torch.Tensor:
    """[vocab, vocab] target distributions by true id: a Gaussian over neighbouring bins for locations, else one-hot.

    A coordinate that is off by one bin is nearly right; a one-hot target would call it as wrong as any other.
    """
    table = torch.eye(vocab)
    loc = torch.from_numpy(tokenizer.loc_ids)
    bins = torch.arange(len(loc), dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((bins[:, None] - bins[None, :]) / LOCATION_SIGMA_BINS) ** 2)
    table[loc[:, None], loc[None, :]] = kernel / kernel.sum(1, keepdim=True)
    return table


def draw_batch(
    seed: Sequence[int],
    sources: Sequence[Source],
    mix: np.ndarray,
    size: int,
    tokenizer: InspectionTokenizer,
    *,
    weight_of: np.ndarray,
    extra_prompts: float,
    kinds: dict[PromptKind, float] | None = None,
) -> Batch:
    """The batch of a seed: `size` views drawn from `sources` with the probabilities `mix` [sources]."""
    rng = np.random.default_rng(list(seed))
    samples = [
        make_sample(rng, source, tokenizer, extra_prompts=extra_prompts, kinds=kinds)
        for source, count in zip(sources, rng.multinomial(size, mix), strict=True)
        for _ in range(int(count))
    ]
    return collate(samples, tokenizer, weight_of)


def prefetch(make: Iterator[Batch], depth: int = 3) -> Iterator[Batch]:
    """Runs `make` in a thread, `depth` batches ahead. An exception there is raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in make:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=5)
