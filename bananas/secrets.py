"""Secrets of functions: sealed in Redis, opened only by a gateway or a runner that has the key.

The key is 32 random bytes and never in Redis, so a copy of the data set (a backup, a replica) gives nothing away. Each
value is sealed with AES-256-GCM under a fresh nonce and bound to its name, so a value can neither be changed nor be put
in another's place. Several keys may be given: the first seals, all open, so a key can be replaced without a stop.

The gateway puts, lists and removes; a runner fetches, and hands the values to sandboxes (``runner.catalog``). A value
is never in a ``repr``, an error or a log.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from bananas import errors, keys
from bananas.protocols import Secret
from bananas.redis_client import Connections, unix_ms
from bananas.registry import push_config_change
from bananas.settings import LIMITS, Settings
from bananas.spec import SECRET_NAME_PATTERN

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FORMAT: Final = b"b1"
#: Hex digits of a key's digest that tell which key sealed a value.
_KEY_ID_CHARS: Final = 16
_HOW_TO_KEY: Final = (
    "`bananas secret new-key` makes one; give it to every gateway and runner as BANANAS_SECRET_KEY_FILE"
)


class SecretInfo(msgspec.Struct, frozen=True):
    """What may be told of a secret."""

    name: str
    #: Changes with every new value, and says nothing about it.
    version: str
    updated_at_ms: int


class _Stored(msgspec.Struct, frozen=True):
    version: str
    updated_at_ms: int
    #: ``b1`` + id of the key + nonce + ciphertext.
    box: bytes


class SecretBox:
    """Seals and opens values under one or more keys."""

    def __init__(self, raw_keys: Sequence[bytes]) -> None:
        """Each key has 32 bytes; the first seals."""
        self._keys = {_key_id(key): key for key in raw_keys}
        self._sealing_id = _key_id(raw_keys[0])
        # One for each, so that callbacks are signed with the old and the new one while a key is being replaced.
        self._callback_keys = tuple(hmac.digest(key, b"bananas callbacks", hashlib.sha256) for key in raw_keys)

    @classmethod
    def from_settings(cls, settings: Settings) -> SecretBox | None:
        """The box of BANANAS_SECRET_KEY or BANANAS_SECRET_KEY_FILE; None without either. Raises ConfigError."""
        name, text = "BANANAS_SECRET_KEY", settings.secret_key
        if settings.secret_key_file:
            if text:
                raise errors.ConfigError("set BANANAS_SECRET_KEY or BANANAS_SECRET_KEY_FILE, not both")
            name = f"BANANAS_SECRET_KEY_FILE={settings.secret_key_file!r}"
            try:
                text = Path(settings.secret_key_file).read_text("ascii")
            except (OSError, UnicodeDecodeError) as e:
                raise errors.ConfigError(f"{name} cannot be read: {e}; {_HOW_TO_KEY}") from e
        if not text:
            return None
        return cls(_parse_keys(name, text))

    @property
    def callback_keys(self) -> tuple[bytes, ...]:
        """The keys that sign callbacks; they say nothing about the keys that they are made of."""
        return self._callback_keys

    def seal(self, name: str, value: bytes) -> bytes:
        """The value, readable only with the key and only under this name."""
        # Its library takes 7 MB, which a process that meets no secret is spared.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        head = _FORMAT + self._sealing_id
        return head + nonce + AESGCM(self._keys[self._sealing_id]).encrypt(nonce, value, head + name.encode())

    def open(self, name: str, box: bytes) -> bytes:
        """The value; raises SecretUnavailable when no key fits or somebody has changed it."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        head, rest = box[: len(_FORMAT) + _KEY_ID_CHARS], box[len(_FORMAT) + _KEY_ID_CHARS :]
        key = self._keys.get(head[len(_FORMAT) :])
        if not head.startswith(_FORMAT) or key is None:
            raise errors.SecretUnavailable(
                f"secret {name!r} was sealed with a key that this process does not have; give it that key, or set the "
                "secret again"
            )
        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + name.encode())
        except InvalidTag:
            raise errors.SecretUnavailable(f"secret {name!r} was changed in Redis; set it again") from None


