"""Connections of the runner's own machine to where somebody else's name leads: resolve once, check, connect to what was
checked.

Nothing is resolved a second time between the check and the connection, so a name cannot lead elsewhere in between. Used
by the relay of sandboxes (``runner.relay``) and by callbacks (``runner.webhook``), which say what they allow.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import gevent.socket

#: Host name → addresses as text, in the order to try them; raises OSError or UnicodeError when there are none.
Resolve = Callable[[str], Sequence[str]]

#: For DNS, and for DNS and all tries to connect together; one try has its share of what is left, at least this long.
RESOLVE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
TRY_TIMEOUT_S = 2.0


class Refused(Exception):
    """Not connected; the text says why."""


def resolve(host: str) -> list[str]:
    """IPv4 and IPv6 addresses of a name by the runner's resolver, best first. Raises OSError or UnicodeError."""
    found = gevent.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def look_up(host: str, resolver: Resolve) -> Sequence[str]:
    """Where a name leads; raises Refused without an answer in time."""
    try:
        with gevent.Timeout(RESOLVE_TIMEOUT_S, Refused(f"no answer from DNS within {RESOLVE_TIMEOUT_S:g} s")):
            return resolver(host)
    except (OSError, UnicodeError) as e:
        raise Refused(f"the name does not resolve: {e}") from e


def connect(find: Callable[[], Sequence[str]], port: int, on_try: Callable[[str], None]) -> Any:
    """A connection to the first address that takes one; raises Refused.

    Args:
        find: the addresses, checked; its time counts.
        on_try: hears of each address before it is tried.
    """
    failure = ""
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    with gevent.Timeout(CONNECT_TIMEOUT_S, Refused(f"no connection within {CONNECT_TIMEOUT_S:g} s")):
        addresses = find()
        for number, address in enumerate(addresses):
            on_try(address)
            left_s = deadline_s - time.monotonic()
            try:
                return dial(address, port, max(TRY_TIMEOUT_S, left_s / (len(addresses) - number)))
            except OSError as e:
                failure = f"{address}: {e.strerror or e}"
    raise Refused(failure or "the name has no address")


def dial(address: str, port: int, timeout_s: float) -> Any:
    """A connection to a literal address: what was checked is what is connected to, nothing is resolved again."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock: Any = gevent.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
