"""What must be right before the first process starts: a Redis is named, the address may be served and can be had.

The master imports this, so it must not import Flask or Redis: see ``__main__.py``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Final

from bananas import events
from bananas.errors import ConfigError, RedisUnavailable
from bananas.settings import Settings

#: A client that takes no bytes of its answer for so long is gone.
STUCK_S: Final = 60
#: Connections that may wait to be accepted; a burst of clients is not turned away.
BACKLOG: Final = 2048
_NO_TOKEN: Final = 3


def is_loopback(host: str) -> bool:
    """True for a name or address that means this machine and no other, written without a port.

    >>> [is_loopback(h) for h in ("localhost", "127.8.0.1", "::1", "0.0.0.0", "example.com")]
    [True, True, True, False, False]
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings) -> None:
    """Beyond loopback: raises ConfigError when there is no token yet, warns of BANANAS_AUTH=none."""
    if needs_tokens(settings):
        if not _has_token(settings):
            raise ConfigError(
                f"BANANAS_HOST={settings.host} would serve everyone who can reach port {settings.port}, and there is "
                "no API token; make one with `bananas token create me --scope admin --direct`, or set BANANAS_AUTH=none"
            )
    elif not is_loopback(settings.host):
        events.GATEWAY_OPEN(host=settings.host, port=settings.port)


def needs_tokens(settings: Settings) -> bool:
    """True when requests need a token."""
    return settings.auth == "token" and not is_loopback(settings.host)


def _has_token(settings: Settings) -> bool:
    """Asked by a child, so that the master never imports Redis.

    True also when Redis is away: every call is refused until it is back, and whether it holds a token shows then.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            from bananas.redis_client import Connections
            from bananas.tokens import Tokens

            status = 0 if Tokens(Connections(settings.redis_url)).exist() else _NO_TOKEN
        except RedisUnavailable:
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != _NO_TOKEN


def url(settings: Settings) -> str:
    """The address as a client writes it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def bind(settings: Settings) -> socket.socket:
    """A listening socket; raises ConfigError when the address cannot be had."""
    where = f"{settings.host} port {settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: "localhost" is 127.0.0.1 for most clients.
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except OSError as e:
        raise ConfigError(f"cannot listen on {where}: {e.strerror or e}; look at BANANAS_HOST") from e
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; its connections have it from it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STUCK_S)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use by another program; stop that, or set BANANAS_PORT") from e
        raise ConfigError(f"cannot listen on {where}: {e.strerror}; look at BANANAS_HOST and BANANAS_PORT") from e
    return listener
