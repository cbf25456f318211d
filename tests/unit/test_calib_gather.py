"""Gathering calibration frames: what is taken, what is left out and why, and what the quantiser then looks at."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")  # calib imports the training data's sources

from auroraedge.data.synthetic import generate_board, generate_ground_surface, generate_rolled_surface
from auroraedge.errors import CalibrationError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import Recipe, Severity, load_recipe
from auroraedge.inspection.results import Box, Defect, InspectionResult, RequestInfo, Verdict
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.store.store import Store
from auroraedge.store.types import Purpose
from calib import gather as gathering
from calib.frames import calibration_set
from calib.gather import choose, gather, likeness, pixels_sha256
from calib.gathered import FILE, GatheredFrame, gathered_samples, read_manifest

PCB, TILE, STRIP = load_recipe("pcb"), load_recipe("magnetic_tile"), load_recipe("steel_strip")


def rgb(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else pixels


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(rgb(pixels)[..., ::-1]))[1].tobytes()


def renamed(name: str, version: int = 1) -> Recipe:
    """The tile's recipe under another name; made anew, because a copy would keep the hash."""
    return Recipe.model_validate(TILE.model_dump() | {"id": name, "version": version})


def tiles(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rgb(generate_ground_surface(rng).image) for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six tiles; one twice as another file format, one again in a slightly brighter light, and a file that is none."""
    found = tmp_path / "photos"
    (found / "deep").mkdir(parents=True)
    pictures = tiles(6)
    for number, pixels in enumerate(pictures):
        (found / "deep" / f"{number}.png").write_bytes(png(pixels))
    cv2.imwrite(str(found / "twice.bmp"), pictures[2][..., ::-1])
    (found / "zbrighter.png").write_bytes(png(np.clip(pictures[4].astype(int) + 2, 0, 255).astype(np.uint8)))
    (found / "zbroken.png").write_bytes(b"\x89PNG nothing")
    (found / "notes.txt").write_text("not an image")
    return found


def reasons(manifest) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in manifest.left_out:
        found[item.reason] = found.get(item.reason, 0) + 1
    return found


def test_a_folder_without_duplicates(folder: Path, tmp_path: Path, tokenizer: InspectionTokenizer) -> None:
    out = tmp_path / "set"
    manifest = gather([str(folder)], out, recipe=TILE)
    assert manifest.seen == {"magnetic_tile unknown": 8} and manifest.taken == {"magnetic_tile unknown": 6}
    assert reasons(manifest) == {"the same picture": 1, "nearly the same picture": 1, "not usable (INVALID_IMAGE)": 1}
    twin = next(item for item in manifest.left_out if item.reason == "nearly the same picture")
    assert twin.like == "deep/4.png" and twin.origin == "zbrighter.png"
    assert read_manifest(out) == manifest
    assert {path.name for path in (out / "frames").iterdir()} == {Path(f.file).name for f in manifest.frames}
    # Also from the folder itself, and twice the same.
    frames = calibration_set(tokenizer, pack=out, views=9)
    again = calibration_set(tokenizer, pack=f"{folder},recipe=magnetic_tile", views=9)
    assert frames.patches.shape == (9, 256, 768) and frames.sha256 == again.sha256
    assert "6 gathered frames" in frames.name and manifest.sha256[:16] in frames.name
    assert all(sample.answers[0] == (tokenizer.eos_id,) for sample in frames.samples)  # nobody knows
    asked = [sample.prompts[0].kind for sample in frames.samples]
    assert asked.count(PromptKind.INSPECT) >= 7


def test_the_hash_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    first = gather([str(folder)], tmp_path / "a", recipe=TILE)
    for path in (folder / "deep").iterdir():
        path.rename(folder / f"x{9 - int(path.stem)}.png")  # other names, another order
    second = gather([str(folder)], tmp_path / "b", recipe=TILE)
    assert first.sha256 == second.sha256
    (folder / "x9.png").unlink()
    assert gather([str(folder)], tmp_path / "c", recipe=TILE).sha256 != first.sha256


def test_what_was_changed_is_not_used(folder: Path, tmp_path: Path, tokenizer: InspectionTokenizer) -> None:
    out = tmp_path / "set"
    manifest = gather([str(folder)], out, recipe=TILE)
    victim = out / manifest.frames[0].file
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + b"?")
    with pytest.raises(CalibrationError, match="was changed"):
        gathered_samples(out, tokenizer, views=12, seed=0)
    victim.write_bytes(good)
    content = json.loads((out / FILE).read_text())
    content["frames"][0]["verdict"] = "NG"
    (out / FILE).write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match="hash is another one"):
        read_manifest(out)


def test_an_interrupted_or_failed_gathering_changes_nothing(folder: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "set"
    before = gather([str(folder)], out, recipe=TILE)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gathering, "likeness", stop)
        with pytest.raises(KeyboardInterrupt):
            gather([str(folder)], out, recipe=TILE)
    assert read_manifest(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "set"]
    with pytest.raises(CalibrationError, match="no gathered set"):
        gather([str(folder)], folder, recipe=TILE)
    with pytest.raises(CalibrationError, match="--recipe"):
        gather([str(folder)], tmp_path / "other")
    with pytest.raises(CalibrationError, match="no source"):
        gather([str(folder / "notes.txt")], tmp_path / "other", recipe=TILE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no usable frame"):
        gather([str(tmp_path / "empty")], tmp_path / "other", recipe=TILE)


def test_a_video(tmp_path: Path, tokenizer: InspectionTokenizer) -> None:
    path = tmp_path / "line.avi"
    pictures = tiles(4, seed=3)
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for pixels in pictures:
        for _ in range(5):  # the part stands before the camera for five frames
            writer.write(np.ascontiguousarray(cv2.resize(pixels, (width, height))[..., ::-1]))
    writer.release()
    manifest = gather([str(path)], tmp_path / "set", recipe=TILE)
    assert manifest.seen == {"magnetic_tile unknown": 20} and len(manifest.frames) == 4
    thin = gather([str(path)], tmp_path / "thin", recipe=TILE, every=5)
    assert thin.seen == {"magnetic_tile unknown": 4} and len(thin.frames) == 4
    assert calibration_set(tokenizer, pack=tmp_path / "thin", views=4).patches.shape[0] == 4


# -- packs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Two sets in the pack's format: tiles in three splits, boards with golden samples in two."""
    root = tmp_path / "pack"
    rng = np.random.default_rng(7)
    for name, recipe, count in (("magnetic_tile", TILE, 12), ("deeppcb", PCB, 4)):
        (root / name).mkdir(parents=True)
        lines = []
        for number in range(count):
            board = recipe is PCB
            part = generate_board(rng, size=416, n_defects=3) if board else generate_ground_surface(rng)
            (root / name / f"{number}.png").write_bytes(png(part.image))
            line = {
                "file": f"{number}.png",
                "width": part.image.shape[1],
                "height": part.image.shape[0],
                "split": ("train", "train", "val", "test")[number % 4],
                "group": str(number),
                "image_label": part.image_label if part.objects or not board else "ok",
                "objects": [{"label": label, "bbox": list(box)} for label, box in part.objects],
            }
            if part.reference is not None and board:
                (root / name / f"{number}_golden.png").write_bytes(png(part.reference))
                line["reference"] = f"{number}_golden.png"
            lines.append(json.dumps(line))
        (root / name / "annotations.jsonl").write_text("\n".join(lines))
    return root


def test_only_train_calibrates(pack: Path, tmp_path: Path, tokenizer: InspectionTokenizer) -> None:
    manifest = gather([str(pack)], tmp_path / "set", distance=0)
    assert sum(manifest.seen.values()) == 8
    assert reasons(manifest) == {"of the val split": 4, "of the test split": 4}
    assert {frame.recipe_id for frame in manifest.frames} == {"magnetic_tile", "pcb"}
    # Neither in a set's own folder, nor as pictures that came back from elsewhere.
    inside = gather([str(pack / "magnetic_tile")], tmp_path / "inside", recipe=TILE, distance=0)
    assert len(inside.frames) == 6 and reasons(inside) == {"of the val split": 3, "of the test split": 3}
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in (0, 2, 3):
        pixels = cv2.imread(str(pack / "magnetic_tile" / f"{number}.png"))
        cv2.imwrite(str(loose / f"{number}.bmp"), pixels)
    cv2.imwrite(str(loose / "3.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    back = gather([str(loose)], tmp_path / "back", recipe=TILE, exclude=[pack])
    assert len(back.frames) == 1 and back.frames[0].origin == "0.bmp"
    assert reasons(back) == {"a frame of a held-out split": 2, "like a frame of a held-out split": 1}


def test_views_prompts_and_answers_are_the_recipes(pack: Path, tmp_path: Path, tokenizer: InspectionTokenizer) -> None:
    manifest = gather([str(pack)], tmp_path / "set", distance=0)
    samples, _ = gathered_samples(tmp_path / "set", tokenizer, views=40, seed=1)
    strata = {sample.source for sample in samples}
    assert strata == set(manifest.taken)
    counts = [sum(sample.source == name for sample in samples) for name in strata]
    assert max(counts) - min(counts) <= 1  # every stratum in turn
    kinds = {sample.prompts[0].kind for sample in samples}
    assert PromptKind.INSPECT in kinds and len(kinds) > 2
    for sample in samples:
        recipe = PCB if sample.source.startswith("pcb") else TILE
        assert sample.prompts[0].labels and set(sample.prompts[0].labels) <= set(recipe.label_names)
        assert sample.answers[0][0] in (tokenizer.ok_id, tokenizer.ng_id) and sample.answers[0][-1] == tokenizer.eos_id
        if sample.prompts[0].kind is PromptKind.INSPECT:
            assert (sample.answers[0][0] == tokenizer.ng_id) == bool(sample.targets)
    boards = [sample for sample in samples if sample.source == "pcb NG"]
    assert any(sample.targets for sample in boards)
    for target in (target for sample in samples for target in sample.targets):
        assert 0 <= target.box[0] < target.box[2] <= 1 and 0 <= target.box[1] < target.box[3] <= 1


def test_strata_give_alike() -> None:
    def frame(number: int, verdict: str) -> GatheredFrame:
        name = f"{verdict}{number}"
        return GatheredFrame(
            file=name, sha256=name, pixels_sha256=name, likeness="", width=1, height=1, recipe_sha256="r",
            recipe_id="tile", verdict=verdict, origin=name,
        )  # fmt: skip

    frames = [frame(i, "OK") for i in range(100)] + [frame(i, "NG") for i in range(7)] + [frame(0, "REVIEW")]
    chosen = choose(frames, 20, seed=1)
    counts = {verdict: sum(f.verdict == verdict for f in chosen) for verdict in ("OK", "NG", "REVIEW")}
    assert counts == {"OK": 12, "NG": 7, "REVIEW": 1}
    assert choose(frames[::-1], 20, seed=1) == chosen
    assert choose(frames, 20, seed=2) != chosen


def test_likeness_ignores_light_and_noise_and_not_parts() -> None:
    rng = np.random.default_rng(11)
    parts = [rgb(generate_rolled_surface(rng).image) for _ in range(6)] + tiles(6, seed=12)

    def apart(a: np.ndarray, b: np.ndarray) -> int:
        return int(np.bitwise_count(likeness(a) ^ likeness(b)).sum())

    for pixels in parts:
        noisy = np.clip(pixels * 1.04 + rng.normal(0, 1.5, pixels.shape), 0, 255).astype(np.uint8)
        assert apart(pixels, noisy) <= gathering.DISTANCE
    others = [apart(parts[i], parts[j]) for i in range(12) for j in range(i)]
    assert min(others) > gathering.DISTANCE
    assert pixels_sha256(parts[0]) != pixels_sha256(parts[0].transpose(1, 0, 2))


# -- recorded traffic --------------------------------------------------------------------------------------------------


def _result(recipe, verdict: Verdict, number: int, **changes: object) -> InspectionResult:
    return InspectionResult(
        verdict=verdict,
        recipe_id=recipe.id,
        recipe_version=recipe.version,
        recipe_sha256=recipe.sha256,
        request=RequestInfo(request_id=f"r{recipe.id}{verdict}{number}{len(changes)}"),
        **changes,  # type: ignore[arg-type]
    )


def test_recorded_traffic(tmp_path: Path, tokenizer: InspectionTokenizer) -> None:
    """By recipe and verdict after review, with golden samples; failures, studies and lost pictures are not used."""
    rng = np.random.default_rng(13)
    own = renamed("our_tile", version=3)
    boards = [generate_board(rng, size=416, n_defects=2) for _ in range(2)]
    defect = Defect(label=TILE.label_names[0], severity=Severity.MAJOR, box=Box(x1=4, y1=4, x2=40, y2=60), confidence=1)
    with Store.open(tmp_path / "store") as store:
        store.put_recipe(own, who="me", why="our line")
        pictures = tiles(8, seed=14)
        for number, pixels in enumerate(pictures[:4]):
            store.record(_result(TILE, Verdict.OK, number), image=png(pixels))
        store.record(_result(TILE, Verdict.NG, 9, defects=(defect,)), image=png(pictures[4]))
        store.record(_result(own, Verdict.REVIEW, 1), image=png(pictures[5]))
        for number, board in enumerate(boards):
            result = _result(PCB, Verdict.NG, number, reference_used=True)
            store.record(result, image=png(board.image), reference=png(board.reference))
        earlier = Recipe.model_validate(TILE.model_dump() | {"thresholds": {"ok_below": 0.1, "ng_above": 0.9}})
        reviewed = store.record(_result(earlier, Verdict.REVIEW, 7), image=png(pictures[6]))
        store.review(reviewed.result.result_id, verdict=Verdict.NG, reviewer="qa", reason="chipped", defects=[defect])
        # None of these:
        store.record(_result(TILE, Verdict.OK, 20), image=png(pictures[0]))
        store.record(_result(TILE, Verdict.OK, 21))
        store.record(_result(TILE, Verdict.OK, 22), image=png(pictures[7]), purpose=Purpose.CHALLENGE)
        store.record(_result(TILE, Verdict.OK, 23, is_simulated=True), image=png(pictures[7]))
        store.record(_result(renamed("gone"), Verdict.OK, 24), image=png(pictures[7]))
    manifest = gather([str(tmp_path / "store")], tmp_path / "set", distance=0)
    assert manifest.taken == {
        "magnetic_tile NG": 2,
        "magnetic_tile OK": 4,
        "our_tile REVIEW": 1,
        "pcb NG": 2,
    }
    assert reasons(manifest) == {
        "the same picture": 1, "without a picture": 1, "simulated": 1, "of a recipe that is not here": 1
    }  # fmt: skip
    assert all((frame.reference is not None) == (frame.recipe_id == "pcb") for frame in manifest.frames)
    frames = calibration_set(tokenizer, pack=f"sqlite:///{tmp_path / 'store' / 'store.db'}", views=8)
    assert {sample.source for sample in frames.samples} == set(manifest.taken)
    ng = [sample for sample in frames.samples if sample.source == "magnetic_tile NG"]
    assert all(sample.targets[0].label == TILE.label_names[0] for sample in ng)
    unsure = next(sample for sample in frames.samples if sample.source == "our_tile REVIEW")
    assert unsure.answers[0] == (tokenizer.eos_id,)


def test_an_engine_gives_frames_a_verdict(folder: Path, tmp_path: Path) -> None:
    from auroraedge.runtime import Inspector

    with Inspector.open(threads=1) as inspector:
        recipe = TILE.model_copy(update={"tiling": TILE.tiling.model_copy(update={"mirrored": False})})
        manifest = gather([str(folder / "deep")], tmp_path / "set", recipe=recipe, inspector=inspector)
    assert manifest.frames and all(frame.verdict in ("OK", "NG", "REVIEW") for frame in manifest.frames)


def test_the_command(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "set"
    assert gathering.main(["--source", str(folder), "--recipe", "magnetic_tile", "--out", str(out), "--most", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 calibration frames" in said and "more than are needed" in said
    assert gathering.main(["--source", str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "is no source of calibration" in " ".join(capsys.readouterr().out.split())
    assert len(read_manifest(out).frames) == 3
