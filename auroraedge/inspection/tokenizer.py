"""The tokenizer of an engine package, with the special tokens that the answer grammar is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from auroraedge.config import LOCATION_BINS
from auroraedge.errors import EngineDamagedError

PAD, EOS, OK, NG = "<pad>", "<eos>", "<OK>", "<NG>"
LOCATIONS = tuple(f"<loc{i:03d}>" for i in range(LOCATION_BINS))
SPECIAL_TOKENS = (PAD, EOS, OK, NG, *LOCATIONS)


class InspectionTokenizer:
    """Encodes prompts and decodes answers; knows the ids of the verdict, end and location tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        ids = {token: index for token, index in found.items() if index is not None}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise EngineDamagedError(
                f"The tokenizer lacks {len(missing)} special tokens, {missing[0]} first.", field="tokenizer.json"
            )
        self.pad_id: int = ids[PAD]
        self.eos_id: int = ids[EOS]
        self.ok_id: int = ids[OK]
        self.ng_id: int = ids[NG]
        self.loc_ids = np.array([ids[token] for token in LOCATIONS], dtype=np.int64)
        self._loc_bin = {int(index): bin_ for bin_, index in enumerate(self.loc_ids)}
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        # A pretrained decoder brings control tokens of its own, which are not text either.
        control = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special} - {self.eos_id}
        special = {self.pad_id, self.ok_id, self.ng_id, *self._loc_bin, *control}
        self.text_ids = np.array([i for i in range(self.vocab_size) if i not in special], dtype=np.int64)
        self.label_ids = lru_cache(maxsize=1024)(self._label_ids)

    @classmethod
    def load(cls, path: str | Path) -> InspectionTokenizer:
        """From a tokenizer.json or the folder that holds it."""
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        try:
            return cls(Tokenizer.from_str(file.read_text(encoding="utf-8")))
        except EngineDamagedError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise EngineDamagedError(f"{file.name} cannot be read: {error}.", field="tokenizer.json") from error

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; verdict and location tokens are kept, padding and end are dropped."""
        kept = [int(i) for i in ids if i not in (self.pad_id, self.eos_id)]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def _label_ids(self, label: str) -> tuple[int, ...]:
        return tuple(self.encode(label))

    def location_bin(self, token_id: int) -> int | None:
        """0..127 for a location token, None for any other."""
        return self._loc_bin.get(int(token_id))
