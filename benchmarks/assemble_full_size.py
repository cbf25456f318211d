"""Time and memory of assembling the full size: `python -m benchmarks.assemble_full_size --work DIR`.

Writes checkpoints of SigLIP2-so400m and Qwen2.5-1.5B in their true shapes and key layouts with random bfloat16 weights
(4 GB), assembles them in a process of its own, and reads the result back on the meta device. Needs 9 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from auroraedge.config import PRESETS
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration
from auroraedge.train.tensor_files import TensorFiles, TensorPlan, write_model_files


def write_checkpoints(work: Path) -> tuple[Path, Path]:
    """Folders of an encoder and a decoder with random weights, written one tensor at a time."""
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(AuroraEdgeConfig.from_preset("2b"))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    folders = []
    for folder, prefix in ((work / "vision", "vision_model."), (work / "llm", "language_model.")):
        folder.mkdir(parents=True, exist_ok=True)
        plan = [
            TensorPlan(name=name.removeprefix(prefix), shape=shape, dtype=torch.bfloat16)
            for name, shape in shapes.items()
            if name.startswith(prefix)
        ]
        tensors = (torch.randn(entry.shape, generator=generator) * 0.02 for entry in plan)
        write_model_files(folder, plan, 2 * 10**9, tensors)
        folders.append(folder)
    vision, llm = folders
    (vision / "config.json").write_text(json.dumps(model.config.vision_config.to_dict(), default=str), encoding="utf-8")
    (llm / "config.json").write_text(json.dumps(model.config.text_config.to_dict(), default=str), encoding="utf-8")
    # As many words as Qwen2.5's tokenizer has: 151,643 and 22 control tokens.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"w{i}" for i in range(151_643 - len(alphabet))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<|c{i}|>", special=True) for i in range(22)])
    tokenizer.save(str(llm / "tokenizer.json"))
    return vision, llm


def main() -> int:
    parser = argparse.ArgumentParser(description="Assembles random checkpoints of the full size.")
    parser.add_argument("--work", type=Path, required=True, help="empty folder with 9 GB of space")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    vision, llm = write_checkpoints(options.work)
    out = options.work / "2b"
    began = time.perf_counter()
    command = [sys.executable, "-m", "auroraedge.cli", "assemble", "--vision", vision, "--llm", llm, "--out", out]
    subprocess.run([str(word) for word in command], check=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    config = AuroraEdgeConfig.from_pretrained(out)
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(config)
    files = TensorFiles(out)
    wrong = [name for name, p in model.named_parameters() if files.shape(name) != tuple(p.shape)]
    assert not wrong and config.preset == "2b", wrong
    found = {
        **json.loads((out / "assembly.json").read_text(encoding="utf-8")),
        "seconds": seconds,
        "peak_resident_bytes": peak,
        "vocabulary_of_preset": PRESETS["2b"].vocab_size,
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
