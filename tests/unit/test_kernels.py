"""Kernels without a GPU and without Triton's interpreter: choice, tiles, gradients, packs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from requires import lacks

import kernels
from auroraedge.errors import InvalidRequestError
from kernels.choice import ENVIRONMENT, Measurement, measurements, use_kernel, winner
from kernels.gpus import GPUS, PTX_VERSIONS, nearest_gpu, precisions_of
from kernels.tiles import TILES, choices, choose_tile, family_of, programs, tiles_for

ROOT = Path(__file__).resolve().parents[2]
torch = pytest.importorskip("torch")
CAPABILITIES = sorted(PTX_VERSIONS)
# Compiled here: each kind of matrix instruction, Orin, and FP8 without tcgen05. The others differ by number alone.
COMPILED = (87, 90, 100, 120)


# --- choice ----------------------------------------------------------------------------------------------------------


def test_the_mode_comes_from_the_environment_and_from_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert kernels.mode() == "auto"
    monkeypatch.setenv(ENVIRONMENT, "triton")
    assert kernels.mode() == "triton"
    with kernels.using("reference"):
        assert kernels.mode() == "reference"
        with kernels.using("auto"):
            assert kernels.mode() == "auto"
        assert kernels.mode() == "reference"
    assert kernels.mode() == "triton"
    monkeypatch.setenv(ENVIRONMENT, "fast")
    with pytest.raises(InvalidRequestError, match=r"AURORAEDGE_KERNELS.*no kernel mode 'fast'"):
        kernels.mode()


def test_the_table_decides_in_auto_and_what_nobody_measured_is_the_references() -> None:
    rows = (
        Measurement(gpu="h100", op="compress", dtype="float16", views=1, winner="reference", speedup=0.8),
        Measurement(gpu="h100", op="compress", dtype="float16", views=16, winner="triton", speedup=1.9),
    )
    assert winner("h100", "compress", "float16", 1, rows) == "reference"
    assert winner("h100", "compress", "float16", 12, rows) == "triton"
    assert winner("h100", "compress", "float16", 64, rows) == "triton"
    assert winner("orin", "compress", "float16", 16, rows) == "unmeasured"
    assert winner("h100", "fusion_attention", "float16", 16, rows) == "unmeasured"
    with kernels.using("auto"):
        assert not use_kernel("a GPU that nobody has", "compress", "float16", 16)
    with kernels.using("triton"):
        assert use_kernel("a GPU that nobody has", "compress", "float16", 16)
    with kernels.using("reference"):
        assert not use_kernel("h100", "compress", "float16", 16)


def test_the_checked_in_table_is_readable() -> None:
    for row in measurements():
        assert row.gpu in GPUS and row.winner in ("triton", "reference")
        assert row.speedup is not None and (row.speedup > 1) == (row.winner == "triton")


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_no_gpu_starves() -> None:
    """Every processor of a Jetson has work at batch 1, and of every GPU at batch 16; else the tile is the smallest."""
    table = choices()
    assert {choice.gpu for choice in table} == set(GPUS)
    for choice in table:
        gpu = GPUS[choice.gpu]
        if gpu.sm_count <= 20 and choice.precision != "fp8":
            assert choice.waves >= 1, choice
        if choice.views == 16:
            assert choice.waves >= 1, choice
        smallest = tiles_for(choice.kernel, gpu.sm, choice.precision)[-1]
        assert choice.waves >= 1 or choice.tile == smallest, choice
        assert not choice.starved or choice.precision == "fp8" or gpu.sm_count > 140, choice
        assert choice.waves == pytest.approx(choice.programs / gpu.sm_count)


def test_the_smallest_tiles_are_for_few_programs_and_the_largest_for_many() -> None:
    def compressor(sm: int, count: int, views: int) -> int:
        tile = choose_tile("compressor", sm=sm, sm_count=count, precision="float", views=views, rows=1536)
        assert programs("compressor", tile, views=views, rows=1536, columns=1) == views * math.ceil(
            1536 / tile.blocks["BLOCK_D"]
        )
        return tile.blocks["BLOCK_D"]

    assert [compressor(90, 132, views) for views in (1, 4, 16)] == [16, 32, 64]
    assert [compressor(87, 8, views) for views in (1, 4, 16)] == [64, 64, 64]


@pytest.mark.parametrize("sm", [*CAPABILITIES, 110])
def test_every_capability_has_tiles_for_its_precisions(sm: int) -> None:
    for kernel in TILES:
        for precision in precisions_of(sm):
            assert tiles_for(kernel, sm, precision), (kernel, precision)
    assert ("fp8" in precisions_of(sm)) == (sm >= 89)
    # Below 64 rows these capabilities have no fp8 products: Triton would widen them to fp16 in silence.
    if family_of(sm) != "mma":
        for kernel in TILES:
            for tile in tiles_for(kernel, sm, "fp8"):
                assert max(tile.blocks.get(n, 0) for n in ("BLOCK_D", "BLOCK_T", "BLOCK_R")) >= 64


def test_a_gpu_that_is_not_in_the_table_gets_the_nearest_one() -> None:
    assert nearest_gpu(87, 16) == "orin"
    assert nearest_gpu(90, 114) in ("h100", "h200")
    assert nearest_gpu(89, 128) == "l40s"
    assert nearest_gpu(86, 84) == "rtx-ampere"


def test_the_targets_of_the_engine_build_are_the_same_gpus() -> None:
    from engine_build.targets import list_targets, load_target

    for name in list_targets():
        target = load_target(name)
        if target.kind != "cpu":
            gpu = GPUS[name]
            assert target.compute_capability == f"{gpu.sm // 10}.{gpu.sm % 10}"
            assert target.sm_count == gpu.sm_count


# --- ops and gradients -----------------------------------------------------------------------------------------------


def test_on_a_cpu_registration_changes_nothing() -> None:
    from auroraedge import ops

    query, key, value = torch.randn(3, 1, 2, 5, 8)
    mask = torch.ones(1, 5)
    before = ops.fusion_attention(query, key, value, mask)
    kernels.register()
    try:
        with kernels.using("triton"):
            assert torch.equal(ops.fusion_attention(query, key, value, mask), before)
            assert ops.fusion_attention(query.requires_grad_(), key, value, mask).grad_fn is not None
    finally:
        kernels.unregister()


def _double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_of_every_op() -> None:
    """First and second derivatives, in float64, where the ops compute their reference."""
    from kernels.compressor.op import compress
    from kernels.fusion_attention.op import cross_attention, fusion_attention
    from kernels.projector.op import linear
    from kernels.rms_norm.op import rms_norm

    torch.manual_seed(5)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    compressor = (_double(2, 3, 4), mask, _double(4), 1e-6, _double(5, 3), _double(5), _double(2, 5), _double(2))
    heads = (_double(2, 2, 4, 3), _double(2, 2, 3, 3), _double(2, 2, 3, 3))
    cross = (_double(2, 4, 5), *heads[1:], mask, _double(5), 1e-6, _double(6, 5), _double(6))
    squares = torch.rand(4, 2, dtype=torch.float64) + 1
    dense = (_double(4, 3), _double(5, 3), _double(5), _double(4, 5), squares, 1e-6, True, False, False)
    for op, arguments in (
        (compress, compressor),
        (fusion_attention, (*heads, mask)),
        (cross_attention, cross),
        (lambda *a: linear(*a)[0], dense),
        (rms_norm, (_double(3, 4), _double(3, 4), _double(4), 1e-6)),
    ):
        assert torch.autograd.gradcheck(op, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(op, arguments, atol=1e-4, fast_mode=True)


def test_the_ops_are_sound_torch_ops() -> None:
    """Schema, meta implementation, autograd registration and compilation agree (torch's own checks)."""
    from kernels.compressor.op import compress, compress_quantised
    from kernels.fusion_attention.op import cross_attention, fusion_attention
    from kernels.projector.op import linear
    from kernels.quantise import quantise_rows
    from kernels.rms_norm.op import rms_norm, square_sums

    mask = torch.ones(2, 3)
    x = torch.randn(2, 3, 4, requires_grad=True)
    w1, w2 = torch.randn(5, 3), torch.randn(2, 5)
    rest = (torch.randn(4), 1e-6, w1, torch.randn(5), w2, torch.randn(2))
    query, key, value = torch.randn(3, 2, 2, 3, 4)
    cross = (torch.randn(2, 4, 5), key, value, mask, torch.randn(5), 1e-6, torch.randn(8, 5), torch.randn(8))
    (q1, s1), (q2, s2) = quantise_rows(w1, "int8"), quantise_rows(w2, "int8")
    eight = (rest[0], 1e-6, q1, s1, rest[3], q2, s2, rest[5], torch.tensor([0.1, 0.1]))
    for op, arguments in (
        (compress, (x, mask, *rest)),
        (compress_quantised, (x.detach(), mask, *eight)),
        (fusion_attention, (query.requires_grad_(), key, value, mask)),
        (cross_attention, cross),
        (linear, (torch.randn(6, 4), torch.randn(5, 4), torch.randn(5), None, None, 0.0, True, False, False)),
        (rms_norm, (torch.randn(3, 4), torch.randn(3, 4), torch.randn(4), 1e-6)),
        (square_sums, (torch.randn(3, 4),)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_quantised_ops_stay_near_the_float_ones() -> None:
    from auroraedge.ops import compress_reference
    from kernels.compressor.op import compress_quantised
    from kernels.quantise import activation_scale, quantise_rows

    torch.manual_seed(0)
    x, mask, gain = torch.randn(2, 64, 32), torch.ones(2, 64), torch.ones(32)
    w1, b1, w2, b2 = torch.randn(64, 64) / 8, torch.randn(64), torch.randn(16, 64) / 8, torch.randn(16)
    exact = compress_reference(x, mask, gain, 1e-6, w1, b1, w2, b2)
    hidden = torch.nn.functional.gelu(torch.matmul(w1, x) + b1[:, None])
    for precision, least in (("int8", 0.999), ("fp8", 0.995)):
        scales = torch.cat([activation_scale(t, precision) for t in (x, hidden)])
        (q1, s1), (q2, s2) = quantise_rows(w1, precision), quantise_rows(w2, precision)
        ours = compress_quantised(x, mask, gain, 1e-6, q1, s1, b1, q2, s2, b2, scales)
        assert torch.cosine_similarity(ours.flatten(), exact.flatten(), 0) > least, precision


# --- packs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tile of every kernel and precision for COMPILED, for real."""
    if subprocess.run([sys.executable, "-c", "import triton"], capture_output=True, check=False).returncode:
        lacks("triton is not installed: pip install 'auroraedge[kernels]'")
    out = tmp_path_factory.mktemp("packs")
    command = [sys.executable, "-m", "kernels.pack", "--reduced", "--sm", *map(str, COMPILED), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return out


@pytest.mark.parametrize("sm", COMPILED)
def test_packs_keep_their_promises(packs: Path, sm: int) -> None:
    """From the files alone: instructions of the dtype, no spill or scratch, shared memory, PTX version, arguments."""
    import hashlib
    import re

    found = {path.parent.name: json.loads(path.read_text()) for path in packs.glob(f"sm_{sm}/*/pack.json")}
    kinds = {(pack["entry"], pack["precision"]) for pack in found.values()}
    assert kinds == {("linear_kernel", "float")} | {
        (entry, precision) for entry in ("compress_kernel", "attention_kernel") for precision in precisions_of(sm)
    }
    instruction = {
        "mma": {"float": "HMMA", "int8": "IMMA", "fp8": "QMMA"},
        "wgmma": {"float": "HGMMA", "int8": "IGMMA", "fp8": "QGMMA"},
        "tcgen05": {"float": "UTCHMMA", "fp8": "UTCQMMA"},
    }[family_of(sm)]
    for name, pack in found.items():
        folder = packs / f"sm_{sm}" / name
        ptx = (folder / "kernel.ptx").read_text()
        assert pack["instructions"].get(instruction[pack["precision"]], 0) > 0, (name, pack["instructions"])
        assert not pack["instructions"].keys() & {"LDL", "STL"}
        assert pack["spill_stores"] == pack["spill_loads"] == pack["stack"] == pack["scratch_bytes"] == 0
        assert 0 < pack["shared_bytes"] <= 48 * 1024
        assert pack["registers"] <= 255
        assert re.search(rf"^\.target sm_{sm}a?$", ptx, re.MULTILINE)
        version = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
        assert version and int(version[1]) * 10 + int(version[2]) <= PTX_VERSIONS[sm][0]
        entry = ptx[ptx.index(".entry") : ptx.index(".reqntid")]
        assert entry.count(".param") == len(pack["arguments"])
        assert str(ROOT) not in ptx and "/home" not in ptx
        for kind in ("ptx", "cubin"):
            content = (folder / f"kernel.{kind}").read_bytes()
            assert hashlib.sha256(content).hexdigest() == pack[f"{kind}_sha256"]
        # Inputs, int32 scalars, outputs.
        shape = "".join("p" if a["type"].startswith("*") else "i" for a in pack["arguments"])
        assert re.fullmatch(rf"p+i+p{{{pack['outputs']}}}", shape), shape


def test_an_interrupted_pack_goes_on_and_a_damaged_one_is_mended(packs: Path) -> None:
    from kernels.pack import compile_target

    first, second = sorted(path.parent.name for path in packs.glob("sm_87/*/pack.json"))[:2]
    (packs / "sm_87" / first / "kernel.cubin").write_bytes(b"cut off")
    pack = json.loads((packs / "sm_87" / second / "pack.json").read_text())
    (packs / "sm_87" / second / "pack.json").write_text(json.dumps(pack | {"recipe_sha256": "0" * 64}))
    seen: list[str] = []
    result = compile_target(87, packs, reduced=True, on_variant=seen.append)
    assert result.sound
    assert sorted(result.built) == [first, second]
    assert len(result.kept) == 3 and len(seen) == 5
    assert not list(packs.glob("sm_87/.*"))


def test_a_pack_that_breaks_a_promise_is_refused(packs: Path) -> None:
    from kernels.compile import faults_of

    sound = json.loads(next(packs.glob("sm_90/compressor-*fp8*/pack.json")).read_text())
    assert faults_of(sound) == []
    for change, words in (
        ({"instructions": {"HMMA": 40}}, "no QGMMA"),
        ({"spill_stores": 8}, "spills"),
        ({"instructions": {**sound["instructions"], "STL": 1}}, "spills"),
        ({"shared_bytes": 49_160}, "shared memory"),
        ({"scratch_bytes": 128}, "scratch"),
        ({"stack": 16}, "stack"),
        ({"ptx_version": "9.0"}, "newer than"),
        ({"arguments": sound["arguments"][::-1]}, "inputs, int32 scalars, outputs"),
    ):
        assert any(words in fault for fault in faults_of(sound | change)), (change, faults_of(sound | change))


def test_a_compiler_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import pack

    monkeypatch.setattr(pack.sys, "executable", "/bin/false")
    result = pack.compile_target(87, tmp_path)
    assert not result.sound and "ended with 1" in result.abort


def test_the_scratch_parameters_are_only_dropped_when_nothing_reads_them() -> None:
    from kernels.sass import PackError, drop_scratch_parameters, entry_parameters

    ptx = (
        ".version 8.2\n.visible .entry k(\n\t.param .u64 .ptr .global .align 1 k_param_0,\n\t.param .u32 k_param_1,\n"
        "\t.param .u64 .ptr .global .align 1 k_param_2\n)\n{\n\tld.param.b32 \t%r1, [k_param_1];\n}\n"
    )
    assert entry_parameters(ptx) == ["k_param_0", "k_param_1", "k_param_2"]
    assert entry_parameters(drop_scratch_parameters(ptx, 2)) == ["k_param_0", "k_param_1"]
    with pytest.raises(PackError, match="k_param_1"):
        drop_scratch_parameters(ptx, 1)


def test_the_table_prints_every_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kernels.pack", "--table"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in GPUS:
        assert f"{name}: " in done.stdout
