"""Login, scopes, forged requests and addresses: in the browser and by hand-made requests."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from requires import require_tool
from seeding import Inspected, fill

from auroraedge.inspection.results import Verdict
from auroraedge.serving.tokens import add_token, revoke_tokens
from auroraedge.store import Store


class Client:
    """Hand-made requests, and the cookies that answers set."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        self.address = urlsplit(url)
        self.cookies: dict[str, str] = {}
        self._context = context

    def send(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        host, port = self.address.hostname or "", self.address.port
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, port, context=self._context, timeout=10)
            if self._context
            else http.client.HTTPConnection(host, port, timeout=10)
        )
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent.setdefault("cookie", "; ".join(f"{k}={v}" for k, v in self.cookies.items()))
        connection.request(method, path, body, sent)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        for line in reply.headers.get_all("set-cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return reply.status, reply.headers, content

    def login(self, token: str) -> int:
        return self.send("POST", "/login", f"token={token}&person=&next=/")[0]

    def csrf(self) -> str:
        found = re.search(rb'name="csrf" content="([^"]+)"', self.send("GET", "/history")[2])
        assert found
        return found[1].decode()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def make(tokens: Path, name: str, *scopes: str) -> str:
    return add_token(tokens, name, scopes, lifetime=timedelta(hours=1))[0]  # type: ignore[arg-type]


def decide(client: Client, result_id: str, csrf: str, **headers: str) -> int:
    body = json.dumps({"verdict": "NG", "reason": "x", "person": "", "defects": None, "reviewNumber": 0})
    headers = {"content_type": "application/json", "x_csrf_token": csrf, **headers}
    return client.send("POST", f"/api/results/{result_id}/review", body, **headers)[0]


def test_login_in_the_browser(
    store: Store, parts: list[Inspected], tokens: Path, serve: Any, open_page: Callable[..., Any]
) -> None:
    ids = fill(store, parts, 12, every_review=2)
    reader, inspector = make(tokens, "hall-screen", "read"), make(tokens, "station-4", "read", "inspect")
    server = serve(store, tokens=tokens)
    page = open_page()
    page.goto(server.url + "history?lot=LOT-1")
    assert "/login" in page.url
    page.get_by_label("Access token").fill("aet_000000000000_wrong")
    page.get_by_role("button", name="Log in").click()
    assert "not valid" in page.get_by_role("alert").inner_text()
    page.get_by_label("Access token").fill(reader)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/history?lot=LOT-1")
    # Whoever may only read finds nothing to change.
    page.goto(server.url + f"results/{ids[0]}")
    assert page.locator("#review").count() == 0 and "needs a token" in page.locator("main").inner_text()
    page.goto(server.url + "recipes/pcb")
    assert page.locator("#save").count() == 0
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto(server.url)
    assert "/login" in page.url
    page.get_by_label("Access token").fill(inspector)
    page.get_by_label("Your name").fill("Ana")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(server.url)
    page.goto(server.url + "review")
    page.wait_for_selector("#defects")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    page.wait_for_url("**decided=**")
    (entry,) = store.audit_trail()
    assert entry.who == "Ana (station-4)"
    # A token that is withdrawn ends what it opened.
    revoke_tokens(tokens, "station-4")
    page.wait_for_timeout(1100)
    page.goto(server.url + "history")
    assert "/login" in page.url


def test_scopes_and_forged_requests(store: Store, parts: list[Inspected], tokens: Path, serve: Any) -> None:
    only = fill(store, parts, 1, every_review=1)[0]
    reader, inspector = make(tokens, "screen", "read"), make(tokens, "station", "read", "inspect")
    machine, administrator = make(tokens, "camera", "inspect"), make(tokens, "chief", "read", "admin")
    server = serve(store, tokens=tokens)
    nobody = Client(server.url)
    image = store.get(only).image_sha256
    pages = ("/history", "/review", "/recipes/pcb", "/engine", "/audit", "/training-set", f"/results/{only}", "/")
    for path in pages:
        status, headers, _ = nobody.send("GET", path)
        assert status == 303 and headers["location"].startswith("/login")
    for path in (f"/picture/{image}", "/api/events", "/api/recipes/pcb/effect"):
        assert nobody.send("GET", path)[0] == 401
    assert decide(nobody, only, "") == 401
    assert nobody.send("GET", "/training-set.zip")[0] == 303

    # A camera's token sends frames and sees nothing.
    assert Client(server.url).login(machine) == 403
    looking = Client(server.url)
    assert looking.login(reader) == 303
    assert looking.send("GET", f"/picture/{image}")[0] == 200
    assert decide(looking, only, looking.csrf()) == 403
    assert looking.send("GET", "/training-set.zip")[0] == 403

    working = Client(server.url)
    assert working.login(inspector) == 303
    csrf = working.csrf()
    assert decide(working, only, "") == 403 and decide(working, only, looking.csrf()) == 403
    assert decide(working, only, csrf, origin="https://elsewhere.example") == 403
    assert decide(working, only, csrf, sec_fetch_site="cross-site") == 403
    assert decide(working, only, csrf, content_type="text/plain") == 400
    recipe = json.dumps({"recipe": {}, "expectedVersion": 0, "why": "x"})
    json_headers = {"content_type": "application/json", "x_csrf_token": csrf}
    assert working.send("POST", "/api/recipes/pcb", recipe, **json_headers)[0] == 403
    assert working.send("POST", "/api/recipes/pcb", "{" * 100_000, **json_headers)[0] == 403
    assert store.get(only).review is None
    assert decide(working, only, csrf) == 200
    review = store.get(only).review
    assert review is not None and (review.reviewer, review.verdict) == ("station", Verdict.NG)
    # Changed in the browser, a cookie is worth nothing.
    cookie = working.cookies["auroraedge_session"]
    for forged in (cookie[:-1] + ("0" if cookie[-1] != "0" else "1"), "x" + cookie, ".", "é.é", cookie.split(".")[0]):
        working.cookies["auroraedge_session"] = forged.encode().decode("latin-1")
        assert working.send("GET", "/history")[0] == 303
    changing = Client(server.url)
    assert changing.login(administrator) == 303
    csrf = changing.csrf()
    assert decide(changing, only, csrf) == 403
    assert changing.send("POST", "/api/recipes/pcb", recipe, **{**json_headers, "x_csrf_token": csrf})[0] == 400


def test_wrong_tokens_have_to_wait(store: Store, tokens: Path, serve: Any) -> None:
    right = make(tokens, "a", "read")
    client = Client(serve(store, tokens=tokens).url)
    assert [client.login("aet_000000000000_x") for _ in range(5)] == [403] * 5
    status, _, content = client.send("POST", "/login", f"token={right}")
    assert status == 429 and b"Wait" in content


def test_cookies_and_headers(store: Store, tokens: Path, serve: Any) -> None:
    token = make(tokens, "a", "read")
    client = Client(serve(store, tokens=tokens).url)
    status, headers, content = client.send("GET", "/login?next=//elsewhere.example/")
    assert status == 200 and b'value="/"' in content
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert "server" not in headers
    _, headers, _ = client.send("POST", "/login", f"token={token}&next=//elsewhere.example")
    assert headers["location"] == "/"
    cookie = headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    # Another site cannot log a browser in.
    assert client.send("POST", "/login", "token=x", origin="https://elsewhere.example")[0] == 403


def test_no_path_is_opened(store: Store, parts: list[Inspected], tmp_path: Path, serve: Any) -> None:
    fill(store, parts, 1)
    (tmp_path / "secret.png").write_bytes(parts[0].image)
    client = Client(serve(store).url)
    for path in (
        "/picture/../../secret.png",
        f"/picture/{tmp_path / 'secret.png'}",
        "/picture/..%2f..%2fsecret.png",
        "/picture/" + "0" * 64,
        "/picture/" + "A" * 64,
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/results/..%2f..%2fsecret.png",
        "/recipes/..%2f..%2fsecret",
    ):
        status, _, content = client.send("GET", path)
        assert status == 404 and parts[0].image not in content and b"Starlette" not in content, path
    assert client.send("GET", "/history?before=-1")[0] == 400
    assert client.send("GET", "/history?since=yesterday")[0] == 400
    assert client.send("GET", "/?hours=3")[0] == 400


def test_only_this_machine_without_tokens(store: Store, serve: Any) -> None:
    client = Client(serve(store).url)
    assert client.send("GET", "/history")[0] == 200
    # A foreign name that was pointed at this machine (DNS rebinding).
    assert client.send("GET", "/history", host="evil.example")[0] == 421
    assert client.send("GET", "/history", host="localhost")[0] == 200


def test_https(store: Store, tokens: Path, tmp_path: Path, serve: Any) -> None:
    openssl = require_tool("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    token = make(tokens, "a", "read")
    server = serve(store, tokens=tokens, tls_cert=certificate, tls_key=key)
    assert server.url.startswith("https://")
    client = Client(server.url, ssl.create_default_context(cafile=str(certificate)))
    _, headers, _ = client.send("POST", "/login", f"token={token}")
    assert "secure" in headers["set-cookie"].lower() and "strict-transport-security" in headers
    assert client.send("GET", "/history")[0] == 200
