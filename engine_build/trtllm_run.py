#!/usr/bin/env python3
"""Runs a decoder engine of `trtllm-build` (TensorRT-LLM 1.2) on prompts that are embeddings.

    python3 trtllm_run.py --engine ENGINE --prompts prompts.safetensors --end-id 488

Stands alone: a build kit carries a copy, and the machine needs TensorRT-LLM 1.2 only. The engine is a stock Qwen2.5, so
a prompt of embeddings goes in as a prompt table: place i of the prompt is the id vocab_size + i, which TensorRT-LLM
looks up in row i of the request's own table. Generated tokens are ordinary ids of the ordinary embedding.

The API it uses is that of tensorrt_llm.runtime.ModelRunnerCpp 1.2.1. NOT RUN ON HARDWARE.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PromptTable:
    """ids: of every prompt, int32 [S]. tasks: the row of `table` for each, as TensorRT-LLM wants them: "0,1,2".

    table float16 [B, longest S, D], shorter prompts padded with zeros that no id points to.
    """

    ids: list
    tasks: str
    table: object


def prompt_table(prompts, vocab_size: int, longest: int) -> PromptTable:
    """From prompts, tensors [S, D]. Raises ValueError for one that the engine was not built for."""
    import torch

    if not prompts:
        raise ValueError("there is no prompt")
    for index, prompt in enumerate(prompts):
        if prompt.dim() != 2 or not 0 < prompt.shape[0] <= longest:
            raise ValueError(f"prompt {index} is {tuple(prompt.shape)}; the engine takes [1..{longest}, width]")
    table = torch.zeros(len(prompts), max(p.shape[0] for p in prompts), prompts[0].shape[1], dtype=torch.float16)
    for row, prompt in zip(table, prompts, strict=True):
        row[: prompt.shape[0]] = prompt
    ids = [torch.arange(vocab_size, vocab_size + p.shape[0], dtype=torch.int32) for p in prompts]
    return PromptTable(ids=ids, tasks=",".join(str(i) for i in range(len(prompts))), table=table)


class TensorRtLlmDecoder:
    """Answers of an engine. logits_processor(request id, logits, ids, stream, client id) may mask tokens in place, to
    keep an answer inside a grammar."""

    def __init__(self, engine, *, logits_processor=None) -> None:
        from tensorrt_llm.runtime import ModelRunnerCpp

        config = json.loads((Path(engine) / "config.json").read_text(encoding="utf-8"))
        build = config["build_config"]
        self.vocab_size = int(config["pretrained_config"]["vocab_size"])
        self.longest = int(build["max_input_len"])
        self.batch = int(build["max_batch_size"])
        held = int(build.get("max_prompt_embedding_table_size") or 0)
        if held < self.batch * self.longest:
            raise ValueError(
                f"the engine's prompt table holds {held} places, {self.batch * self.longest} are needed: build again "
                f"with --max_multimodal_len={self.batch * self.longest}"
            )
        self._processor = None if logits_processor is None else "grammar"
        self._runner = ModelRunnerCpp.from_dir(
            str(engine),
            # A table belongs to its request: cached keys of the same fake ids would be those of another frame.
            kv_cache_enable_block_reuse=False,
            gather_generation_logits=True,
            logits_processor_map=None if logits_processor is None else {"grammar": logits_processor},
        )

    def generate(self, prompts, *, end_id: int, pad_id: int | None = None, max_new_tokens: int = 64):
        """Greedy answers of at most `batch` prompts [S, D]: token ids without the prompt, and logits float32
        [tokens, vocab] whose first row is the verdict's."""
        if len(prompts) > self.batch:
            raise ValueError(f"{len(prompts)} prompts; the engine takes {self.batch} at once")
        given = prompt_table(prompts, self.vocab_size, self.longest)
        names = None if self._processor is None else [self._processor] * len(prompts)
        found = self._runner.generate(
            batch_input_ids=given.ids,
            prompt_table=given.table,
            prompt_tasks=given.tasks,
            max_new_tokens=max_new_tokens,
            end_id=end_id,
            pad_id=end_id if pad_id is None else pad_id,
            top_k=1,
            logits_processor_names=names,
            return_dict=True,
            output_sequence_lengths=True,
            output_generation_logits=True,
        )
        answers = []
        for index, ids in enumerate(given.ids):
            first, last = len(ids), int(found["sequence_lengths"][index, 0])
            tokens = found["output_ids"][index, 0, first:last].tolist()
            answers.append((tokens, found["generation_logits"][index, 0, : len(tokens)].float().cpu()))
        return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, type=Path, help="folder that trtllm-build wrote")
    parser.add_argument("--prompts", required=True, type=Path, help="safetensors: prompt.N [S, D], answer.N int32")
    parser.add_argument("--end-id", required=True, type=int)
    options = parser.parse_args()
    from safetensors.torch import load_file

    tensors = load_file(str(options.prompts))
    count = sum(name.startswith("prompt.") for name in tensors)
    decoder = TensorRtLlmDecoder(options.engine)
    same = total = 0
    for first in range(0, count, decoder.batch):
        numbers = range(first, min(first + decoder.batch, count))
        answers = decoder.generate([tensors[f"prompt.{n}"] for n in numbers], end_id=options.end_id)
        for n, (tokens, _) in zip(numbers, answers, strict=True):
            wanted = tensors[f"answer.{n}"].tolist()
            same += tokens[:1] == wanted[:1]
            total += 1
            print(f"{n}: {tokens} {'as recorded' if tokens == wanted else f'recorded {wanted}'}")
    print(f"the same first token, the verdict, in {same} of {total}")
    return 0 if same == total else 1


if __name__ == "__main__":
    sys.exit(main())
