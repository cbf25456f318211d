"""Small datasets in every format that can be imported: 24 parts, every second one with a dark square."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

W, H = 96, 72
BOX = (20, 10, 44, 30)  # x1, y1, x2, y2 of every defect that is drawn


def texture(seed: int, *, defect: bool = False) -> np.ndarray:
    """A part of its own: smooth noise, with a dark square where it is defective. uint8 [72, 96, 3]."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(H, W)).astype(np.float32), (0, 0), 2)
    image = np.clip(128 + 200 * noise, 0, 255).astype(np.uint8)
    if defect:
        x1, y1, x2, y2 = BOX
        image[y1:y2, x1:x2] = 5
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def parts(count: int = 24) -> list[tuple[np.ndarray, bool]]:
    """Every second part is defective."""
    return [(texture(i, defect=i % 2 == 1), i % 2 == 1) for i in range(count)]


def coco(root: Path) -> Path:
    images, annotations = [], []
    for i, (image, bad) in enumerate(parts()):
        save(root / "images" / f"{i:03d}.png", image)
        images.append({"id": i, "file_name": f"{i:03d}.png", "width": W, "height": H})
        if bad:
            x1, y1, x2, y2 = BOX
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({"id": i, "image_id": i, "category_id": 7, "bbox": box, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "dark spot"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "labels.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def yolo(root: Path) -> Path:
    x1, y1, x2, y2 = BOX
    line = f"0 {(x1 + x2) / 2 / W} {(y1 + y2) / 2 / H} {(x2 - x1) / W} {(y2 - y1) / H}"
    for i, (image, bad) in enumerate(parts()):
        split = ("train", "train", "valid", "test")[i // 2 % 4]
        save(root / split / "images" / f"{i:03d}.png", image)
        label = root / split / "labels" / f"{i:03d}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(line + "\n" if bad else "", encoding="utf-8")
    # As Roboflow writes it: paths that lead out of the folder they lie in.
    data = {"names": ["dark spot"], "train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    (root / "data.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return root


def voc(root: Path) -> Path:
    x1, y1, x2, y2 = BOX
    defect = (
        f"<object><name>dark spot</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )
    (root / "Annotations").mkdir()
    for i, (image, bad) in enumerate(parts()):
        save(root / "JPEGImages" / f"{i:03d}.png", image)
        size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{i:03d}.png</filename>{size}{defect if bad else ''}</annotation>"
        (root / "Annotations" / f"{i:03d}.xml").write_text(text, encoding="utf-8")
    return root


def mvtec(root: Path) -> Path:
    x1, y1, x2, y2 = BOX
    for i, (image, bad) in enumerate(parts()):
        folder = "test/dark spot" if bad else "train/good" if i < 16 else "test/good"
        save(root / folder / f"{i:03d}.png", image)
        if bad:
            mask = np.zeros((H, W, 3), np.uint8)
            mask[y1:y2, x1:x2] = 255
            mask[60:62, 80:82] = 255  # a speck, below the least component
            save(root / "ground_truth" / "dark spot" / f"{i:03d}_mask.png", mask)
    return root


def own(root: Path) -> Path:
    lines = []
    for i, (image, bad) in enumerate(parts()):
        save(root / "images" / f"{i:03d}.png", image)
        objects = [{"label": "dark spot", "bbox": list(BOX)}] if bad else []
        record = {"file": f"images/{i:03d}.png", "width": W, "height": H, "split": "train", "group": f"part{i}"}
        lines.append(json.dumps({**record, "image_label": "defective" if bad else "ok", "objects": objects}))
    (root / "annotations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def folders(root: Path) -> Path:
    for i, (image, bad) in enumerate(parts()):
        save(root / ("NG" if bad else "OK") / f"{i:03d}.png", image)
    return root


MAKERS = {"coco": coco, "yolo": yolo, "voc": voc, "mvtec": mvtec, "pack": own, "folders": folders}
