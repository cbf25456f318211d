"""Who is measured against whom on a CPU. Each class runs in a process of its own (benchmarks.process).

One frame: 640x640 RGB pixels in memory, as a camera driver hands them over. One prompt of 64 tokens. 'verdict': from
the frame to OK/NG; 'answer': from the frame to NEW_TOKENS decoded tokens, greedy, without an early end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from auroraedge.config import IMAGE_SIZE
from auroraedge.data.synthetic import generate_board
from auroraedge.inspection.grammar import State
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.prompts import Prompt, PromptKind
from auroraedge.inspection.recipe import LabelSpec, Recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import View, patchify, render_view
from auroraedge.runtime.engine import Encoded, EnginePackage
from auroraedge.runtime.frames import LoadedFrame
from auroraedge.runtime.generation import Row, generate
from auroraedge.runtime.inspector import DEFAULT_ENGINE, Inspector
from auroraedge.runtime.session import GraphSession, OrtSession

SIDE = 640
PROMPT_TOKENS = 64
NEW_TOKENS = 20


@cache
def frame(side: int = SIDE, seed: int = 5) -> np.ndarray:
    """uint8 RGB [side, side, 3]: a drawn circuit board with seven defects; it is data of nobody."""
    pixels = generate_board(np.random.default_rng(seed), size=side, n_defects=7).image
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))


def prompt(tokenizer: InspectionTokenizer, labels: tuple[str, ...], tokens: int = PROMPT_TOKENS) -> Prompt:
    """An inspection prompt of exactly `tokens` tokens about `labels`, of which some are named again to get there."""
    text = f"inspect: {', '.join(labels)}"
    while len(tokenizer.encode(text)) < tokens:
        text += f", {labels[-1]}"
    # What is left over is cut at a token.
    text = tokenizer.decode(list(tokenizer.encode(text))[:tokens])
    found = len(tokenizer.encode(text))
    if found != tokens:
        raise AssertionError(f"the prompt has {found} tokens, not {tokens}")
    return Prompt(kind=PromptKind.INSPECT, labels=labels, text=text)


class Greedy:
    """A grammar that allows every token and never ends, so that contenders decode the same number of tokens."""

    def __init__(self, tokenizer: InspectionTokenizer, vocab: int) -> None:
        self.tokenizer = tokenizer
        self._all = np.arange(vocab)

    def start(self) -> State:
        return State(phase="verdict")

    def allowed(self, state: State) -> np.ndarray:
        return self._all

    def advance(self, state: State, token: int) -> State:
        return State(phase="text")

    def done(self, state: State) -> bool:
        return False


# --- our engine ------------------------------------------------------------------------------------------------------


class OpenVinoSession:
    """A graph of the package in OpenVINO, behind the interface of the runtime. hint f32: float32 stays float32."""

    def __init__(self, path: Path, *, threads: int | None) -> None:
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
        self._names = [output.any_name for output in compiled.outputs]
        self._request = compiled.create_infer_request()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._request.infer(dict(inputs), share_inputs=True)
        # Copies: the request's own buffers are written over by its next run.
        return {name: np.array(self._request.get_tensor(name).data) for name in self._names}


class _Package(EnginePackage):
    """The embedded engine with other sessions: `runtime` 'ort' or 'openvino'; `graphs`: a folder of float32 graphs
    instead of the package's own."""

    def __init__(self, path: Path, *, threads: int | None, runtime: str, graphs: Path | None) -> None:
        self._runtime, self._graphs = runtime, graphs
        super().__init__(path, threads=threads)

    def _session(self, name: str, threads: int | None) -> GraphSession:
        spec = self.manifest.graphs[name]
        path = (self._graphs or self.info.path) / spec.file
        if self._runtime == "openvino":
            return OpenVinoSession(path, threads=threads)
        stored = self._graphs is None and self.manifest.precision[name] == "int8-weights"
        return OrtSession(path, spec=spec, threads=threads, fold_weights=stored)


class _Uncompressed(_Package):
    """The same backbone as a plain vision language model: the decoder reads all 256 visual tokens and the prompt as it
    is, without fusion. The compressor still runs (1 % of the encoder's arithmetic) and is not read."""

    def _encode(self, patches: np.ndarray) -> Encoded:
        found = super()._encode(patches)
        return Encoded(visual=found.visual, compressed=found.visual, evidence=found.evidence, presence=found.presence)

    def fuse(self, ids: np.ndarray, visual: np.ndarray) -> np.ndarray:
        return np.repeat(self.embed(ids)[None], len(visual), axis=0)


