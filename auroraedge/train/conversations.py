"""Records of images and text, as LLaVA's JSON and WebDataset's tar files hold them, to training samples.

One record is an image with any of
    conversations   [{"from": "human", "value": "<image>\\nQuestion"}, {"from": "gpt", "value": "Answer"}, ...]
    question        with `answer`
    caption         (or the text file of a tar sample): asked for with one of CAPTION_PROMPTS
Each exchange is a prompt of its own about the image, which is encoded once for all of them. What was said before is
not part of a prompt: only the prompt's tokens are fused, and an inspection is one question.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from auroraedge.data.instructions import Sample
from auroraedge.errors import DatasetError
from auroraedge.inspection import views
from auroraedge.inspection.prompts import Prompt, PromptKind
from auroraedge.inspection.tokenizer import InspectionTokenizer

# LLaVA's own wordings for brief captions (arXiv 2304.08485, table 11).
CAPTION_PROMPTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
)
_QUESTIONERS, _ANSWERERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """Tokens of a prompt and of an answer, and exchanges of one image; what is longer is cut."""

    prompt: int = 256
    answer: int = 256
    exchanges: int = 4


def exchanges_of(record: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """(question, answer) pairs of a record. Raises DatasetError naming `where` and the field."""
    turns = record.get("conversations")
    if turns is not None:
        return _turns(turns, where)
    question, answer = record.get("question"), record.get("answer")
    if isinstance(question, str) and isinstance(answer, str):
        return [(question.strip(), answer.strip())]
    caption = record.get("caption")
    if isinstance(caption, str) and caption.strip():
        text = caption.strip()
        return [(CAPTION_PROMPTS[zlib.crc32(text.encode()) % len(CAPTION_PROMPTS)], text)]
    raise DatasetError(
        f"{where} has neither 'conversations', nor 'question' and 'answer', nor 'caption'.",
        field="conversations",
        remedy="docs/full-size.md shows the forms.",
    )


def _turns(turns: Any, where: str) -> list[tuple[str, str]]:
    def wrong(what: str) -> DatasetError:
        return DatasetError(f"{where}: {what}.", field="conversations", remedy="docs/full-size.md shows the form.")

    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise wrong("'conversations' is not a list of turns")
    pairs: list[tuple[str, str]] = []
    asked: str | None = None
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise wrong("a turn lacks 'from' or 'value'")
        speaker, text = turn.get("from"), turn["value"].replace("<image>", " ").strip()
        if speaker in _QUESTIONERS:
            asked = text
        elif speaker in _ANSWERERS:
            if asked is None:
                raise wrong("an answer comes before any question")
            if text:
                pairs.append((asked or CAPTION_PROMPTS[0], text))
            asked = None
        elif speaker != "system":
            raise wrong(f"a turn is from '{speaker}', not 'human' or 'gpt'")
    if not pairs:
        raise wrong("no question has an answer")
    return pairs


def decode_image(data: bytes) -> np.ndarray | None:
    """RGB uint8 [H, W, 3], upright as its EXIF says; None where the bytes are no image."""
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR) if data else None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def make_conversation(
    image: np.ndarray,
    exchanges: Sequence[tuple[str, str]],
    tokenizer: InspectionTokenizer,
    limits: TextLimits,
    *,
    turn: int = 0,
    source: str = "",
) -> Sample:
    """A sample of free prompts. Of more exchanges than the limit, `turn` (0, 1, ...) takes the next ones each time."""
    first = turn * limits.exchanges % len(exchanges) if len(exchanges) > limits.exchanges else 0
    prompts, answers = [], []
    for question, answer in exchanges[first : first + limits.exchanges]:
        ids = tokenizer.encode(question)
        # The end of a long prompt holds the question.
        text = question if len(ids) <= limits.prompt else tokenizer.decode(ids[-limits.prompt :])
        prompts.append(Prompt(kind=PromptKind.FREE, labels=(), text=text))
        reply = tokenizer.encode(answer)
        # A cut answer does not end: it must not teach the model to stop in the middle.
        answers.append((*reply, tokenizer.eos_id) if len(reply) <= limits.answer else tuple(reply[: limits.answer]))
    return Sample(
        pixels=views.resize_view(np.ascontiguousarray(image)),
        prompts=tuple(prompts),
        answers=tuple(answers),
        targets=(),
        labels=(),
        image_class=None,
        defective=False,
        source=source,
    )
