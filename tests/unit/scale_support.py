"""A tiny pretrained model, LLaVA data, tar shards and recipes for the tests of the distributed trainer."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("red", "green", "blue", "grey", "small", "large", "round", "square", "bright", "dark")


def picture(seed: int, side: int = 48) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side + 16, 3), rng.integers(0, 256, 3), dtype=np.uint8)
    cv2.circle(pixels, (int(rng.integers(8, side)), int(rng.integers(8, side))), 7, (255, 255, 255), -1)
    return cv2.imencode(".png", pixels)[1].tobytes()


def phrase(seed: int, count: int = 4) -> str:
    return " ".join(WORDS[i] for i in np.random.default_rng(seed).integers(0, len(WORDS), count))


def write_llava(folder: Path, count: int = 10) -> Path:
    """A JSON of `count` conversations of one or two exchanges, and one without an image."""
    (folder / "images").mkdir(parents=True)
    records: list[dict[str, Any]] = [{"id": "text", "conversations": [{"from": "human", "value": "hello"}]}]
    for i in range(count):
        (folder / "images" / f"{i:03d}.png").write_bytes(picture(i))
        turns = []
        for turn in range(1 + i % 2):
            turns.append({"from": "human", "value": f"<image>\nWhat is {WORDS[turn]}?" if turn == 0 else "And then?"})
            turns.append({"from": "gpt", "value": phrase(10 * i + turn)})
        records.append({"id": str(i), "image": f"{i:03d}.png", "conversations": turns})
    (folder / "chat.json").write_text(json.dumps(records), encoding="utf-8")
    return folder / "chat.json"


def write_shards(folder: Path, shards: int = 4, samples: int = 3) -> str:
    """Tar shards of captions, every other one as .json."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"part-{shard:03d}.tar", "w") as tar:
            for i in range(samples):
                key, number = f"{shard:03d}{i:03d}", 100 + 10 * shard + i
                text = phrase(number)
                side = ("json", json.dumps({"caption": text}).encode()) if i % 2 else ("txt", text.encode())
                for kind, data in (("png", picture(number)), side):
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/part-{{000..{shards - 1:03d}}}.tar"


def write_model(folder: Path, tokenizer_file: Path, *, layers: int = 1) -> Path:
    """AuroraEdge of one layer everywhere, with random weights."""
    import torch

    from auroraedge.inspection.tokenizer import InspectionTokenizer
    from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration

    tokenizer = InspectionTokenizer.load(tokenizer_file)
    torch.manual_seed(5)
    config = AuroraEdgeConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_patches": 256,
            "vision_use_head": False,
        },
        text_config={
            "vocab_size": -(-tokenizer.vocab_size // 64) * 64,
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 48,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            "bos_token_id": None,
        },
    )
    AuroraEdgeForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


def write_recipe(folder: Path, stages: list[dict[str, Any]], **run: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i, stage in enumerate(stages):
        names.append(str(folder / f"stage{i}.yaml"))
        Path(names[-1]).write_text(yaml.safe_dump(stage), encoding="utf-8")
    settings = {
        "trainer": "distributed",
        "name": "tiny",
        "seed": 3,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "streams": 2,
        "workers": 2,
        "threads": 1,
        "checkpoint_every": 1000,
        "log_every": 1,
        "stages": names,
        **run,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder / "run.yaml"


def stage(name: str = "a", steps: int = 2, **changes: Any) -> dict[str, Any]:
    settings = {
        "name": name,
        "samples": 4 * steps,
        "batch_size": 4,
        "micro_batch": 4,
        "learning_rate": {"connectors": 1e-3, "decoder": 1e-3},
        "weight_decay": 0.05,
        "mix": {"chat": 0.5, "captions": 0.5},
    }
    return {**settings, **changes}


def losses(out: Path) -> list[float]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]
