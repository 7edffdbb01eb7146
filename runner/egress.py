"""The runner's side of ``egress``: the routes of a sandbox, and the limits.

A sandbox has no network. Each target gets a loopback address inside (``plan``), where the shim's forwarder listens;
the forwarder asks the runner's relay (``runner.relay``) for the target by name. What a target may be is decided by
``bananas.targets``, what a name may resolve to by ``bananas.addresses``: only public addresses. So a name that (now)
resolves to Redis, to the gateway or to the cloud's metadata service is refused, whoever controls the name. Used by
``runner.sandbox``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bananas.errors import ConfigError
from bananas.targets import NAME_NET, literal, parse_target


@dataclass(frozen=True, slots=True)
class Caps:
    """What one sandbox may use."""

    #: Connections at a time.
    connections: int = 32
    #: Of one connection, both directions together; at the limit it is cut.
    connection_bytes: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """Inside the sandbox, ``ip:port`` leads to ``name:port``."""

    name: str
    ip: str
    port: int


def plan(targets: Sequence[str]) -> list[Route]:
    """The routes for the targets, without doubles; raises ConfigError naming the target that is not possible.

    Each distinct DNS name gets its own address, 127.66.0.1 and up. A literal 127.x address stands for itself, on the
    runner's machine.
    """
    ips: dict[str, str] = {}
    routes: dict[tuple[str, int], Route] = {}
    for text in targets:
        try:
            target = parse_target(text)
        except ValueError as e:
            raise ConfigError(f"egress: {e}") from e
        name = target.host.lower()
        if literal(name) is not None:
            ip = name
        elif name in ips:
            ip = ips[name]
        elif len(ips) == NAME_NET.num_addresses - 2:
            raise ConfigError(f"egress: {text} is one name too many; {len(ips)} are possible")
        else:
            ip = ips[name] = str(NAME_NET[len(ips) + 1])
        routes.setdefault((target.host, target.port), Route(target.host, ip, target.port))
    return list(routes.values())


def extra_hosts(routes: Sequence[Route]) -> dict[str, str]:
    """The lines that /etc/hosts in the sandbox needs: name → address. Literal addresses need none."""
    return {route.name: route.ip for route in routes if literal(route.name) is None}
