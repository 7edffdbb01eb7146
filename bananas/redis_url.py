"""What BANANAS_REDIS_URL may say: one server, a socket, sentinels that name a master, or a cluster.

Decides what a URL means and what of it may be shown. Never connects. Used by ``bananas.settings`` when a process
starts, and by ``bananas.redis_client``. A message never quotes a part of a URL that it could not read, since a
password with an unescaped character in it may be anywhere.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import unquote

from bananas.errors import ConfigError

Address = tuple[str, int]
Kind = Literal["server", "unix", "sentinel", "cluster"]

#: Scheme → kind, TLS, the port when none is given, and the form that messages show.
_SCHEMES: Final[dict[str, tuple[Kind, bool, int, str]]] = {
    "redis": ("server", False, 6379, "redis://[user:password@]host[:6379][/db]"),
    "rediss": ("server", True, 6379, "rediss://[user:password@]host[:6379][/db][?ssl_ca_certs=/path/ca.pem]"),
    "unix": ("unix", False, 0, "unix:///path/to/redis.sock[?db=0]"),
    "redis+sentinel": (
        *("sentinel", False, 26379),
        "redis+sentinel://[user:password@]host[:26379][,host2…]/service[/db][?sentinel_password=…]",
    ),
    "rediss+sentinel": (
        *("sentinel", True, 26379),
        "rediss+sentinel://[user:password@]host[:26379][,host2…]/service[/db][?sentinel_password=…&ssl_ca_certs=…]",
    ),
    "redis+cluster": ("cluster", False, 6379, "redis+cluster://[user:password@]host[:6379][,host2…]"),
    "rediss+cluster": ("cluster", True, 6379, "rediss+cluster://[user:password@]host[:6379][,host2…][?ssl_ca_certs=…]"),
}
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS: Final = (*_FILES, "ssl_password", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_SECRET_OPTIONS: Final = ("password", "ssl_password", "sentinel_password")
_FLAGS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\s:\[\],@]+))(?::(?P<port>\d{1,5}))?")
_MAX_NODES: Final = 50


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that makes sense; ``repr`` and ``shown`` have no secrets."""

    scheme: str
    kind: Kind
    tls: bool
    #: The server, or the sentinels or cluster nodes to ask.
    nodes: tuple[Address, ...]
    #: Of a socket.
    path: str = ""
    #: The name under which the sentinels know the master.
    service: str = ""
    db: int = 0
    #: Query options by name, and the user and password before the hosts; decoded.
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """For messages: without users, passwords and options."""
        who = "***@" if any(name in self.options for name in ("username", *_SECRET_OPTIONS)) else ""
        if self.kind == "unix":
            return f"{self.scheme}://{who}{self.path}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        parts = [part for part in (self.service, str(self.db) if self.kind != "cluster" else "") if part]
        return "/".join([f"{self.scheme}://{who}{hosts}", *parts])

    def scrub(self, text: str) -> str:
        """``text`` without our passwords: a server that does not know AUTH repeats what it was sent."""
        for name in _SECRET_OPTIONS:
            if secret := self.options.get(name):
                text = text.replace(secret, "***")
        return text

    def check_files(self) -> None:
        """Raises ConfigError when a file that the options name cannot be read by this process."""
        for name in _FILES:
            path = self.options.get(name)
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(
                    f"BANANAS_REDIS_URL={self.shown}: {name}={path!r} cannot be read by this process; put the PEM file "
                    "there, or name another"
                )

    def tls_arguments(self) -> dict[str, Any]:
        """What redis-py's TLS connections take."""
        found: dict[str, Any] = {name: self.options[name] for name in _TLS_OPTIONS if name in self.options}
        if "ssl_check_hostname" in found:
            found["ssl_check_hostname"] = _FLAGS[found["ssl_check_hostname"].lower()]
        return found

    def login(self) -> dict[str, str]:
        """User and password of the servers, as far as given."""
        return {name: self.options[name] for name in ("username", "password") if name in self.options}

    def sentinel_login(self) -> dict[str, str]:
        """User and password of the sentinels, as far as given."""
        return {
            name.removeprefix("sentinel_"): self.options[name] for name in _SENTINEL_OPTIONS if name in self.options
        }


