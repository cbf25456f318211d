"""Where the server listens: TCP with or without TLS, and a unix socket."""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import grpc

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.serving.certificates import check_authorities, check_pair
from auroraedge.serving.settings import ServiceConfig

log = logging.getLogger("auroraedge.security")


class Certificates:
    """The server's certificate; a renewed file is used from the next connection on, without a restart."""

    def __init__(self, config: ServiceConfig) -> None:
        """Raises InvalidRequestError when the files cannot be used."""
        assert config.tls_cert is not None and config.tls_key is not None
        self._paths = [path for path in (config.tls_cert, config.tls_key, config.tls_client_ca) if path is not None]
        self._cert, self._key, self._ca = config.tls_cert, config.tls_key, config.tls_client_ca
        self._lock = threading.Lock()
        # Before reading: files that change meanwhile are read again with the next connection.
        self._stamp = self._stat()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._first, self._renewed, require_client_authentication=self._ca is not None
        )

    def _stat(self) -> list[tuple[int, int, int]]:
        found = [path.stat() for path in self._paths]
        return [(status.st_mtime_ns, status.st_ino, status.st_size) for status in found]

    def _read(self) -> Any:
        _, self.expires_at = check_pair(self._cert, self._key)
        if self._ca is not None:
            check_authorities(self._ca)
        return grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._cert.read_bytes())],
            root_certificates=None if self._ca is None else self._ca.read_bytes(),
        )

    def _renewed(self) -> Any:
        """Called by gRPC before each handshake, in its own thread. None: no change."""
        with self._lock:
            try:
                stamp = self._stat()
                if stamp == self._stamp:
                    return None
                configuration = self._read()
            except (OSError, AuroraEdgeError) as error:
                # Half of a renewal: the certificate before is still good, and the next connection looks again.
                log.error("The renewed certificate cannot be used; the one before stays. %s", error)
                return None
            self._stamp = stamp
            log.info("Certificate read again; it is valid until %s.", self.expires_at.isoformat())
            return configuration


def bind(server: Any, config: ServiceConfig) -> tuple[int, Certificates | None]:
    """Binds every address of `config`. Returns the TCP port (0 without TCP), and the certificates in use.

    Raises InvalidRequestError when an address cannot be bound or a certificate cannot be used.
    """
    port, certificates = 0, None
    if config.unix_socket is not None:
        _bind_unix(server, config.unix_socket, config.unix_socket_mode)
    if config.tcp:
        certificates = None if config.tls_cert is None else Certificates(config)
        try:
            if certificates is None:
                port = server.add_insecure_port(config.address)
            else:
                port = server.add_secure_port(config.address, certificates.credentials())
        except RuntimeError as error:
            raise InvalidRequestError(
                f"{config.address} cannot be bound.",
                field="--port",
                remedy="Stop the program that uses it, or choose another address; port 0 takes a free one.",
            ) from error
    return port, certificates


def _bind_unix(server: Any, path: Path, mode: int) -> None:
    path = path.absolute()
    _remove_stale(path)
    # From the first moment on nobody may connect whom the mode does not let in.
    before = os.umask(0o777 & ~mode)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise InvalidRequestError(
            f"{path} cannot be bound.",
            field="--unix-socket",
            remedy="Create its folder, writable for this user; the path has at most 107 bytes.",
        ) from error
    finally:
        os.umask(before)
    path.chmod(mode)


def _remove_stale(path: Path) -> None:
    """Removes the socket that a killed server left. Raises InvalidRequestError for anything else that lies there."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket() or path.is_symlink():
        raise InvalidRequestError(
            f"{path} is there and is no socket.", field="--unix-socket", remedy="Choose another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise InvalidRequestError(
        f"{path} is in use.", field="--unix-socket", remedy="Stop the program that uses it, or choose another path."
    )


def unlink_socket(config: ServiceConfig) -> None:
    """Removes the unix socket of a server that has stopped."""
    if config.unix_socket is not None and config.unix_socket.is_socket():
        config.unix_socket.unlink(missing_ok=True)