class Ours:
    """The product's own path: Inspector for the verdict, its generation for the tokens.

    sessions: 'ort' (as shipped), 'openvino'; graphs: float32 graphs; compressed: False is the plain backbone.
    """

    def __init__(
        self,
        *,
        threads: int,
        engine: Path = DEFAULT_ENGINE,
        runtime: str = "ort",
        graphs: Path | None = None,
        compressed: bool = True,
    ) -> None:
        import cv2

        cv2.setNumThreads(1)  # as Inspector.open does
        if runtime == "ort" and graphs is None and compressed:
            self.package = EnginePackage(engine, threads=threads)
        else:
            made = _Package if compressed else _Uncompressed
            self.package = made(engine, threads=threads, runtime=runtime, graphs=graphs)
        self.inspector = Inspector(self.package, ImageLimits())
        self.limits = ImageLimits()
        labels = self.package.processor.grounding_labels or ("defect",)
        self.recipe = Recipe(id="bench", labels=tuple(LabelSpec(name=name) for name in labels))
        self.prompt = prompt(self.package.tokenizer, labels)
        self.ids = np.array(self.package.tokenizer.encode(self.prompt.text), dtype=np.int64)
        self.greedy = Greedy(self.package.tokenizer, self.package.manifest.decoder.vocab)

    def measure(self, case: str, **_: Any) -> dict[str, float]:
        image = frame()
        if case == "answer":
            started = time.perf_counter()
            self._answer(image)
            return {"answer": (time.perf_counter() - started) * 1000}
        timings = self.inspector.ask(image, self.prompt, self.recipe).timings
        assert timings is not None
        return {
            "verdict": timings.verdict_ms,
            "product": timings.total_ms,
            "decode image": timings.decode_ms,
            "preprocess": timings.preprocess_ms,
            "vision": timings.vision_ms,
            "prefill": timings.prefill_ms,
        }

    def _answer(self, image: np.ndarray) -> Row:
        loaded = LoadedFrame(image, None, self.limits)
        encoded = self.package.encode(loaded.views(self.recipe).patches)
        fused = self.package.fuse(self.ids, encoded.visual)
        row = Row(
            prefix=np.concatenate([encoded.compressed[0], fused[0]]),
            grammar=self.greedy,  # type: ignore[arg-type]
            max_new_tokens=NEW_TOKENS,
        )
        generate(self.package, [row])
        return row

    def parity(self, case: str, **_: Any) -> dict[str, Any]:
        row = self._answer(frame())
        return {"ids": row.ids, "verdict_logit": row.verdict_logit}


# --- the same weights in transformers ------------------------------------------------------------------------------


