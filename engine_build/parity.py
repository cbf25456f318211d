"""Every stage against the one before: torch, ONNX in float32, ONNX as shipped; and the task's own figures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model import AuroraEdgeForConditionalGeneration
from auroraedge.runtime.session import OrtSession
from calib.frames import CalibrationSet

Arrays = dict[str, np.ndarray]
_BATCH = 4


def compare(ours: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Greatest absolute difference, cosine of all values together, and signal-to-noise ratio in dB."""
    a, b = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    noise = float(((a - b) ** 2).sum())
    return {
        "max_abs": float(np.abs(a - b).max()),
        "cosine": float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)),
        "snr_db": float(10 * np.log10(max(float((b**2).sum()), 1e-30) / max(noise, 1e-30))),
    }


def vision_feeds(frames: CalibrationSet, position_table: np.ndarray) -> Iterator[Arrays]:
    for first in range(0, len(frames.patches), _BATCH):
        patches = frames.patches[first : first + _BATCH]
        yield {
            "patches": patches,
            "position": np.repeat(position_table[None], len(patches), axis=0).astype(np.float32),
            "patch_mask": np.ones(patches.shape[:2], dtype=np.float32),
        }


@torch.no_grad()
def torch_outputs(model: AuroraEdgeForConditionalGeneration, frames: CalibrationSet) -> list[Arrays]:
    """What the torch model makes of every view, by the tensor names of the graphs; prompts one by one.

    `logits` [1, V] are those behind the prompt, `answer_logits` [A, V] those of every place of the known answer.
    """
    outputs = []
    for patches, ids, sample in zip(frames.patches, frames.prompt_ids, frames.samples, strict=True):
        pixels = torch.from_numpy(patches[None]).float() / 127.5 - 1.0
        visual, compressed, mask = model.encode(pixels)
        prompt = torch.tensor([ids])
        ones = torch.ones_like(prompt)
        fused = model.fuse(prompt, ones, visual, mask)
        answer = torch.tensor([sample.answers[0][:-1]], dtype=torch.int64)
        inputs = model.decoder_inputs(compressed, fused, ones, answer)
        logits = model.language_model(**inputs, logits_to_keep=answer.shape[1] + 1).logits
        found = {"visual": visual, "compressed": compressed, "fused": fused}
        found |= {"logits": logits[:, 0], "answer_logits": logits[0]}
        if model.grounding is not None:
            evidence, presence = model.grounding(visual, mask)
            found |= {"evidence": evidence, "presence": presence}
        outputs.append({name: tensor.numpy() for name, tensor in found.items()})
    return outputs


def engine_outputs(
    sessions: dict[str, OrtSession],
    frames: CalibrationSet,
    position_table: np.ndarray,
    embedding: np.ndarray,
    decoder: dict,
    reference: list[Arrays] | None = None,
) -> list[Arrays]:
    """The same through the graphs, each fed with what the graph before it made; the answer token by token.

    reference: outputs of the model, whose compressed tokens and fused prompts also go through the decoder graph:
    `decoder_logits` [A, V] are then what this graph alone does to the answer.
    """
    empty = np.zeros((1, decoder["kv_heads"], 0, decoder["head_dim"]), dtype=np.float32)
    cache = {f"past.{i}.{kind}": empty for i in range(decoder["layers"]) for kind in ("key", "value")}
    outputs = []

    def answer(source: Arrays, tokens: tuple[int, ...]) -> list[np.ndarray]:
        """Logits [1, V] behind the prompt and behind each token."""
        embeds = np.concatenate([source["compressed"], source["fused"]], axis=1)
        logits, past, length = [], cache, 0
        for step in (embeds, *(embedding[token][None, None] for token in tokens)):
            place = np.arange(length, length + step.shape[1], dtype=np.int64)[None]
            length += step.shape[1]
            seen = np.ones((1, length), dtype=np.float32)
            made = sessions["decoder"].run(
                {"inputs_embeds": step, "attention_mask": seen, "position_ids": place, **past}
            )
            logits.append(made.pop("logits"))
            past = {name.replace("present.", "past."): value for name, value in made.items()}
        return logits

    for row, (patches, ids, sample) in enumerate(zip(frames.patches, frames.prompt_ids, frames.samples, strict=True)):
        mask = np.ones((1, patches.shape[0]), dtype=np.float32)
        found = sessions["vision"].run({"patches": patches[None], "position": position_table[None], "patch_mask": mask})
        text = embedding[np.array(ids)][None]
        ones = np.ones((1, len(ids)), dtype=np.float32)
        found |= sessions["fusion"].run(
            {"text": text, "visual": found["visual"], "patch_mask": mask, "text_mask": ones}
        )
        known = sample.answers[0][:-1]
        logits = answer(found, known)
        found |= {"logits": logits[0], "answer_logits": np.concatenate(logits)}
        if reference is not None:
            found["decoder_logits"] = np.concatenate(answer(reference[row], known))
        outputs.append(found)
    return outputs


def stage_parity(
    ours: list[Arrays], reference: list[Arrays], tokenizer: InspectionTokenizer
) -> dict[str, dict[str, float]]:
    """Figures by tensor, and under `task` how often the verdict and the first token agree, and of the known answers
    (where both have them) every token.

    near_agreement: equal, or coordinates one bin apart, which are 1 / 256 of the view's side and as good as tied.
    decoder_agreement: every token, where the decoder alone is the graph's.
    """
    wanted = [outputs | {"decoder_logits": outputs["answer_logits"]} for outputs in reference]
    figures = {}
    shared = [name for name in wanted[0] if name in ours[0]]
    for name in shared:
        figures[name] = compare(
            np.concatenate([o[name].ravel() for o in ours]), np.concatenate([r[name].ravel() for r in wanted])
        )
    ok, ng = tokenizer.ok_id, tokenizer.ng_id
    pairs = list(zip(ours, wanted, strict=True))
    verdict = [(o["logits"][0, ng] > o["logits"][0, ok]) == (r["logits"][0, ng] > r["logits"][0, ok]) for o, r in pairs]
    first = [o["logits"][0].argmax() == r["logits"][0].argmax() for o, r in pairs]
    task = {"verdict_agreement": float(np.mean(verdict)), "first_token_agreement": float(np.mean(first))}
    if "answer_logits" in figures:
        found, right = (_tokens(outputs, "answer_logits") for outputs in (ours, wanted))
        near = [a == b or _one_bin_apart(tokenizer, a, b) for a, b in zip(found, right, strict=True)]
        task |= {"token_agreement": float(np.mean(np.equal(found, right))), "near_agreement": float(np.mean(near))}
        task["tokens"] = float(len(right))
        if "decoder_logits" in figures:
            task["decoder_agreement"] = float(np.mean(np.equal(_tokens(ours, "decoder_logits"), right)))
    figures["task"] = task
    return figures


def _tokens(outputs: list[Arrays], name: str) -> list[int]:
    return [int(i) for views in outputs for i in views[name].argmax(-1)]


def _one_bin_apart(tokenizer: InspectionTokenizer, a: int, b: int) -> bool:
    bins = tokenizer.location_bin(a), tokenizer.location_bin(b)
    return bins[0] is not None and bins[1] is not None and abs(bins[0] - bins[1]) == 1
