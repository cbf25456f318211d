"""Reading of annotated folders: valid ones, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from auroraedge.data.pack import Truth, image_bytes, list_sets, load_image, load_pack_set
from auroraedge.errors import DatasetError, InvalidImageError


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "file": "images/a.png",
        "width": 40,
        "height": 30,
        "split": "train",
        "group": "g1",
        "image_label": "defective",
        "objects": [{"label": "crack", "bbox": [1, 2, 40, 30]}],
    }
    return base | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pack with the set `tiles` and one 40 x 30 image, without annotations."""
    target = tmp_path / "tiles"
    (target / "images").mkdir(parents=True)
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[..., 2] = 200  # OpenCV writes BGR: red
    cv2.imwrite(str(target / "images/a.png"), pixels)
    return target


def write(folder: Path, *records: dict[str, Any] | str) -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in records]
    (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.parent


def test_reads_item_with_its_fields(folder: Path) -> None:
    pack = write(folder, record(screw_type=2, official_split=None, reference="images/a.png"))
    (item,) = load_pack_set(pack, "tiles")
    assert (item.file, item.width, item.height, item.split, item.group) == ("images/a.png", 40, 30, "train", "g1")
    assert item.objects[0].label == "crack" and item.objects[0].bbox == (1, 2, 40, 30)
    assert item.extra == {"screw_type": 2, "official_split": None}
    assert item.path == folder / "images/a.png" == item.reference
    assert item.mask is None and item.load_mask() is None
    pixels = item.load()
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    assert tuple(pixels[0, 0]) == (200, 0, 0), "RGB, not BGR"


def test_mask_and_one_bit_images(folder: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[3:5, 7:10] = 255
    cv2.imwrite(str(folder / "images/m.png"), mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    pack = write(folder, record(mask="images/m.png"))
    loaded = load_pack_set(pack, "tiles")[0].load_mask()
    assert loaded is not None and loaded.dtype == np.bool_
    assert np.array_equal(loaded, mask > 0)


@pytest.mark.parametrize(
    ("label", "objects", "truth"),
    [
        ("ok", [], Truth.GOOD),
        ("ok_presumed", [], Truth.PRESUMED_GOOD),
        ("uneven", [], Truth.DEFECTIVE),  # six such images have an empty mask and so no box
        ("ok", [{"label": "crack", "bbox": [0, 0, 2, 2]}], Truth.DEFECTIVE),
    ],
)
def test_truth_of_an_image(folder: Path, label: str, objects: list[Any], truth: Truth) -> None:
    pack = write(folder, record(image_label=label, objects=objects))
    assert load_pack_set(pack, "tiles")[0].truth is truth


def test_any_split_name_is_accepted_and_filtered(folder: Path) -> None:
    (folder / "images/b.png").write_bytes((folder / "images/a.png").read_bytes())
    pack = write(folder, record(), "", record(file="images/b.png", split="night shift / line 4"))
    assert [i.file for i in load_pack_set(pack, "tiles", "night shift / line 4")] == ["images/b.png"]
    assert len(load_pack_set(pack, "tiles")) == 2
    with pytest.raises(DatasetError, match=r"no item of split 'val'.*night shift / line 4, train"):
        load_pack_set(pack, "tiles", "val")


def test_line_separator_inside_text_does_not_split_a_line(folder: Path) -> None:
    pack = write(folder, record(group="a\u2028b"))
    assert load_pack_set(pack, "tiles")[0].group == "a\u2028b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": [{"label": "crack", "bbox": [0, 0, 41, 5]}]}, "outside the 40x30 image"),
        ({"objects": [{"label": "crack", "bbox": [-1, 0, 4, 5]}]}, "outside the 40x30 image"),
        ({"objects": [{"label": "crack", "bbox": [4, 0, 4, 5]}]}, "is empty or outside"),
        ({"objects": [{"label": "crack", "bbox": [0, 0, 4]}]}, "objects.0.bbox"),
        ({"objects": [{"label": "", "bbox": [0, 0, 4, 4]}]}, "objects.0.label"),
        ({"width": "wide"}, "width"),
        ({"height": 0}, "height"),
        ({"split": None}, "split"),
        ({"file": None}, "path of the image is missing"),
        ({"file": "images/none.png"}, "there is no file"),
        ({"reference": "images/none.png"}, "reference"),
        ({"file": "../a.png"}, "leaves the set's folder"),
        ({"file": "/etc/passwd"}, "leaves the set's folder"),
    ],
)
def test_bad_annotation_names_its_line(folder: Path, changes: dict[str, Any], message: str) -> None:
    pack = write(folder, "", record(**changes))
    with pytest.raises(DatasetError) as caught:
        load_pack_set(pack, "tiles")
    assert "annotations.jsonl, line 2" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("line", ["{not json}", "[1, 2]", "null"])
def test_line_that_is_no_object(folder: Path, line: str) -> None:
    pack = write(folder, record(), line)
    with pytest.raises(DatasetError, match="line 2: "):
        load_pack_set(pack, "tiles")


def test_nan_in_a_box_is_refused(folder: Path) -> None:
    pack = write(folder, json.dumps(record()).replace("40, 30]", "NaN, 30]"))
    with pytest.raises(DatasetError, match=r"line 1: objects\.0\.bbox"):
        load_pack_set(pack, "tiles")


def test_image_named_twice(folder: Path) -> None:
    pack = write(folder, record(), record())
    with pytest.raises(DatasetError, match=r"line 2: .*already annotated in line 1"):
        load_pack_set(pack, "tiles")


def test_missing_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DatasetError, match="no data folder"):
        load_pack_set(tmp_path / "nowhere", "tiles")
    with pytest.raises(DatasetError, match=r"has no annotations\.jsonl"):
        load_pack_set(tmp_path, "tiles")
    write(folder, record())
    with pytest.raises(DatasetError, match=r"no set 'tile'.*Choose one of: tiles"):
        load_pack_set(tmp_path, "tile")
    assert list_sets(tmp_path) == ["tiles"]


def test_size_other_than_annotated(folder: Path) -> None:
    pack = write(folder, record(width=41))
    (item,) = load_pack_set(pack, "tiles")
    with pytest.raises(DatasetError, match="has 40x30 pixels, its annotation says 41x30"):
        item.load()


def test_damaged_and_missing_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"not an image")
    for name in ("empty.png", "text.png"):
        with pytest.raises(InvalidImageError, match="not a complete image"):
            load_image(tmp_path / name)
    with pytest.raises(DatasetError, match="cannot be read"):
        image_bytes(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("deeppcb", {"train": (848, 5817), "val": (152, 1056), "test": (425, 2686)}),
        ("magnetic_tile", {"train": (935, 309), "val": (182, 48), "test": (168, 61)}),
        ("ball_screw", {"train": (316, 299), "val": (72, 66), "test": (116, 100)}),
        ("steel_strip_xsdd", {"train": (954, 0), "val": (203, 0), "test": (172, 0)}),
    ],
)
def test_real_pack_has_the_documented_counts(pack_dir: Path, name: str, counts: dict[str, tuple[int, int]]) -> None:
    items = load_pack_set(pack_dir, name)
    found = {
        split: (
            sum(item.split == split for item in items),
            sum(len(item.objects) for item in items if item.split == split),
        )
        for split in {item.split for item in items}
    }
    assert found == counts
    assert items[0].load().shape == (items[0].height, items[0].width, 3)