def parse(url: str) -> RedisUrl:
    """Read a URL; raises ConfigError naming the variable, what is wrong and the right form.

    >>> parse("redis+sentinel://:secret@a,b:26380/jobs/2").shown
    'redis+sentinel://***@a:26379,b:26380/jobs/2'
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ConfigError(f"BANANAS_REDIS_URL is not valid: it must begin with one of {', '.join(_begins())}")
    kind, tls, port, form = _SCHEMES[scheme]
    try:
        rest, fragment, _ = rest.partition("#")
        body, _, query = rest.partition("?")
        authority, _, path = body.partition("/")
        login, _, hosts = authority.rpartition("@")
        _check_characters(kind, url, authority, path, query, fragment)
        options = _login(login) | _options(kind, tls, query)
        if kind == "unix":
            if hosts or not path:
                raise ValueError("a socket needs an absolute path after unix://")
            found = RedisUrl(scheme, kind, tls, (), "/" + unquote(path), "", _db(options.pop("db", "")), options)
        else:
            nodes = _nodes(kind, hosts, port)
            service, db = _service_and_db(kind, unquote(path), options)
            found = RedisUrl(scheme, kind, tls, nodes, "", service, db, options)
    except ValueError as e:
        raise ConfigError(f"BANANAS_REDIS_URL={scheme}://*** is not valid: {e}; the form is {form}") from None
    return found


def safe_url(url: str) -> str:
    """The URL as messages may show it: without users, passwords and options.

    >>> safe_url("redis://:p/w@host/0")
    'redis://***'
    """
    try:
        return parse(url).shown
    except ConfigError:
        scheme = url.partition("://")[0]
        return f"{scheme}://***" if scheme in _SCHEMES else "***"


def _begins() -> list[str]:
    return [f"{scheme}://" for scheme in _SCHEMES]


def _check_characters(kind: Kind, url: str, authority: str, path: str, query: str, fragment: str) -> None:
    escape = "write them in a user or password as %23 (#), %2F (/), %3F (?), %40 (@), %3A (:), %25 (%)"
    plain = kind == "unix" and not authority  # then it is the path of a file
    if not url.isprintable() or (" " in url and not plain):
        raise ValueError("it has a space, a line break or another character that cannot be printed")
    if fragment:
        raise ValueError(f"it has a #; {escape}")
    if "@" in query or ("@" in path and not plain) or "@" in authority.rpartition("@")[0]:
        raise ValueError(f"one of the characters / ? @ stands where it means something else; {escape}")


def _login(login: str) -> dict[str, str]:
    user, _, password = login.partition(":")
    return {name: unquote(value) for name, value in (("username", user), ("password", password)) if value}


def _options(kind: Kind, tls: bool, query: str) -> dict[str, str]:
    known = ("username", "password", *(() if kind == "cluster" else ("db",)), *(_TLS_OPTIONS if tls else ()))
    known += _SENTINEL_OPTIONS if kind == "sentinel" else ()
    options: dict[str, str] = {}
    for number, item in enumerate(filter(None, query.split("&")), 1):
        name, is_set, value = item.partition("=")
        if name in options:
            raise ValueError(f"{name} is given twice")
        if name in known and is_set and value:
            options[name] = unquote(value)
        elif name in known:
            raise ValueError(f"{name} has no value")
        elif name in _TLS_OPTIONS and kind != "unix":
            raise ValueError(f"{name} is for TLS, and the scheme is not; begin with rediss")
        else:  # not quoted: it may be the rest of a password with an unescaped &
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"option {number} after the ? is not known; {hint}")
    _check_values(options)
    return options


def _check_values(options: dict[str, str]) -> None:
    if options.get("ssl_check_hostname", "true").lower() not in _FLAGS:
        raise ValueError("ssl_check_hostname must be true or false")
    if options.get("ssl_cert_reqs", "none") not in ("none", "optional", "required"):
        raise ValueError("ssl_cert_reqs must be none, optional or required")


def _nodes(kind: Kind, hosts: str, default_port: int) -> tuple[Address, ...]:
    nodes = []
    for number, text in enumerate(hosts.split(","), 1):
        match = _HOST.fullmatch(text)
        port = int(match["port"] or default_port) if match else 0
        if match is None or not 0 < port < 65536:
            raise ValueError(f"host {number} must be a name or an address with a port of 1 to 65535, as in host:6379")
        nodes.append((unquote(match["v6"] or match["name"]), port))
    if kind == "server" and len(nodes) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    if len(nodes) > _MAX_NODES:
        raise ValueError(f"it names {len(nodes)} hosts; {_MAX_NODES} are enough")
    return tuple(dict.fromkeys(nodes))


def _service_and_db(kind: Kind, path: str, options: dict[str, str]) -> tuple[str, int]:
    parts = path.rstrip("/").split("/") if path.rstrip("/") else []
    service = ""
    if kind == "sentinel":
        if not parts or not parts[0]:
            raise ValueError("the name of the master that the sentinels watch is missing after the hosts")
        service = parts.pop(0)
    if kind == "cluster" and parts not in ([], ["0"]):
        raise ValueError("a cluster has only database 0")
    if len(parts) > 1:
        raise ValueError("too many / after the hosts")
    return service, _db(parts[0] if parts else options.pop("db", ""))


def _db(text: str) -> int:
    if text and not (text.isdecimal() and len(text) <= 6):
        raise ValueError("the database must be a number such as 0")
    return int(text or 0)
