"""The words of the page in English, German and Chinese."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "texts"
LANGUAGES = {"en": "English", "de": "Deutsch", "zh": "中文"}


class Texts(dict[str, str]):
    """The words of one language by key. A key without a word is a fault of the program, not of the operator."""

    def __init__(self, language: str, words: dict[str, str]) -> None:
        super().__init__(words)
        self.language = language

    def __call__(self, key: str, /, **values: object) -> str:
        return self[key].format(**values) if values else self[key]

    @property
    def for_script(self) -> dict[str, str]:
        """What the scripts need."""
        prefixes = ("js.", "verdict.", "severity.", "unit.")
        return {key: word for key, word in self.items() if key.startswith(prefixes)}


@cache
def texts(language: str) -> Texts:
    path = _FOLDER / f"{language}.json"
    return Texts(language, json.loads(path.read_text(encoding="utf-8")))


def choose_language(cookie: str | None, accept: str) -> str:
    """The language that was chosen, else the first of the browser's that there is, else English."""
    if cookie in LANGUAGES:
        return str(cookie)
    wishes = []
    for position, part in enumerate(accept.split(",")[:20]):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            weight = 0.0
        wishes.append((-weight, position, name.strip().lower()[:2]))
    return next((name for _, _, name in sorted(wishes) if name in LANGUAGES), "en")
