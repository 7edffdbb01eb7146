"""The runner's side of ``egress``: which addresses a sandbox may reach, and the relay that connects to them.

A sandbox has no network. Each target gets a loopback address inside (``plan``), where the shim's forwarder listens;
the forwarder asks the relay on the runner for the target by name. The relay alone decides: only targets that are
listed, and only public addresses, unless the target is listed as that very address. So a name that (now) resolves to
Redis, to the gateway or to the cloud's metadata service is refused, whoever controls the name.
``runner.sandbox`` is the user; one relay serves one sandbox.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from gevent.pool import Pool
from gevent.server import StreamServer

from bananas.errors import ConfigError
from runner.transport import listen_unix

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
OnEvent = Callable[[dict[str, Any]], None]
#: Host name → addresses as text, in the order to try them; raises OSError when there are none.
Resolve = Callable[[str], Sequence[str]]

MAX_CONNECTIONS = 32
REQUEST_BYTES = 300
REQUEST_TIMEOUT_S = 5.0
#: For DNS, and for DNS and all tries to connect together.
RESOLVE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
#: Without a byte in either direction.
IDLE_TIMEOUT_S = 300.0
CLOSE_TIMEOUT_S = 1.0
_CHUNK_BYTES = 64 * 1024

#: One address per name, so that two targets may share a port.
_NAME_NET = ipaddress.IPv4Network("127.66.0.0/24")
_TARGET = re.compile(r"(?P<host>[A-Za-z0-9.-]+):(?P<port>\d{1,5})")
#: IPv4 inside IPv6: translated by a NAT64 gateway.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Route:
    """Inside the sandbox, ``ip:port`` leads to ``name:port``."""

    name: str
    ip: str
    port: int


def plan(targets: Sequence[str]) -> list[Route]:
    """The routes for ``host:port`` targets, without doubles; raises ConfigError naming the target that is not possible.

    Each distinct DNS name gets its own address, 127.66.0.1 and up. A literal 127.x address stands for itself, on the
    runner's machine. No other literal address is possible: a sandbox has no network device, so nothing would lead its
    packets to the forwarder.
    """
    ips: dict[str, str] = {}
    routes: dict[tuple[str, int], Route] = {}
    for target in targets:
        host, port = _parse(target)
        literal = _literal(host)
        if literal is None:
            _check_name(target, host)
            name = host.lower()
            if name not in ips:
                if len(ips) == _NAME_NET.num_addresses - 2:
                    raise ConfigError(f"egress: {target} is one name too many; {len(ips)} are possible")
                ips[name] = str(_NAME_NET[len(ips) + 1])
            ip = ips[name]
        elif literal.version == 4 and literal.is_loopback and literal not in _NAME_NET:
            ip = str(literal)
        else:
            raise ConfigError(
                f"egress: {target} is not possible: a sandbox has no network and so no route to an address. Give a DNS "
                f"name; only 127.x addresses outside {_NAME_NET}, which mean the runner's own machine, work as they are"
            )
        routes.setdefault((host, port), Route(host, ip, port))
    return list(routes.values())


def extra_hosts(routes: Sequence[Route]) -> dict[str, str]:
    """The lines that /etc/hosts in the sandbox needs: name → address. Literal addresses need none."""
    return {route.name: route.ip for route in routes if _literal(route.name) is None}


def _parse(target: str) -> tuple[str, int]:
    match = _TARGET.fullmatch(target)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ConfigError(f"egress: {target!r} is not host:port; write for example smtp.example.com:587")
    return match["host"], int(match["port"])


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_name(target: str, host: str) -> None:
    if host.lower().rstrip(".").rpartition(".")[2] == "localhost":
        raise ConfigError(f"egress: {target} is the sandbox itself; 127.0.0.1 with a port means the runner's machine")
    if host.rstrip(".").rpartition(".")[2].isdigit():
        # Old C libraries read "127.1" as an address: no such ways around the check of addresses.
        raise ConfigError(f"egress: {target} is neither a DNS name nor a complete IPv4 address")


def is_public(address: str) -> bool:
    """May a name lead there? Not to private, loopback, link-local, multicast, reserved or unspecified addresses.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo) counts as both.
    """
    ip = ipaddress.ip_address(address)
    carried: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.is_site_local:
            return False
        carried += [ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    bad = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not bad and all(is_public(str(v4)) for v4 in carried if v4 is not None)


def resolve(host: str) -> list[str]:
    """IPv4 and IPv6 addresses of a name by the runner's resolver, best first. Raises OSError or UnicodeError."""
    found = gevent.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class _Refused(Exception):
    """Not connected; the text goes to user code's logs and to the audit log."""


