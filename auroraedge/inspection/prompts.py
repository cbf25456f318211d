"""The prompts that the model is trained on, and their recognition in what a person typed.

The label list stands in the prompt, so that the fusion module can look for each label in all 256 visual tokens and a
recipe's labels need no change of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.recipe import Recipe

MAX_PROMPT_CHARS = 2000


class PromptKind(StrEnum):
    INSPECT = "inspect"
    CLASSIFY = "classify"
    EXISTS = "exists"
    COUNT = "count"
    LOCATE = "locate"
    DESCRIBE = "describe"
    FREE = "free"


_TARGETED = (PromptKind.EXISTS, PromptKind.COUNT, PromptKind.LOCATE)
_RECOGNISED: tuple[tuple[PromptKind, re.Pattern[str]], ...] = (
    (PromptKind.EXISTS, re.compile(r"(?:is|are) there (?:an? |any )?(?P<target>[\w-]+)\s*\??")),
    (PromptKind.COUNT, re.compile(r"(?:count|how many) (?:the )?(?P<target>[\w-]+)\s*[.?]?")),
    (PromptKind.LOCATE, re.compile(r"(?:locate|find|where is|where are) (?:the |an? )?(?P<target>[\w-]+)\s*[.?]?")),
    (PromptKind.DESCRIBE, re.compile(r"describe(?: the (?:part|image|frame))?\s*\.?")),
    (PromptKind.CLASSIFY, re.compile(r"classify(?: the (?:part|image|frame))?\s*\.?")),
    (PromptKind.INSPECT, re.compile(r"inspect(?: the (?:part|image|frame))?\s*\.?")),
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question to the model: its kind, the labels that may be answered, and the text that is tokenised."""

    kind: PromptKind
    labels: tuple[str, ...]
    text: str
    target: str | None = None


def build_prompt(
    kind: PromptKind, labels: Sequence[str], target: str | None = None, *, reference: bool = False
) -> Prompt:
    """The prompt of `kind` over `labels`.

    reference: the view holds a golden sample beside the frame (views.render_view); the prompt says so, because the
    channels then mean something else.
    """
    how = " against reference" if reference else ""
    if kind in _TARGETED:
        if target is None:
            raise InvalidRequestError(f"A '{kind}' prompt needs a label.", field="prompt")
        text = {
            PromptKind.EXISTS: f"is there{how}: {target}?",
            PromptKind.COUNT: f"count{how}: {target}",
            PromptKind.LOCATE: f"locate{how}: {target}",
        }[kind]
        return Prompt(kind=kind, labels=(target,), text=text, target=target)
    if kind is PromptKind.FREE:
        raise InvalidRequestError("A free prompt has its own text; use Prompt directly.", field="prompt")
    return Prompt(kind=kind, labels=tuple(labels), text=f"{kind.value}{how}: {', '.join(labels)}")


def parse_prompt(text: str, recipe: Recipe, *, reference: bool = False) -> Prompt:
    """The prompt behind what a person typed: 'is there a short?', 'count short', 'locate short', 'describe', ...

    Anything else is a free prompt. Raises UnknownLabelError for a recognised form with a label that the recipe lacks,
    InvalidRequestError for an empty or overlong text.
    """
    words = " ".join(text.split())
    if not words:
        raise InvalidRequestError("The prompt is empty.", field="prompt", remedy="Send a prompt, e.g. 'inspect'.")
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidRequestError(
            f"The prompt has {len(text)} characters; the limit is {MAX_PROMPT_CHARS}.",
            field="prompt",
            remedy="Shorten it.",
        )
    for kind, pattern in _RECOGNISED:
        match = pattern.fullmatch(words.lower())
        if match is None:
            continue
        target = match.groupdict().get("target")
        if target is not None:
            by_lower = {name.lower(): name for name in recipe.label_names}
            target = by_lower.get(target) or recipe.label(target).name
        return build_prompt(kind, recipe.label_names, target, reference=reference)
    return Prompt(kind=PromptKind.FREE, labels=recipe.label_names, text=words)
