"""TensorRT-LLM checkpoints: layout, read-back, and that each of the known traps is caught."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from auroraedge.errors import EngineError
from engine_build import decoders, edgellm, environments
from engine_build.decoder_source import DecoderSource, agreement, decoder_from_folder, logits_of, write_qwen_folder
from engine_build.targets import load_target
from engine_build.trtllm import QUANT_ALGOS, BuildSizes, build_command, build_script, write_checkpoint
from engine_build.trtllm_check import check_checkpoint, main, read_checkpoint
from engine_build.trtllm_run import prompt_table

# dB of the logits on random weights, which round worse than trained ones; 4 bits in one block of 128 inputs cost most.
LEAST_DB = {"fp16": 50.0, "int8-weights": 35.0, "int8": 20.0, "fp8": 18.0, "int4": 9.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DecoderSource:
    """A random Qwen2.5 of two layers, read from its folder; rotary base and biases differ from every default."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        tie_word_embeddings=False,
        max_position_embeddings=256,
        initializer_range=0.08,
    )
    model = Qwen2ForCausalLM(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(0.0, 0.5)
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder, safe_serialization=True)
    return decoder_from_folder(folder)


def _read_back(source: DecoderSource, folder: Path) -> dict[str, float]:
    reference = logits_of(source.model, source.checking)
    return agreement(logits_of(read_checkpoint(folder), source.checking), reference)


