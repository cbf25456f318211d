"""Results by HTTP POST, each until it is taken, refused for good, or too old."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
import threading
import time

import httpx

from auroraedge import __version__
from auroraedge.errors import InvalidRequestError
from auroraedge.ingest.journal import Journal, Message
from auroraedge.ingest.settings import WebhookSettings

# Refusals that end when the receiver is free, or is set up rightly (401 to 404); any other 4xx is about this message.
_RETRY = (401, 403, 404, 407, 408, 409, 423, 425, 429)


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over `TIMESTAMP.BODY`: the receiver recomputes it, and refuses old timestamps (replays)."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class WebhookError(OSError):
    """The receiver cannot be reached, or asks for a repetition. wait_s: what it asks for (Retry-After)."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Webhook:
    def __init__(self, settings: WebhookSettings, journal: Journal) -> None:
        """Raises InvalidRequestError for a secret or certificate that cannot be read."""
        self.name, self._settings, self._journal = f"webhook-{settings.name}", settings, journal
        self._secret = settings.read(settings.secret_file, "secret_file").encode() if settings.secret_file else b""
        verify: ssl.SSLContext | bool = True
        if settings.ca is not None:
            try:
                verify = ssl.create_default_context(cafile=str(settings.ca))
            except (OSError, ssl.SSLError) as error:
                raise InvalidRequestError(f"{settings.ca} cannot be used: {error}.", field="ca") from error
        # No redirects: a signed message goes where it was addressed to, and nowhere else.
        self._client = httpx.Client(timeout=settings.timeout_s, verify=verify, follow_redirects=False)
        self.buried = 0

    def send(self, messages: list[Message], stop: threading.Event) -> list[int]:
        done: list[int] = []
        for message in messages:
            if stop.is_set():
                break
            try:
                refusal = self._post(message) if self._wanted(message) else ""
            except WebhookError as error:
                if time.time() - message.created > self._settings.give_up_s:
                    refusal = f"given up: {error}"
                elif done:
                    break
                else:
                    stop.wait(error.wait_s)
                    raise
            if refusal:
                self._journal.bury(self.name, [message], refusal)
                self.buried += 1
            done.append(message.id)
        return done

    def _wanted(self, message: Message) -> bool:
        verdicts = self._settings.verdicts
        return not verdicts or message.body["result"]["verdict"] in verdicts

    def _post(self, message: Message) -> str:
        """'' when it was taken, else why it never will be. Raises WebhookError when it may be later."""
        body = json.dumps(message.body, ensure_ascii=False).encode()
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"auroraedge-ingest/{__version__}",
            "Idempotency-Key": message.key,
            "X-AuroraEdge-Timestamp": timestamp,
        }
        if self._secret:
            headers["X-AuroraEdge-Signature"] = signature(self._secret, timestamp, body)
        try:
            response = self._client.post(self._settings.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise WebhookError(f"{self._settings.url}: {error or type(error).__name__}") from error
        status = response.status_code
        if 200 <= status < 300:
            return ""
        if status >= 500 or status in _RETRY:
            raise WebhookError(f"{self._settings.url} answered {status}", _retry_after(response))
        return f"answered {status}: {response.text[:200]}"

    def idle(self) -> None:
        """There is no connection to be kept up."""

    def close(self) -> None:
        self._client.close()


def _retry_after(response: httpx.Response) -> float:
    """Seconds of a Retry-After header, at most a minute; dates are left to our own back-off."""
    text = response.headers.get("Retry-After", "")
    return min(60.0, float(text)) if text.isdigit() else 0.0
