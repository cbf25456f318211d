"""Datasets of other tools: every format gives the same items; the checks see what is wrong and only that."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_support import BOX, MAKERS, H, W, coco, folders, own, parts, save, texture, yolo

from auroraedge.data.importers import FORMATS, RawDataset, Severity, detect_format, read_dataset
from auroraedge.data.importers.archive import open_folder
from auroraedge.data.importers.convert import write_set
from auroraedge.data.importers.folders import mask_boxes
from auroraedge.data.importers.types import GOOD, split_of
from auroraedge.data.pack import Truth, load_pack_set
from auroraedge.data.validation import CheckedDataset, check_dataset, check_page, check_table
from auroraedge.data.validation.common import label_name
from auroraedge.data.validation.duplicates import find_likeness
from auroraedge.data.validation.splits import plan_splits
from auroraedge.errors import DatasetError


def check(dataset: RawDataset, **options: object) -> CheckedDataset:
    return check_dataset(dataset, **options)  # type: ignore[arg-type]


def codes(found: CheckedDataset, severity: Severity | None = None) -> set[str]:
    return {f.code for f in found.findings if severity is None or f.severity is severity}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_detected_and_gives_the_same_parts(name: str, tmp_path: Path) -> None:
    root = MAKERS[name](tmp_path)
    assert detect_format(root) == name
    dataset = read_dataset(root)
    assert dataset.format == name
    assert sum(item.image_label == GOOD for item in dataset.items) == 12
    found = check(dataset)
    assert not found.errors, found.errors
    assert found.task == ("classify" if name == "folders" else "inspect")
    if name == "folders":
        assert found.labels == ("defect",)
        return
    assert found.labels == ("dark_spot",)
    boxes = [o.bbox for item in found.items for o in item.objects]
    assert len(boxes) == 12
    assert np.allclose(boxes, [BOX] * 12, atol=0.02)
    assert {item.split for item in found.items} == {"train", "val", "test"}


def test_a_converted_set_is_read_back_and_left_alone_the_second_time(tmp_path: Path) -> None:
    found = check(read_dataset(coco(tmp_path)))
    folder = tmp_path / "out" / "set"
    first = write_set(found.items, folder)
    items = load_pack_set(tmp_path / "out", "set")
    assert len(items) == 24
    assert sum(item.truth is Truth.DEFECTIVE for item in items) == 12
    assert items[1].load().shape == (H, W, 3)
    before = (folder / "annotations.jsonl").stat().st_mtime_ns
    assert write_set(found.items, folder) == first
    assert (folder / "annotations.jsonl").stat().st_mtime_ns == before
    save(tmp_path / "images" / "000.png", texture(99))
    assert write_set(found.items, folder) != first


def test_the_operators_export_keeps_verdict_golden_sample_and_part(tmp_path: Path) -> None:
    """The fields that service/ui/training_set.py writes, in its zip file."""
    build = tmp_path / "build"
    images = []
    for i, (image, bad) in enumerate(parts(4)):
        save(build / "images" / f"{i}.png", image)
        save(build / "references" / f"{i}.png", texture(i))
        facts = {"verdict": "NG" if bad else "OK", "reference": f"references/{i}.png", "part_id": f"part{i // 2}"}
        images.append({"id": i, "file_name": f"images/{i}.png", "width": W, "height": H, "auroraedge": facts})
    x1, y1, x2, y2 = BOX
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "spot"}]}
    (build / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in build.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(build).as_posix())
    folder = open_folder(archive, tmp_path / "place")
    assert open_folder(archive, tmp_path / "place") == folder
    items = read_dataset(folder).items
    assert [item.image_label for item in items] == ["ok", "defective", "ok", "defective"]
    assert [item.group for item in items] == ["part0", "part0", "part1", "part1"]
    assert all(item.reference is not None for item in items)


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside.txt", "x")
    with pytest.raises(DatasetError, match="leaves the folder"):
        open_folder(archive, tmp_path / "place")
    assert not (tmp_path / "outside.txt").exists()


def test_an_unknown_folder_says_what_can_be_done(tmp_path: Path) -> None:
    save(tmp_path / "a.png", texture(0))
    with pytest.raises(DatasetError, match="--format"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="There is no folder"):
        read_dataset(tmp_path / "none")


def test_several_categories_and_sets_are_named(tmp_path: Path) -> None:
    for name in ("bottle", "cable"):
        (tmp_path / name / "train" / "good").mkdir(parents=True)
        (tmp_path / name / "test").mkdir()
    with pytest.raises(DatasetError, match="bottle, cable"):
        read_dataset(tmp_path)


def test_bad_boxes_images_and_sizes_are_errors_with_pictures(tmp_path: Path) -> None:
    root = own(tmp_path)
    lines = [json.loads(line) for line in (root / "annotations.jsonl").read_text().splitlines()]
    lines[1]["objects"][0]["bbox"] = [60, 10, 130, 30]
    lines[3]["objects"][0]["bbox"] = [30, 10, 30, 30]
    lines[5]["objects"][0]["bbox"] = [30, 10, 32, 30]
    lines[7]["objects"][0]["bbox"] = [-1, 10, 40, 30]
    lines[9]["width"], lines[9]["height"] = H, W
    (root / "images" / "011.png").write_bytes(b"not an image")
    (root / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = check(read_dataset(root))
    assert codes(found, Severity.ERROR) == {"box-outside", "box-empty", "size-mismatch", "unreadable-image"}
    assert "box-tiny" in codes(found, Severity.WARNING)
    assert "box-cut" in codes(found, Severity.NOTE)
    named = {f.code: f.names for f in found.errors}
    assert named["box-outside"] == ("images/001.png",)
    assert named["unreadable-image"] == ("images/011.png",)
    assert any("EXIF" in e.caption for f in found.errors for e in f.examples)
    page = check_page(found)
    assert page.count("data:image/jpeg;base64,") >= 4
    assert "60, 10, 130, 30" in page
    check_table(found)


def test_copies_leak_only_where_splits_were_given(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    copy = root / "test" / "images" / "copy.png"
    copy.write_bytes((root / "train" / "images" / "001.png").read_bytes())
    label = (root / "train" / "labels" / "001.txt").read_text()
    (root / "test" / "labels" / "copy.txt").write_text(label)
    found = check(read_dataset(root))
    assert "leakage" in codes(found, Severity.ERROR)
    mended = check(read_dataset(root), resplit=True)
    assert not mended.errors
    split = {item.name: item.split for item in mended.items}
    assert split["test/images/copy.png"] == split["train/images/001.png"]
    assert "exact-duplicates" in codes(mended, Severity.WARNING)
    (root / "test" / "labels" / "copy.txt").write_text("")
    assert "conflicting-duplicates" in codes(check(read_dataset(root), resplit=True), Severity.ERROR)


def test_a_clean_set_has_no_warning(tmp_path: Path) -> None:
    found = check(read_dataset(own(tmp_path)), known_labels=("dark_spot",))
    assert not codes(found, Severity.ERROR) | codes(found, Severity.WARNING)


def test_amounts_classes_and_modes_are_told(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / "scratch" / f"{i}.png", texture(i, defect=True))
    save(tmp_path / "dent" / "8.png", np.stack([texture(8)[..., 0]] * 2 + [texture(9)[..., 0]], -1))
    save(tmp_path / "dent" / "9.png", np.full((H, 2 * W, 3), 40, np.uint8))
    (tmp_path / "OK").mkdir()
    found = check(read_dataset(tmp_path, "folders"), known_labels=("crack",))
    assert found.labels == ("dent", "scratch")
    assert {"rare-label", "mixed-modes", "mixed-sizes", "uniform-image", "too-few-parts"} <= codes(found)
    assert "new-labels" in codes(found, Severity.NOTE)
    assert "no-ok-parts" in codes(found)
    assert all(item.split == "train" for item in found.items)


def test_a_mode_that_tells_the_class_is_an_error(tmp_path: Path) -> None:
    root = folders(tmp_path)
    for path in (root / "NG").glob("*.png"):
        image = cv2.imread(str(path))
        image[..., 0] = 255 - image[..., 0]
        cv2.imwrite(str(path), image)
    assert "mode-tells-class" in codes(check(read_dataset(root)), Severity.ERROR)


def test_near_duplicates_are_found_and_distinct_parts_are_not() -> None:
    def small(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image[..., 0], (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)

    originals = [texture(i) for i in range(20)]
    brighter = np.clip(originals[3].astype(int) + 25, 0, 255).astype(np.uint8)
    images = [*originals, brighter]
    found = find_likeness([str(i) for i in range(21)], [small(i) for i in images], [None] * 21)
    assert [(a, b) for a, b, _ in found.near] == [(3, 20)]
    assert found.groups[3] == found.groups[20]
    assert len(set(found.groups)) == 20
    joined = find_likeness([str(i) for i in range(20)], [small(i) for i in originals], ["a", "a", *[None] * 18])
    assert joined.groups[0] == joined.groups[1]


def test_splits_keep_groups_whole_and_classes_everywhere() -> None:
    groups = [i // 2 for i in range(120)]
    classes = ["ok" if g % 2 else ("a" if g % 4 else "b") for g in groups]
    plan = plan_splits([None] * 120, groups, classes, good="ok")
    by_group: dict[int, set[str]] = {}
    for group, split in zip(groups, plan.splits, strict=True):
        by_group.setdefault(group, set()).add(split)
    assert all(len(names) == 1 for names in by_group.values())
    for name in ("train", "val", "test"):
        assert {c for c, s in zip(classes, plan.splits, strict=True) if s == name} == {"ok", "a", "b"}
    assert 0.5 < plan.splits.count("train") / 120 < 0.7
    kept = plan_splits(["train"] * 100 + ["val"] * 20, groups, classes, good="ok")
    assert set(kept.splits[100:]) == {"val"}
    assert "test" in kept.splits[:100]
    few = plan_splits([None] * 6, range(6), ["ok", "a"] * 3, good="ok")
    assert set(few.splits) == {"train"}
    assert "too few" in few.note


def test_a_pattern_tells_the_part(tmp_path: Path) -> None:
    root = folders(tmp_path)
    found = check(read_dataset(root), group_pattern=r"(\d\d)\d\.png")
    assert len({item.group for item in found.items}) <= 3
    with pytest.raises(DatasetError, match="does not match"):
        check(read_dataset(root), group_pattern="serial")


def test_names_masks_and_splits() -> None:
    assert label_name("dark spot #2") == "dark_spot_2"
    assert label_name("3rd") == "defect_3rd"
    assert split_of("instances_val2017") == "val"
    assert split_of("images") is None
    mask = np.zeros((20, 20), bool)
    mask[2:6, 3:9] = True
    mask[15, 15] = True
    boxes, dropped = mask_boxes(mask, "x")
    assert [o.bbox for o in boxes] == [(3, 2, 9, 6)]
    assert dropped == 1
