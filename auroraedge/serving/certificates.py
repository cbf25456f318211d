"""What the server has to know about PEM certificates, from the standard library alone."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

from auroraedge.errors import InvalidRequestError

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x17, 0x18


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the DER element at `at`."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        start += size
        length = int.from_bytes(der[at + 2 : start], "big")
    if start + length > len(der):
        raise ValueError("the certificate is cut off")
    return tag, start, start + length


def _moment(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:
        # RFC 5280: two-digit years from 50 on are of the last century.
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def validity(pem: str) -> tuple[datetime, datetime]:
    """From when until when the first certificate of `pem` is valid. Raises ValueError."""
    der = ssl.PEM_cert_to_DER_cert(next(iter(_PEM.findall(pem)), ""))
    try:
        _, certificate, _ = _element(der, 0)
        _, at, _ = _element(der, certificate)
        tag, _, end = _element(der, at)
        if tag == 0xA0:  # [0] version
            at = end
        for _ in range(3):  # serialNumber, signature, issuer
            _, _, at = _element(der, at)
        tag, at, _ = _element(der, at)
        if tag != _SEQUENCE:
            raise ValueError("there is no validity")
        moments = []
        for _ in range(2):
            tag, start, at = _element(der, at)
            moments.append(_moment(tag, der[start:at].decode("ascii")))
    except IndexError as error:
        raise ValueError("the certificate is cut off") from error
    return moments[0], moments[1]


def check_pair(cert: Path, key: Path) -> tuple[datetime, datetime]:
    """Checks that `key` belongs to `cert`; returns from when until when `cert` is valid. Raises InvalidRequestError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
        return validity(cert.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InvalidRequestError(
            f"{cert} and {key} cannot be used: {reason}.",
            field="tls_cert",
            remedy="Give the PEM file of the certificate with its chain, and the one of its private key, unencrypted.",
        ) from error


def check_authorities(path: Path) -> int:
    """The number of authorities in `path`. Raises InvalidRequestError."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cafile=path)
        found = len(_PEM.findall(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InvalidRequestError(
            f"{path} cannot be used: {reason}.", field="tls_client_ca", remedy="Give a PEM file of certificates."
        ) from error
    return found


def _no_password() -> str:
    raise ValueError("the private key is encrypted")
