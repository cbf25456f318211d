"""Encryption, login and scopes, with real handshakes over real sockets."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from service_harness import encoded, frame, running_server

from auroraedge._proto.inspection.v1 import admin_pb2, service_pb2
from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import AdminServiceStub, InspectionServiceStub
from auroraedge.client.convert import recipe_to_proto
from auroraedge.client.transport import error_from_rpc
from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.inspection.recipe import LabelSpec, Recipe
from auroraedge.serving.tokens import TokenFile, TokenRefused, _change, add_token, read_tokens, revoke_tokens
from auroraedge.store import Store
from service.config import ServiceConfig
from service.principal import current_principal
from service.security import METHOD_SCOPES, FailedLogins, Login, address_of

RECIPE = "magnetic_tile"


def request() -> pb.InspectRequest:
    return pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=encoded(frame())))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def failure(call: Any, *arguments: Any, **options: Any) -> AuroraEdgeError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=10, **options)
    return error_from_rpc(caught.value)


def code(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=10, **options)
    return caught.value.code().name


@contextmanager
def stub(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[InspectionServiceStub]:
    options = [("grpc.enable_retries", 0)]
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    with channel:
        yield InspectionServiceStub(channel)


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def tls(authority: Authority, folder: Path, **how: Any) -> dict[str, Path]:
    cert, key = authority.issue("server", **how).write(folder, "server")
    return {"tls_cert": cert, "tls_key": key}


def handshake_fails(address: str, credentials: grpc.ChannelCredentials) -> None:
    with stub(address, credentials) as client:
        assert code(client.GetServerInfo, pb.GetServerInfoRequest()) == "UNAVAILABLE"


def test_encrypted_calls_and_what_the_handshake_refuses(authority: Authority, tmp_path: Path) -> None:
    with running_server(**tls(authority, tmp_path)) as running:
        with stub(running.address, grpc.ssl_channel_credentials(authority.pem)) as client:
            assert client.Inspect(request(), timeout=10).result.verdict == pb.VERDICT_OK
        handshake_fails(running.address, grpc.ssl_channel_credentials(Authority("other").pem))
        with stub(running.address) as plain:
            assert code(plain.GetServerInfo, pb.GetServerInfoRequest()) == "UNAVAILABLE"


@pytest.mark.parametrize("how", [{"days": (-2, -1)}, {"host": "other.example"}], ids=["expired", "wrong host"])
def test_clients_refuse_a_server_that_is_not_the_one(authority: Authority, tmp_path: Path, how: dict[str, Any]) -> None:
    with running_server(**tls(authority, tmp_path, **how)) as running:
        handshake_fails(running.address, grpc.ssl_channel_credentials(authority.pem))


def test_client_certificates(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    settings = tls(authority, tmp_path) | {"tls_client_ca": ca, "client_cert_scopes": ("read",)}

    def credentials(issuer: Authority, **how: Any) -> grpc.ChannelCredentials:
        pair = issuer.issue(how.pop("name", "line-3"), client=True, **how)
        return grpc.ssl_channel_credentials(authority.pem, pair.key, pair.cert)

    with running_server(**settings, client_cert_admins=("boss",)) as running:
        with stub(running.address, credentials(authority)) as client:
            assert client.GetServerInfo(pb.GetServerInfoRequest(), timeout=10).model_id
            denied = failure(client.Inspect, request())
            assert denied.reason == "PERMISSION_DENIED" and "'line-3'" in denied.message
        with stub(running.address, credentials(authority, name="boss")) as client:
            assert client.Inspect(request(), timeout=10).result.verdict == pb.VERDICT_OK
        handshake_fails(running.address, grpc.ssl_channel_credentials(authority.pem))
        handshake_fails(running.address, credentials(Authority("other")))
        handshake_fails(running.address, credentials(authority, days=(-2, -1)))


def test_a_renewed_certificate_is_used_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    with running_server(**tls(authority, tmp_path)) as running:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        with stub(running.address, credentials) as old:
            old.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
            renewed = Authority("renewed")
            # A torn renewal first: the key of one, the certificate of the other.
            (tmp_path / "server.key").write_bytes(renewed.issue("server").key)
            with stub(running.address, grpc.ssl_channel_credentials(authority.pem)) as during:
                during.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
            renewed.issue("server").write(tmp_path, "server")
            with stub(running.address, grpc.ssl_channel_credentials(renewed.pem)) as new:
                new.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
            handshake_fails(running.address, grpc.ssl_channel_credentials(Authority("third").pem))
            old.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)  # its connection goes on


def test_a_faulty_certificate_stops_the_start(authority: Authority, tmp_path: Path) -> None:
    settings = tls(authority, tmp_path)
    settings["tls_key"].write_bytes(authority.issue("another").key)
    with pytest.raises(InvalidRequestError, match="KEY_VALUES_MISMATCH"), running_server(**settings):
        pass


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def issue(tokens: Path, *scopes: Any, name: str = "line-3", hours: float = 1) -> str:
    return add_token(tokens, name, scopes, lifetime=timedelta(hours=hours))[0]


def test_tokens_open_what_their_scopes_name(tokens: Path) -> None:
    inspect, read, admin = (issue(tokens, scope) for scope in ("inspect", "read", "admin"))
    expired = issue(tokens, "inspect", hours=-1)
    with running_server(tokens=tokens) as running, stub(running.address) as client:
        assert client.Inspect(request(), metadata=bearer(inspect), timeout=10).result.verdict == pb.VERDICT_OK
        for token in (inspect, read, admin):
            assert client.GetServerInfo(pb.GetServerInfoRequest(), metadata=bearer(token), timeout=10).model_id
        for token in (read, admin):
            denied = failure(client.Inspect, request(), metadata=bearer(token))
            assert (denied.reason, "inspect" in denied.message) == ("PERMISSION_DENIED", True)
        wrong = inspect[:-1] + ("A" if inspect[-1] != "A" else "B")
        for token in (expired, wrong, "aet_000000000000_x", "nonsense"):
            refused = failure(client.Inspect, request(), metadata=bearer(token))
            assert refused.reason == "UNAUTHENTICATED"
            assert refused.message == "The token is not accepted.", "the client is not told why"
        assert failure(client.Inspect, request()).message == "The call has no token."
        basic = failure(client.Inspect, request(), metadata=(("authorization", f"Basic {inspect}"),))
        assert basic.reason == "UNAUTHENTICATED"
        channel = grpc.insecure_channel(running.address)
        with channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError, match="no token"):
                ProtoReflectionDescriptorDatabase(channel).get_services()


def test_streams_need_a_token_too_and_lose_it_when_it_is_revoked(tokens: Path) -> None:
    token = issue(tokens, "inspect", name="camera")
    opening = pb.InspectStreamRequest(session=pb.StreamSession(recipe_id=RECIPE))

    def frames(count: int, pause: float = 0.0) -> Iterator[pb.InspectStreamRequest]:
        yield opening
        for number in range(count):
            time.sleep(pause if number else 0)
            yield pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=number, request=request()))

    with running_server(tokens=tokens) as running, stub(running.address) as client:
        with pytest.raises(grpc.RpcError, match="no token"):
            list(client.InspectStream(frames(1), timeout=10))
        assert len(list(client.InspectStream(frames(2), metadata=bearer(token), timeout=10))) >= 2
        with pytest.raises(grpc.RpcError, match="revoked") as caught:
            for _ in client.InspectStream(frames(30, 0.2), metadata=bearer(token), timeout=20):
                if read_tokens(tokens)[0].revoked_at is None:
                    revoke_tokens(tokens, "camera")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert failure(client.Inspect, request(), metadata=bearer(token)).reason == "UNAUTHENTICATED"
        generate = pb.GenerateRequest(recipe_id=RECIPE, frame=request().frame, prompt="what is this")
        with pytest.raises(grpc.RpcError, match="not accepted"):
            list(client.Generate(generate, metadata=bearer(token), timeout=10))


def test_a_stranger_is_refused_before_the_message_is_read(tokens: Path) -> None:
    issue(tokens, "inspect")
    with running_server(tokens=tokens, max_message_mb=1) as running, stub(running.address) as client:
        large = pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=bytes(3 * 2**20)))
        # Read first, it would be RESOURCE_EXHAUSTED: larger than the limit of a message.
        assert failure(client.Inspect, large).reason == "UNAUTHENTICATED"


def test_failed_logins_are_held_back_but_never_a_right_one(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = issue(tokens, "inspect")
    with running_server(tokens=tokens) as running, stub(running.address) as client:
        reasons = [failure(client.Inspect, request(), metadata=bearer("x")).reason for _ in range(15)]
        assert reasons[: FailedLogins.BURST] == ["UNAUTHENTICATED"] * FailedLogins.BURST
        assert set(reasons[FailedLogins.BURST + 1 :]) == {"TOO_MANY_FAILED_LOGINS"}
        with pytest.raises(grpc.RpcError) as caught:
            client.Inspect(request(), metadata=bearer("x"), timeout=10)
        assert error_from_rpc(caught.value).retry_after_s > 0
        assert client.Inspect(request(), metadata=bearer(token), timeout=10).HasField("result")
    lines = [
        record for record in caplog.records if record.name == "auroraedge.security" and "Refused" in record.message
    ]
    assert FailedLogins.BURST <= len(lines) <= FailedLogins.BURST + 1
    assert lines[0].login == "malformed" and lines[0].peer.startswith("ipv4:127.0.0.1")
    assert not any(token in record.getMessage() for record in caplog.records)


def test_failures_recover_with_time_and_are_counted_by_address() -> None:
    now = [0.0]
    failed = FailedLogins(lambda: now[0])
    assert [failed.wait_s("a") for _ in range(FailedLogins.BURST)] == [0.0] * FailedLogins.BURST
    assert failed.wait_s("a") == pytest.approx(5.0)
    assert failed.wait_s("b") == 0.0
    now[0] = 5.0
    assert failed.wait_s("a") == 0.0
    assert failed.wait_s("a") > 0
    assert (address_of("ipv4:10.0.0.7:4711"), address_of("ipv6:%5B::1%5D:80")) == ("10.0.0.7", "%5B::1%5D")
    assert address_of("unix:") == "unix"


# --- the token file --------------------------------------------------------------------------------------------------


def test_the_file_has_no_token_and_nobody_else_reads_it(tokens: Path) -> None:
    token = issue(tokens, "inspect")
    text = tokens.read_text(encoding="utf-8")
    assert token not in text and token.rpartition("_")[2] not in text
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert issue(tokens, "inspect") != token
    first, second = read_tokens(tokens)
    assert first.salt != second.salt and first.sha256 != second.sha256


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o666])
def test_open_files_are_refused(tokens: Path, mode: int) -> None:
    issue(tokens, "inspect")
    tokens.chmod(mode)
    with pytest.raises(InvalidRequestError, match=f"{mode:04o}"):
        TokenFile(tokens)


def test_changes_keep_mode_and_are_whole(tokens: Path) -> None:
    issue(tokens, "inspect")
    tokens.chmod(0o640)
    issue(tokens, "read")
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o640
    before = tokens.read_bytes()
    with pytest.raises(RuntimeError), _change(tokens) as entries:
        entries.clear()
        raise RuntimeError
    assert tokens.read_bytes() == before
    assert [path.name for path in tokens.parent.iterdir()] == [tokens.name]


def test_a_damaged_file_leaves_the_tokens_in_force(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = issue(tokens, "inspect")
    monkeypatch.setattr("auroraedge.serving.tokens._LOOK_EVERY_S", 0.0)
    file = TokenFile(tokens)
    good = tokens.read_bytes()
    for bad in (b"{", b'{"tokens": [{"id": 1}]}'):
        tokens.write_bytes(bad)
        assert file.check(token).name == "line-3"
    tokens.write_bytes(good)
    tokens.chmod(0o600)
    revoke_tokens(tokens, "line-3")
    with pytest.raises(TokenRefused, match="revoked"):
        file.check(token)


def test_refusals_are_told_apart_in_the_log(tokens: Path) -> None:
    text, entry = add_token(tokens, "x", ("read",), lifetime=timedelta(hours=1))
    file = TokenFile(tokens)
    assert file.check(text) == entry
    reasons = {}
    for name, wrong in {"unknown": f"aet_{'a' * 12}_b", "wrong": f"aet_{entry.id}_b", "malformed": "x"}.items():
        with pytest.raises(TokenRefused) as caught:
            file.check(wrong)
        reasons[name] = caught.value.reason
    assert reasons == {name: name for name in reasons}
    assert entry.state(datetime.now(UTC) + timedelta(hours=2)) == "expired"
    assert not file.still_valid("a" * 12) and file.still_valid(entry.id)


# --- unix socket, scopes of every method, principal ------------------------------------------------------------------


def test_unix_socket_has_its_mode_and_needs_no_token(tokens: Path, tmp_path: Path) -> None:
    issue(tokens, "inspect")
    path = tmp_path / "aurora.sock"
    settings = {"unix_socket": path, "unix_socket_mode": 0o660, "unix_socket_scopes": ("inspect",)}
    with running_server(tokens=tokens, **settings) as running:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with stub(f"unix:{path}") as client:
            assert client.Inspect(request(), timeout=10).result.verdict == pb.VERDICT_OK
            assert failure(client.Inspect, request(), metadata=bearer("x")).reason == "UNAUTHENTICATED"
            generate = pb.GenerateRequest(recipe_id=RECIPE, frame=request().frame, prompt="one two three")
            assert len(list(client.Generate(generate, timeout=10))) == 3
        with stub(running.address) as client:
            assert failure(client.Inspect, request()).reason == "UNAUTHENTICATED"
        with pytest.raises(InvalidRequestError, match="in use"), running_server(tcp=False, unix_socket=path):
            pass
    assert not path.exists()


def test_only_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running_server(tcp=False, unix_socket=path) as running:
        assert running.address == f"unix:{path}" and stat.S_IMODE(path.stat().st_mode) == 0o600
        with stub(running.address) as client:
            assert client.GetServerInfo(pb.GetServerInfoRequest(), timeout=10).model_id


def test_a_stale_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    import socket

    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    with running_server(tcp=False, unix_socket=stale) as running, stub(running.address) as client:
        assert client.GetServerInfo(pb.GetServerInfoRequest(), timeout=10).model_id
    file = tmp_path / "file"
    file.write_text("precious", encoding="utf-8")
    (tmp_path / "link").symlink_to(file)
    for path in (file, tmp_path / "link"):
        with pytest.raises(InvalidRequestError, match="no socket"), running_server(tcp=False, unix_socket=path):
            pass
    assert file.read_text(encoding="utf-8") == "precious"


def test_every_rpc_has_its_scopes() -> None:
    services = list(service_pb2.DESCRIPTOR.services_by_name.values())
    services.append(health_pb2.DESCRIPTOR.services_by_name["Health"])
    known = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    missing = known - METHOD_SCOPES.keys()
    assert not missing
    ours = {name for name in METHOD_SCOPES if name.startswith("/auroraedge.")}
    assert ours <= known, "a scope for an RPC that there is not"
    open_to_all = {name for name, scopes in METHOD_SCOPES.items() if scopes is None}
    assert all("health" in name or name.endswith(("ServerLive", "ServerReady")) for name in open_to_all)
    admin = service_pb2.DESCRIPTOR.services_by_name["AdminService"]
    for method in admin.methods:
        scopes = METHOD_SCOPES[f"/{admin.full_name}/{method.name}"]
        assert scopes == ({"read", "admin"} if method.name == "GetStatus" else {"admin"})


def test_an_rpc_without_scopes_is_open_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(METHOD_SCOPES, "/auroraedge.inspection.v1.InspectionService/Inspect")
    with running_server() as running, stub(running.address) as client:
        assert failure(client.Inspect, request()).reason == "PERMISSION_DENIED"
        assert client.GetServerInfo(pb.GetServerInfoRequest(), timeout=10).model_id


def test_an_open_server_lets_nobody_change_it_from_outside() -> None:
    caller = SimpleNamespace(peer=lambda: "ipv4:10.0.0.7:4711")
    login = Login(ServiceConfig(host="0.0.0.0", allow_insecure=True))
    assert login._without_token(caller).scopes == {"inspect", "read"}
    assert Login(ServiceConfig())._without_token(caller).scopes == {"inspect", "read", "admin"}
    with (
        running_server(host="0.0.0.0", allow_insecure=True) as running,
        stub(f"127.0.0.1:{running.server.port}") as client,
    ):
        assert client.Inspect(request(), timeout=10).result.verdict == pb.VERDICT_OK


def test_handlers_see_the_principal(tokens: Path) -> None:
    token = issue(tokens, "inspect", name="line-7")
    seen: list[Any] = []

    with running_server(tokens=tokens) as running, stub(running.address) as client:
        servicer = running.server._servicer
        original = servicer._recipes.get

        def get(recipe_id: str, version: int) -> Any:
            seen.append(current_principal())
            return original(recipe_id, version)

        servicer._recipes.get = get  # type: ignore[method-assign]
        client.Inspect(request(), metadata=bearer(token), timeout=10)
        generate = pb.GenerateRequest(recipe_id=RECIPE, frame=request().frame, prompt="a b")
        list(client.Generate(generate, metadata=bearer(token), timeout=10))
    assert [(p.name, p.method, p.scopes) for p in seen] == [("line-7", "token", frozenset({"inspect"}))] * 2
    assert current_principal().name == ""


def test_changes_are_audited_with_the_name_of_the_token(tokens: Path, tmp_path: Path) -> None:
    token, reader = issue(tokens, "admin", name="quality-lead"), issue(tokens, "read", name="reader")
    store = tmp_path / "store.db"
    recipe = recipe_to_proto(Recipe(id="gear", labels=(LabelSpec(name="chip"),)))
    recipe.version, recipe.sha256 = 0, ""
    message = admin_pb2.PutRecipeRequest(recipe=recipe, reason="new part")
    with running_server(tokens=tokens, store=str(store)) as running, grpc.insecure_channel(running.address) as channel:
        admin = AdminServiceStub(channel)
        denied = failure(admin.PutRecipe, message, metadata=bearer(reader))
        assert denied.reason == "PERMISSION_DENIED" and "admin" in denied.message
        admin.PutRecipe(message, metadata=bearer(token), timeout=10)
        status = admin.GetStatus(admin_pb2.GetStatusRequest(), metadata=bearer(reader), timeout=10)
        assert status.state == admin_pb2.SERVER_STATE_SERVING
    with Store.open(store, create=False) as opened:
        trail = [(entry.who, entry.action, entry.why) for entry in opened.audit_trail() if "gear" in entry.subject]
    assert [(who, why) for who, _, why in trail] == [("quality-lead", "new part")]