class Transformers:
    """models/nano in transformers, float32. compiled: torch.compile of encoder, connectors and decoder. compressed
    False: the decoder reads 256 visual tokens and the plain prompt."""

    def __init__(self, *, folder: Path, threads: int, compiled: bool = False, compressed: bool = True) -> None:
        import cv2
        import torch

        from auroraedge.model import AuroraEdgeForConditionalGeneration

        cv2.setNumThreads(1)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        model = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.model = model
        self.compressed = compressed
        tokenizer = InspectionTokenizer.load(folder / "tokenizer.json")
        self.tokenizer = tokenizer
        labels = tuple(model.config.grounding_labels) or ("defect",)
        self.ids = torch.tensor([list(tokenizer.encode(prompt(tokenizer, labels).text))])
        self.encode, self.fuse, self.decode = model.encode, model.fuse, model.language_model
        if compiled:
            self.encode, self.fuse = torch.compile(model.encode), torch.compile(model.fuse)
            self.decode = torch.compile(model.language_model, dynamic=True)

    def _embeds(self) -> Any:
        torch = self.torch
        image = frame()
        view = render_view(image, View(0, 0, image.shape[1], image.shape[0]))
        pixels = torch.from_numpy(patchify(view[None]).astype(np.float32) / 127.5 - 1.0)
        visual, compressed, mask = self.encode(pixels)
        if not self.compressed:
            return torch.cat([visual, self.model.get_input_embeddings()(self.ids)], 1)
        fused = self.fuse(self.ids, torch.ones_like(self.ids), visual, mask)
        return torch.cat([compressed, fused], 1)

    def _answer(self, new_tokens: int) -> tuple[float, float, list[int], float]:
        """Milliseconds to the verdict and to the last token, the tokens, and the verdict's logit."""
        torch = self.torch
        started = time.perf_counter()
        output = self.decode(inputs_embeds=self._embeds(), use_cache=True, logits_to_keep=1)
        logits = output.logits[0, -1]
        verdict_logit = float(logits[self.tokenizer.ng_id] - logits[self.tokenizer.ok_id])
        verdict = (time.perf_counter() - started) * 1000
        ids = [int(logits.argmax())]
        while len(ids) < new_tokens:
            step = torch.tensor([[ids[-1]]])
            output = self.decode(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
            ids.append(int(output.logits[0, -1].argmax()))
        return verdict, (time.perf_counter() - started) * 1000, ids, verdict_logit

    def measure(self, case: str, **_: Any) -> dict[str, float]:
        if case == "answer":
            return {"answer": self._answer(NEW_TOKENS)[1]}
        return {"verdict": self._answer(1)[0]}

    def parity(self, case: str, **_: Any) -> dict[str, Any]:
        _, _, ids, logit = self._answer(NEW_TOKENS)
        return {"ids": ids, "verdict_logit": logit}


# --- other models' shapes ------------------------------------------------------------------------------------------


class Shaped:
    """A model of another's shapes with random weights in transformers, eager (benchmarks.shapes). It starts from ready
    pixel tensors, which favours it."""

    def __init__(self, *, shape: str, threads: int, dtype: str = "float32") -> None:
        import torch

        from benchmarks.shapes import make

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.made = make(shape, device=torch.device("cpu"), dtype=getattr(torch, dtype))

    def measure(self, case: str, **_: Any) -> dict[str, float]:
        """A case of 'verdict' stops at the first token; any other gives both figures at once."""
        found = self.made.measure(prompt_tokens=PROMPT_TOKENS, new_tokens=1 if case == "verdict" else NEW_TOKENS)
        return {"verdict": found["verdict"]} if case == "verdict" else found


class Detector:
    """A network of YOLOv8n's shapes with random weights in ONNX Runtime: one 640x640 frame to decoded boxes. A detector
    answers another question (boxes of trained classes, no prompt); factories compare all the same."""

    def __init__(self, *, path: Path, threads: int) -> None:
        self.session = OrtSession(path, threads=threads)

    def measure(self, case: str, **_: Any) -> dict[str, float]:
        from benchmarks.detector import boxes_of

        started = time.perf_counter()
        image = frame()
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        pixels *= 1 / 255
        boxes_of(self.session.run({"images": pixels})["output"], limit=300)
        return {"verdict": (time.perf_counter() - started) * 1000}


# --- for scaling -----------------------------------------------------------------------------------------------------


class Scaling:
    """Our engine under more work: prompts per frame, frames in one batch, and large frames cut into views."""

    def __init__(self, *, threads: int, engine: Path = DEFAULT_ENGINE) -> None:
        self.inspector = Inspector.open(engine, threads=threads)
        self.images: dict[tuple[int, int], np.ndarray] = {}
        names = self.inspector._package.processor.grounding_labels
        self.labels = names
        self.recipe = Recipe(id="bench", labels=tuple(LabelSpec(name=name) for name in names))

    def measure(self, case: str, **options: Any) -> dict[str, float]:
        calls: dict[str, Callable[..., None]] = {
            "prompts": self._prompts,
            "classified": self._classified,
            "again": self._again,
            "frames": self._frames,
            "size": self._size,
        }
        started = time.perf_counter()
        calls[case](**options)
        return {"total": (time.perf_counter() - started) * 1000}

    def _asked(self, count: int) -> list[str]:
        kinds = ("is there a {}?", "locate {}", "count {}")
        texts = [kind.format(label) for label in self.labels for kind in kinds]
        return ["inspect", texts[0], "classify", *texts[1:]][:count]

    def _prompts(self, count: int) -> None:
        self.inspector.ask_all(frame(), self._asked(count), self.recipe)

    def _classified(self, count: int) -> None:
        self.inspector.ask_all(frame(), ["inspect", *["classify"] * (count - 1)], self.recipe)

    def _again(self, count: int) -> None:
        """The same prompts in calls of their own: nothing is shared."""
        for text in self._asked(count):
            self.inspector.ask(frame(), text, self.recipe)

    def _frames(self, count: int) -> None:
        from auroraedge.runtime import InspectionJob

        jobs = [InspectionJob(image=frame(), recipe=self.recipe) for _ in range(count)]
        for outcome in self.inspector.inspect_batch(jobs):
            if isinstance(outcome, Exception):
                raise outcome

    def _size(self, width: int, height: int, view_px: int, overlap_px: int) -> None:
        from auroraedge.inspection.recipe import Tiling

        tiling = Tiling(mode="square", size_px=view_px, overlap_px=overlap_px, max_views=256)
        recipe = self.recipe.model_copy(update={"tiling": tiling})
        self.inspector.inspect(self._large(width, height), recipe)

    def _large(self, width: int, height: int) -> np.ndarray:
        if (width, height) not in self.images:
            side = frame()
            rows, columns = -(-height // SIDE), -(-width // SIDE)
            self.images[width, height] = np.ascontiguousarray(np.tile(side, (rows, columns, 1))[:height, :width])
        return self.images[width, height]


assert SIDE >= IMAGE_SIZE
