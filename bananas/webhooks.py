"""What a callback looks like on the wire: which URLs are possible, how a delivery is signed, and how to check that.

The format is that of Standard Webhooks (https://www.standardwebhooks.com), so that its libraries check our callbacks
too: ``webhook-id`` is the same in every try, ``webhook-timestamp`` is in Unix seconds, and ``webhook-signature`` holds
one ``v1,<base64>`` for each key, which is the HMAC-SHA256 of ``<id>.<timestamp>.<body>``. No state, so a receiver may
use ``verify`` as it is. Queued by ``bananas.callbacks``, sent by ``runner.maintenance.callbacks``; the gateway checks
URLs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from bananas.addresses import is_public, place
from bananas.errors import BadSignature
from bananas.settings import LIMITS
from bananas.targets import literal

ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"
#: How far a receiver's clock may be off; what is older may have been sent by somebody who kept it.
TOLERANCE_S: Final = 300
_PREFIX: Final = "whsec_"
_RIGHT: Final = "write one such as https://example.com/bananas"
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Url:
    """A callback URL in the parts that a sender needs."""

    is_tls: bool
    #: A name, or an address without brackets.
    host: str
    port: int
    #: Path and query.
    target: str

    @property
    def place(self) -> str:
        """``host:port``, as in BANANAS_CALLBACK_ALLOW."""
        return place(self.host, self.port)


def parse_url(text: str) -> Url:
    """The parts of a callback URL; raises ValueError with the value, what is wrong with it and what to write."""
    if len(text) > LIMITS.callback_url_chars:
        raise ValueError(f"it has {len(text)} characters, the limit is {LIMITS.callback_url_chars}")
    if not re.fullmatch(r"[!-~]+", text) or "\\" in text or "#" in text:
        raise ValueError(f"{text[:60]!r} is not the URL of an HTTP server; {_RIGHT}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as e:
        raise ValueError(f"{text[:60]!r} is not a URL: {e}; {_RIGHT}") from e
    host = parts.hostname or ""
    if parts.scheme not in _PORTS or not host or port == 0:
        raise ValueError(f"{text[:60]!r} is not the URL of an HTTP server; {_RIGHT}")
    if "@" in parts.netloc:
        raise ValueError("it holds a user or password; leave them out, and check the signature instead")
    if literal(host) is None and not _HOST.fullmatch(host):
        raise ValueError(f"{host[:60]!r} is not the name of a host; {_RIGHT}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme == "https", host, port or _PORTS[parts.scheme], target)


def refused(host: str, address: str, port: int, allowed: Collection[str]) -> str | None:
    """Why a callback may not go to an address (None: it may): one that is not public must be allowed by name or itself.

    ``allowed``: places, as in BANANAS_CALLBACK_ALLOW.
    """
    if is_public(address) or place(host, port) in allowed or place(address, port) in allowed:
        return None
    return (
        f"{address} is not a public address; if it is meant, allow it with BANANAS_CALLBACK_ALLOW="
        f"{place(address, port)} on gateways and runners"
    )


def checked_url(text: str, allowed: Collection[str]) -> str:
    """The URL, if a callback may go there as far as that can be seen in it; raises ValueError like ``parse_url``."""
    url = parse_url(text)
    if literal(url.host) is not None and (why := refused(url.host, url.host, url.port, allowed)):
        raise ValueError(why)
    return text


def shown(text: str) -> str:
    """A URL without the values in its query, which may be secret."""
    address, mark, _ = text.partition("?")
    return f"{address}?…" if mark else address


def secret_text(key: bytes) -> str:
    """A signing key as receivers are told it."""
    return _PREFIX + base64.b64encode(key).decode()


def sign(keys: Sequence[bytes], delivery_id: str, body: bytes, now_s: int) -> dict[str, str]:
    """The headers of one delivery, signed with each key.

    >>> sign([b"k" * 32], "1", b"{}", 1_764_000_000)["webhook-signature"]
    'v1,tV+GFwDkMzDLqDj+xDEJeTb7ok4giMqNbdq5XYcVFJc='
    """
    signatures = " ".join(f"v1,{_digest(key, delivery_id, now_s, body)}" for key in keys)
    return {ID: delivery_id, TIMESTAMP: str(now_s), SIGNATURE: signatures}


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float | None = None) -> str:
    """The id of a delivery that was signed with ``secret`` within the last five minutes; raises BadSignature.

    Args:
        secret: as ``bananas secret callback-keys`` prints it, ``whsec_…``.
        headers: of the request, by names in any case.
        body: as it came, before anything decodes it.
        now_s: Unix seconds of this machine's clock; for tests.
    """
    given = {name.lower(): value for name, value in headers.items()}
    delivery_id, sent, signatures = (given.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE))
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        sent_s = int(sent)
    except (binascii.Error, ValueError) as e:
        raise BadSignature(f"the secret or {TIMESTAMP} {sent[:60]!r} is not valid: {e}") from e
    off_s = abs((time.time() if now_s is None else now_s) - sent_s)
    if off_s > TOLERANCE_S:
        raise BadSignature(f"{TIMESTAMP} is {off_s:.0f} s off; at most {TOLERANCE_S} s are taken")
    wanted = f"v1,{_digest(key, delivery_id, sent_s, body)}".encode()
    if not any(hmac.compare_digest(wanted, one.encode()) for one in signatures.split()):
        raise BadSignature(f"no signature in {SIGNATURE} is of this secret and body; take the body as it came")
    return delivery_id


def _digest(key: bytes, delivery_id: str, sent_s: int, body: bytes) -> str:
    signed = f"{delivery_id}.{sent_s}.".encode() + body
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