@dataclass(slots=True)
class _Transfer:
    """One connection's counters; ``active_s`` is the monotonic time of the last byte in either direction."""

    active_s: float
    sent_bytes: int = 0
    received_bytes: int = 0
    problem: str = ""


class Relay:
    """Serves the egress socket of one sandbox, in greenlets."""

    def __init__(
        self,
        path: Path,
        targets: Sequence[str],
        on_event: OnEvent,
        *,
        resolve: Resolve = resolve,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """Listen at ``path`` for requests for one of ``targets`` (``host:port``).

        ``on_event`` gets one dict for the audit log when a connection is over or was refused: ``event`` (``closed`` or
        ``refused``), ``target``, ``address``, ``sent_bytes``, ``received_bytes``, ``ms`` and ``reason``.
        """
        self._path = path
        self._targets = frozenset(targets)
        self._on_event = on_event
        self._resolve = resolve
        self._idle_timeout_s = idle_timeout_s
        # Above the limit there is some room to say no; beyond that, connections wait in the backlog.
        self._greenlets = Pool(2 * MAX_CONNECTIONS)
        listener = listen_unix(path, MAX_CONNECTIONS, gevent.socket.socket)
        self._server = StreamServer(listener, self._serve, spawn=self._greenlets)
        self._server.start()

    def close(self) -> None:
        """End every connection and stop listening. Idempotent."""
        self._server.close()
        self._greenlets.kill(timeout=CLOSE_TIMEOUT_S)
        self._path.unlink(missing_ok=True)

    def _serve(self, client: Any, _: Any) -> None:
        event: dict[str, Any] = {"event": "refused", "target": "", "address": "", "reason": ""}
        began_s = time.monotonic()
        transfer = _Transfer(began_s)
        try:
            with client:
                upstream = self._open(client, event)
                if upstream is not None:
                    event["event"] = "closed"
                    with upstream:
                        self._pipe(client, upstream, transfer)
                    event["reason"] = transfer.problem
        except gevent.GreenletExit:
            event["reason"] = "the sandbox ended"
            raise
        except OSError as e:
            event["reason"] = str(e)
        finally:
            counts = {"sent_bytes": transfer.sent_bytes, "received_bytes": transfer.received_bytes}
            self._on_event({**event, **counts, "ms": round((time.monotonic() - began_s) * 1000)})

    def _open(self, client: Any, event: dict[str, Any]) -> Any:
        """The connection to what the sandbox asks for, or None when it was refused."""
        try:
            target = event["target"] = self._read_request(client)
            if len(self._greenlets) > MAX_CONNECTIONS:
                raise _Refused(f"the sandbox has {MAX_CONNECTIONS} connections open already, which is the limit")
            if target not in self._targets:
                raise _Refused("the target is not in the pool's egress list")
            upstream = self._connect(target, event)
        except _Refused as e:
            event["reason"] = str(e)
            client.settimeout(REQUEST_TIMEOUT_S)
            client.sendall(f"error {e}\n".encode())
            return None
        client.sendall(b"ok\n")
        return upstream

    @staticmethod
    def _read_request(client: Any) -> str:
        """The target in the sandbox's first line. User code may speak here, so nothing about it is sure."""
        line = b""
        with gevent.Timeout(REQUEST_TIMEOUT_S, _Refused(f"no request within {REQUEST_TIMEOUT_S:g} s")):
            # Nothing follows the line before our answer does, so reading on cannot take bytes of the stream.
            while not line.endswith(b"\n"):
                data = client.recv(REQUEST_BYTES + 1 - len(line))
                line += data
                if not data or len(line) > REQUEST_BYTES:
                    raise _Refused(f"the request is not one line of at most {REQUEST_BYTES} bytes")
        try:
            target = json.loads(line)["target"]
        except (ValueError, TypeError, KeyError, RecursionError):
            target = None
        if not isinstance(target, str) or not target.isascii() or not target.isprintable():
            raise _Refused('the request is not {"target": "host:port"}')
        return target

    def _connect(self, target: str, event: dict[str, Any]) -> Any:
        host, port = _parse(target)
        failure = ""
        with gevent.Timeout(CONNECT_TIMEOUT_S, _Refused(f"no connection within {CONNECT_TIMEOUT_S:g} s")):
            for address in self._addresses(host):
                event["address"] = address
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                upstream: Any = gevent.socket.socket(family, socket.SOCK_STREAM)
                try:
                    # A literal address: what was checked is what is connected to, nothing is resolved again.
                    upstream.connect((address, port))
                    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError as e:
                    upstream.close()
                    failure = f"{address}: {e.strerror or e}"
                except BaseException:
                    upstream.close()
                    raise
                else:
                    return upstream
        raise _Refused(failure or "the name has no address")

    def _addresses(self, host: str) -> list[str]:
        """Where ``host`` may be reached: itself when it is listed as an address, else its public addresses."""
        if _literal(host) is not None:
            return [host]
        try:
            with gevent.Timeout(RESOLVE_TIMEOUT_S, _Refused(f"no answer from DNS within {RESOLVE_TIMEOUT_S:g} s")):
                found = self._resolve(host)
        except (OSError, UnicodeError) as e:
            raise _Refused(f"the name does not resolve: {e}") from e
        public = [address for address in found if is_public(address)]
        if found and not public:
            raise _Refused(f"the name resolves to {found[0]}, which is not a public address")
        return public

    def _pipe(self, client: Any, upstream: Any, transfer: _Transfer) -> None:
        """Pass bytes both ways until both directions have ended, one is broken, or nothing moved for too long."""
        transfer.active_s = time.monotonic()
        for sock in (client, upstream):
            sock.settimeout(self._idle_timeout_s)  # of a sendall to a side that does not read
        up = gevent.spawn(self._flow, client, upstream, transfer, "sent_bytes")
        try:
            self._flow(upstream, client, transfer, "received_bytes")
            up.join()
        finally:
            up.kill(timeout=CLOSE_TIMEOUT_S)

    def _flow(self, source: Any, sink: Any, transfer: _Transfer, counter: str) -> None:
        """One direction. A failure ends the other one too, since both sockets are shut down."""
        try:
            while data := self._receive(source, transfer):
                sink.sendall(data)
                setattr(transfer, counter, getattr(transfer, counter) + len(data))
                transfer.active_s = time.monotonic()
            sink.shutdown(socket.SHUT_WR)
        except OSError as e:
            transfer.problem = transfer.problem or str(e)
            for sock in (source, sink):
                # Not connected any more: that is what is wanted.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _receive(self, source: Any, transfer: _Transfer) -> bytes:
        """The next bytes, empty at the end. While the other direction is busy, silence in this one is no idleness."""
        while (left_s := transfer.active_s + self._idle_timeout_s - time.monotonic()) > 0:
            # Not by the socket's own timeout, which the other direction uses for sending.
            with contextlib.suppress(TimeoutError), gevent.Timeout(left_s, TimeoutError()):
                data: bytes = source.recv(_CHUNK_BYTES)
                return data
        raise TimeoutError(f"nothing was sent for {self._idle_timeout_s:g} s")
