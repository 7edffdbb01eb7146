"""Egress targets: what ``host:port`` and ``name=address:port`` in ``egress`` mean, and which of them are possible.

A sandbox has no network. It reaches a target by its *host*, which is a DNS name that leads to a loopback address inside
(or such an address itself), and the runner's relay connects for it: to what DNS says, if that is public, or to the
*address* that the target itself names. So a private address is reached only where somebody wrote that very address.
Used by ``bananas.spec``, the manifest and ``runner.egress``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

#: Where names lead inside a sandbox: 127.66.0.1 and up, one address per name.
NAME_NET = ipaddress.IPv4Network("127.66.0.0/24")
TARGET_PATTERN = (
    r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?=)?"
    r"([A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}(?![\s\S])"
)
_TARGET = re.compile(
    r"(?:(?P<name>[A-Za-z0-9.-]+)=)?(?P<host>\[[^\]\s=]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})", re.ASCII
)
_RIGHT = "write a DNS name and a port, such as smtp.example.com:587"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """One address that a sandbox may reach."""

    #: What code connects to: a DNS name, or a 127.x address.
    host: str
    port: int
    #: Where the relay connects; None: it asks DNS for ``host``.
    address: str | None = None

    @property
    def key(self) -> str:
        """``host:port``: how the sandbox asks for it."""
        return f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """The target that ``text`` names; raises ValueError with the value, what is wrong with it and what to write."""
    match = _TARGET.fullmatch(text)
    if match is None:
        what = "has no port" if not re.search(r":\d+\Z", text) else "is not host:port"
        raise ValueError(f"{text!r} {what}; {_RIGHT}")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"port {match['port']} is out of range; write 1 to 65535")
    name, host = match["name"], match["host"]
    address = literal(host.strip("[]"))
    if name is not None:
        _check_name(name)
        if address is None:
            raise ValueError(
                f"{host} is not a complete IP address; after a name and = write one, as in db=10.0.0.5:5432"
            )
        return Target(name, port, str(address))
    if address is None:
        _check_name(host)
        return Target(host, port)
    if address.version == 4 and address.is_loopback and address not in NAME_NET:
        return Target(str(address), port, str(address))
    raise ValueError(
        f"{host} is an address, and a sandbox has no route to it; give it a name that your code connects to, such as "
        f"db={host}:{port}"
    )


def literal(host: str) -> Address | None:
    """``host`` as an IP address, None when it is none."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_name(name: str) -> None:
    last = name.lower().rstrip(".").rpartition(".")[2]
    if last == "localhost":
        raise ValueError(f"{name} is the sandbox itself; 127.0.0.1 with a port means the runner's machine")
    # Old C libraries read "127.1" as an address: no such ways around the check of addresses.
    if last.isdigit() or ".." in name or not name[0].isalnum() or literal(name) is not None:
        raise ValueError(f"{name!r} is not a DNS name; {_RIGHT}")