@pytest.mark.parametrize("precision", sorted(QUANT_ALGOS))
def test_a_checkpoint_reads_back(source: DecoderSource, tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "checkpoint"
    config = write_checkpoint(source, precision, folder)
    assert (config["rotary_base"], config["qwen_type"], config["attn_bias"]) == (1e6, "qwen2", True)
    assert _read_back(source, folder)["snr_db"] > LEAST_DB[precision]
    stored = load_file(folder / "rank0.safetensors")
    qkv, kind = stored["transformer.layers.1.attention.qkv.weight"], torch.float16
    kind = {"int8": torch.int8, "int4": torch.int8, "fp8": torch.float8_e4m3fn}.get(precision, kind)
    assert qkv.dtype == kind and qkv.shape == ((128 if precision == "int4" else 256), 128)
    assert stored["transformer.layers.1.attention.qkv.bias"].shape == (256,)
    assert stored["lm_head.weight"].shape == (320, 128)
    scales = {"int8": (256,), "fp8": (1,), "int4": (256, 1)}.get(precision)
    if scales is not None:
        assert stored["transformer.layers.1.attention.qkv.weights_scaling_factor"].shape == scales


def test_the_table_of_all_precisions(source: DecoderSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_qwen_folder(source, tmp_path)
    assert main(["--model", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert [precision for precision in QUANT_ALGOS if f" {precision} " not in shown] == []
    assert main(["--model", str(tmp_path / "none")]) == 1


def _edited(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **changes}), encoding="utf-8")


def test_another_rotary_base_is_seen(source: DecoderSource, tmp_path: Path) -> None:
    write_checkpoint(source, "fp16", tmp_path / "c")
    _edited(tmp_path / "c", rotary_base=10000.0)
    assert _read_back(source, tmp_path / "c")["snr_db"] < 30.0
    with pytest.raises(EngineError, match="departs from the model"):
        check_checkpoint(source, tmp_path / "c")


@pytest.mark.parametrize("name", ["rotary_base", "qwen_type", "attn_bias"])
def test_what_would_become_a_default_must_be_there(source: DecoderSource, tmp_path: Path, name: str) -> None:
    write_checkpoint(source, "fp16", tmp_path / "c")
    _edited(tmp_path / "c", **{name: None})
    with pytest.raises(EngineError, match=name):
        read_checkpoint(tmp_path / "c")


def test_swapped_halves_of_the_mlp_are_seen(source: DecoderSource, tmp_path: Path) -> None:
    write_checkpoint(source, "fp16", tmp_path / "c")
    path = tmp_path / "c" / "rank0.safetensors"
    stored = load_file(path)
    for index in range(2):
        fc, gate = (f"transformer.layers.{index}.mlp.{name}.weight" for name in ("fc", "gate"))
        stored[fc], stored[gate] = stored[gate], stored[fc]
    save_file(stored, path)
    assert _read_back(source, tmp_path / "c")["snr_db"] < 20.0


def test_kept_layers_stay_in_sixteen_bits(source: DecoderSource, tmp_path: Path) -> None:
    kept = ("language_model.model.layers.0.self_attn.o_proj", "vision_model.encoder.layers.0.mlp.fc1")
    config = write_checkpoint(source, "int8", tmp_path / "c", keep=kept)
    stored = load_file(tmp_path / "c" / "rank0.safetensors")
    # The product of a gate is kept whether it is named or not.
    for name in ("0.attention.dense", "0.mlp.proj", "1.mlp.proj"):
        assert stored[f"transformer.layers.{name}.weight"].dtype == torch.float16
        assert f"transformer.layers.{name}.activation_scaling_factor" not in stored
        assert f"transformer.layers.{name}*" in config["quantization"]["exclude_modules"]
    assert stored["transformer.layers.1.attention.dense.weight"].dtype == torch.int8
    # Without this name TensorRT-LLM quantises the embedding too.
    assert "*vocab_embedding" in config["quantization"]["exclude_modules"]
    assert _read_back(source, tmp_path / "c")["snr_db"] > LEAST_DB["int8"]


def test_the_model_is_left_as_it_was(source: DecoderSource, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    write_checkpoint(source, "int8", tmp_path / "c")
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.model.state_dict().items())


def test_refusals(source: DecoderSource, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no precision 'int2'"):
        write_checkpoint(source, "int2", tmp_path / "c")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(EngineError, match="not empty"):
        write_checkpoint(source, "fp16", tmp_path / "full")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(EngineError, match="of type 'llama'"):
        decoder_from_folder(tmp_path)


def test_the_build_command_holds_whole_prompts_in_the_table(tmp_path: Path) -> None:
    sizes = BuildSizes(batch=8, prompt=320, tokens=512)
    command = build_command("c", "e", sizes)
    assert "--max_multimodal_len=2560" in command and "--max_seq_len=512" in command
    # The script runs: a stand-in for trtllm-build shows what it is called with.
    program = tmp_path / "trtllm-build"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "build.sh").write_text(build_script(sizes), encoding="utf-8")
    path = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    answer = subprocess.run(["sh", tmp_path / "build.sh", "/x y"], capture_output=True, text=True, env=path, check=True)
    wanted = build_command(str(tmp_path / "checkpoint"), "/x y", sizes)[1:]
    assert answer.stdout.splitlines() == wanted


def test_the_decoder_as_a_folder(source: DecoderSource, tmp_path: Path) -> None:
    write_qwen_folder(source, tmp_path)
    again = decoder_from_folder(tmp_path)
    found, wanted = logits_of(again.model, source.checking), logits_of(source.model, source.checking)
    assert agreement(found, wanted)["snr_db"] > 50.0
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == 1e6 and config["architectures"] == ["Qwen2ForCausalLM"]
    assert np.isclose(again.model.config.rms_norm_eps, source.model.config.rms_norm_eps)


def test_the_backend_is_chosen_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"tensorrt"}
    monkeypatch.setattr(decoders, "installed", lambda name: name in here)
    h100, orin = load_target("h100"), load_target("orin")
    assert decoders.choose_decoder(h100, None) == ("tensorrt", "not installed here: tensorrt-llm")
    here = {"tensorrt-llm"}
    assert decoders.choose_decoder(h100, None)[0] == "tensorrt-llm"
    here = set()
    assert decoders.choose_decoder(orin, None)[0] == "tensorrt"
    assert decoders.choose_decoder(orin, "edgellm") == ("edge-llm", "as asked for")
    with pytest.raises(EngineError, match="no decoder backend"):
        decoders.choose_decoder(orin, "trtllm")
    assert decoders.checkpoints_of(h100, None) == ("tensorrt-llm",)
    assert decoders.checkpoints_of(orin, None) == ("edge-llm",)
    assert decoders.checkpoints_of(orin, "tensorrt") == ()


SIZES = BuildSizes(batch=4, prompt=96, tokens=160)


def test_the_folder_for_tensorrt_llm(source: DecoderSource, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    about = decoders.write_decoder("tensorrt-llm", source, "fp16", folder, SIZES, Console(quiet=True))
    assert about.startswith("float16, ") and "sha256" in about
    recorded = load_file(folder / "prompts.safetensors")
    assert recorded["prompt.0"].shape[1] == 128 and recorded["answer.0"].dtype == torch.int32
    config = json.loads((folder / "decoder" / "config.json").read_text(encoding="utf-8"))
    # The class that the copied module registers.
    assert f'ARCHITECTURE = "{config["architectures"][0]}"' in (folder / "trtllm_model.py").read_text(encoding="utf-8")
    # The copied runner stands alone: it shows its help without a package of ours.
    command = ["python3", "-I", "trtllm_run.py", "--help"]
    assert "--end-id" in subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout


def test_the_prompt_table() -> None:
    prompts = [torch.full((3, 4), 1.0), torch.full((2, 4), 2.0)]
    made = prompt_table(prompts, vocab_size=640, longest=3)
    assert [ids.tolist() for ids in made.ids] == [[640, 641, 642], [640, 641]] and made.tasks == "0,1"
    for index, prompt in enumerate(prompts):  # what TensorRT-LLM looks up: row id - vocab_size of the request's table
        assert torch.equal(made.table[index][made.ids[index].long() - 640].float(), prompt)
    with pytest.raises(ValueError, match=r"1\.\.2, width"):
        prompt_table(prompts, vocab_size=640, longest=2)


def test_edge_llm_without_its_exporter(source: DecoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "environments_home", lambda: tmp_path / "none")
    folder = tmp_path / "decoder"
    about = decoders.write_decoder("edge-llm", source, "int8", folder, SIZES, Console(quiet=True))
    assert "not exported" in about and (folder / "hf" / "model.safetensors").is_file()
    script = (folder / "build.sh").read_text(encoding="utf-8")
    assert "--max-input-len 96 --max-kv-cache-capacity 160" in script
    with pytest.raises(EngineError, match="no export of Edge-LLM"):
        edgellm.check_export(source, folder / "llm")


@pytest.mark.skipif(environments.find_environment("edgellm") is None, reason="the environment 'edgellm' is not made")
def test_edge_llm_exports(source: DecoderSource, tmp_path: Path) -> None:
    facts = edgellm.export_edgellm(source, tmp_path, console=Console(quiet=True))
    assert facts["attention_nodes"] == 2 and facts["rope_theta"] == 1e6 and facts["weights"] == 26
