"""The gRPC server's token file, as the page's sessions need it."""

from __future__ import annotations

from pathlib import Path

from auroraedge.serving.tokens import Token, TokenFile, TokenRefused
from service.ui.access import Caller, Tokens


class FileTokens:
    """Callers by token. A session holds the token's id, which tells nothing of the token."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequestError for a file that cannot be used."""
        self._file = TokenFile(path)

    def identify(self, token: str) -> Caller | None:
        try:
            return _caller(self._file.check(token))
        except TokenRefused:
            return None

    def find(self, key: str) -> Caller | None:
        token = self._file.find(key)
        return None if token is None else _caller(token)


def _caller(token: Token) -> Caller:
    return Caller(name=token.name, scopes=frozenset(token.scopes), key=token.id)


def open_tokens(path: Path | None) -> Tokens | None:
    """The tokens of a file; None for none. Raises InvalidRequestError for a file that cannot be used."""
    return None if path is None else FileTokens(path)
