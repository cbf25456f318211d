"""A detector of YOLOv8n's shapes with random weights, because factories ask. Nothing of Ultralytics is used: the layers
are written from the published table (widths 16 to 256, 80 classes, 3.2 M parameters, 8.7 GFLOPs at 640x640), and
benchmarks/README.md says that its boxes mean nothing.

`python -m benchmarks.detector FILE.onnx` writes the graph and says how large it came out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

CLASSES = 80
_BINS = 16


class _Conv(nn.Module):
    """Convolution with the batch norm folded into it, and SiLU."""

    def __init__(self, a: int, b: int, k: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, k, stride, k // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.conv(x))


class _C2f(nn.Module):
    """Cross-stage block: n bottlenecks of which every output is kept."""

    def __init__(self, a: int, b: int, n: int, residual: bool) -> None:
        super().__init__()
        self.half, self.residual = b // 2, residual
        self.first, self.last = _Conv(a, b), _Conv((2 + n) * self.half, b)
        pairs = (nn.Sequential(_Conv(self.half, self.half, 3), _Conv(self.half, self.half, 3)) for _ in range(n))
        self.blocks = nn.ModuleList(pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).split(self.half, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.residual else block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class _Sppf(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = _Conv(width, width // 2), _Conv(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(nn.functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.last(torch.cat(parts, 1))


class YoloShaped(nn.Module):
    """float32 RGB [1, 3, 640, 640] in 0..1 -> [1, 4 + classes, 8400]: box (x, y, w, h in pixels) and class scores."""

    def __init__(self, side: int = 640) -> None:
        super().__init__()
        self.stem = nn.Sequential(_Conv(3, 16, 3, 2), _Conv(16, 32, 3, 2), _C2f(32, 32, 1, True))
        self.p3 = nn.Sequential(_Conv(32, 64, 3, 2), _C2f(64, 64, 2, True))
        self.p4 = nn.Sequential(_Conv(64, 128, 3, 2), _C2f(128, 128, 2, True))
        self.p5 = nn.Sequential(_Conv(128, 256, 3, 2), _C2f(256, 256, 1, True), _Sppf(256))
        self.up4, self.up3 = _C2f(384, 128, 1, False), _C2f(192, 64, 1, False)
        self.down3, self.down4 = _Conv(64, 64, 3, 2), _Conv(128, 128, 3, 2)
        self.out4, self.out5 = _C2f(192, 128, 1, False), _C2f(384, 256, 1, False)
        widths = (64, 128, 256)
        self.box = nn.ModuleList(
            nn.Sequential(_Conv(w, 64, 3), _Conv(64, 64, 3), nn.Conv2d(64, 4 * _BINS, 1)) for w in widths
        )
        self.label = nn.ModuleList(
            nn.Sequential(_Conv(w, CLASSES, 3), _Conv(CLASSES, CLASSES, 3), nn.Conv2d(CLASSES, CLASSES, 1))
            for w in widths
        )
        for head in self.label:
            nn.init.constant_(head[-1].bias, -6.0)  # an untrained head must not fill the list of boxes
        centres, strides = [], []
        for stride in (8, 16, 32):
            cells = torch.arange(side // stride) + 0.5
            y, x = torch.meshgrid(cells, cells, indexing="ij")
            centres.append(torch.stack([x, y]).flatten(1))
            strides.append(torch.full((x.numel(),), float(stride)))
        self.register_buffer("centres", torch.cat(centres, 1))
        self.register_buffer("strides", torch.cat(strides))
        self.register_buffer("bins", torch.arange(_BINS, dtype=torch.float32).view(1, 1, _BINS, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        p3 = self.p3(self.stem(images))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.up4(torch.cat([nn.functional.interpolate(p5, scale_factor=2.0), p4], 1))
        n3 = self.up3(torch.cat([nn.functional.interpolate(n4, scale_factor=2.0), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), p5], 1))
        levels = (n3, n4, n5)
        boxes = torch.cat([head(x).flatten(2) for head, x in zip(self.box, levels, strict=True)], 2)
        scores = torch.cat([head(x).flatten(2) for head, x in zip(self.label, levels, strict=True)], 2)
        # Distribution focal loss's expectation: the distance to each side.
        sides = (boxes.unflatten(1, (4, _BINS)).softmax(2) * self.bins).sum(2)
        low, high = self.centres - sides[:, :2], self.centres + sides[:, 2:]
        return torch.cat([(low + high) / 2 * self.strides, (high - low) * self.strides, scores.sigmoid()], 1)


def boxes_of(output: np.ndarray, *, limit: int, confidence: float = 0.25, iou: float = 0.45) -> list[int]:
    """Places of the boxes that stay after non-maximum suppression, of output [1, 4 + classes, 8400]."""
    scores = output[0, 4:].max(0)
    likely = np.flatnonzero(scores > confidence)
    likely = likely[np.argsort(-scores[likely])[:limit]]
    boxes = output[0, :4, likely].copy()
    boxes[:, :2] -= boxes[:, 2:] / 2
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores[likely].tolist(), confidence, iou) if len(likely) else ()
    return [int(likely[index]) for index in np.ravel(kept)]


def sizes(model: YoloShaped, side: int = 640) -> tuple[float, float]:
    """Million parameters, and GFLOPs (two a multiply-add) of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 1e9


def export(path: Path) -> None:
    """Writes the ONNX graph (opset 20, float32), the same weights every time."""
    import logging
    import warnings

    torch.manual_seed(0)
    model = YoloShaped().eval()
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.onnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(1, 3, 640, 640),), part, dynamo=True, external_data=False, opset_version=20,
            input_names=["images"], output_names=["output"], verbose=False,
        )  # fmt: skip
    part.replace(path)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
    print("{:.2f} M parameters, {:.2f} GFLOPs".format(*sizes(YoloShaped())))