class Secrets:
    """All operations on secrets."""

    def __init__(self, connections: Connections, box: SecretBox | None) -> None:
        """Without a box only names can be listed and removed."""
        self._connections = connections
        self._redis = connections.commands
        self._box = box

    def put(self, name: str, value: bytes) -> tuple[SecretInfo, bool]:
        """Keep a value; what may be told of it, and whether it is another than before.

        Raises InvalidRequest for a name or size that is not allowed, SecretKeyMissing without a key.
        """
        check_name(name)
        if len(value) > LIMITS.secret_bytes:
            raise errors.InvalidRequest(f"secret {name!r} has {len(value)} bytes, the limit is {LIMITS.secret_bytes}")
        box = self._require_box()
        with self._connections.guard():
            stored = self._stored([name]).get(name)
            if stored is not None and _holds(box, name, stored, value):
                return SecretInfo(name, stored.version, stored.updated_at_ms), False
            stored = _Stored(os.urandom(6).hex(), unix_ms(self._redis.time()), box.seal(name, value))
            runners = self._redis.hkeys(keys.RUNNERS)
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(keys.SECRETS, name, msgspec.msgpack.encode(stored))
            push_config_change(pipe, runners)
            pipe.execute()
        return SecretInfo(name, stored.version, stored.updated_at_ms), True

    def list(self) -> list[SecretInfo]:
        """Every secret by name; never a value."""
        with self._connections.guard():
            raw = self._redis.hgetall(keys.SECRETS)
        found = ((name.decode(), msgspec.msgpack.decode(text, type=_Stored)) for name, text in sorted(raw.items()))
        return [SecretInfo(name, stored.version, stored.updated_at_ms) for name, stored in found]

    def remove(self, name: str) -> bool:
        """Forget a secret; False when there was none."""
        with self._connections.guard():
            runners = self._redis.hkeys(keys.RUNNERS)
            pipe = self._redis.pipeline(transaction=True)
            pipe.hdel(keys.SECRETS, name)
            push_config_change(pipe, runners)
            removed = pipe.execute()[0]
        return bool(removed)

    def fetch(self, names: Sequence[str]) -> dict[str, Secret]:
        """The values by name, in one round trip; raises SecretUnavailable for the first that cannot be had."""
        if not names:
            return {}
        box = self._box
        if box is None:
            raise errors.SecretUnavailable(f"secret {names[0]!r} is needed and this runner has no key; {_HOW_TO_KEY}")
        with self._connections.guard():
            stored = self._stored(names)
        missing = [name for name in names if name not in stored]
        if missing:
            raise errors.SecretUnavailable(f"no secret {missing[0]!r}; set it with `bananas secret set {missing[0]}`")
        return {name: Secret(stored[name].version, box.open(name, stored[name].box)) for name in names}

    def _stored(self, names: Sequence[str]) -> dict[str, _Stored]:
        raw = self._redis.hmget(keys.SECRETS, list(names))
        return {name: msgspec.msgpack.decode(text, type=_Stored) for name, text in zip(names, raw, strict=True) if text}

    def callback_keys(self) -> tuple[bytes, ...]:
        """The keys that callbacks are signed with, the latest first; raises SecretKeyMissing."""
        return self._require_box().callback_keys

    def _require_box(self) -> SecretBox:
        if self._box is None:
            raise errors.SecretKeyMissing(f"this gateway has no key for secrets and callbacks; {_HOW_TO_KEY}")
        return self._box


def new_key() -> str:
    """A fresh key as text."""
    return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()


def ensure_key_file(path: Path) -> Path:
    """The key file at ``path``, made with a fresh key (mode 0600) unless it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(new_key() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def check_name(name: str) -> None:
    """Raises InvalidRequest for what cannot be the name of a secret."""
    if not re.match(SECRET_NAME_PATTERN, name):
        rule = "a letter or _, then up to 62 letters, digits and _"
        raise errors.InvalidRequest(f"{name[:60]!r} is not a name for a secret; write {rule}")


def _holds(box: SecretBox, name: str, stored: _Stored, value: bytes) -> bool:
    try:
        return box.open(name, stored.box) == value
    except errors.SecretUnavailable:
        return False  # sealed with a key that is gone: the new value takes its place


def _parse_keys(name: str, text: str) -> list[bytes]:
    variable, found = name.partition("=")[0], []
    for word in text.replace(",", "\n").split():
        try:
            key = base64.urlsafe_b64decode(word.encode("ascii"))
        except (UnicodeEncodeError, binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            raise errors.ConfigError(f"{variable} holds a key that is not 32 bytes in base64; {_HOW_TO_KEY}")
        found.append(key)
    if not found:
        raise errors.ConfigError(f"{variable} holds no key; {_HOW_TO_KEY}")
    return found


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"bananas key id" + key).hexdigest()[:_KEY_ID_CHARS].encode()
