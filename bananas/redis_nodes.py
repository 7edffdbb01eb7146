"""Which server takes our writes right now, asked of sentinels or of a cluster's nodes; and connections that go there.

A *finder* asks its nodes in turn, the one that last knew first. A *connection* asks its finder whenever it opens a
socket, and closes the one it has when the finder has found another server meanwhile, or when its server says that it
does not own the data any more. Sentinels tell an old master only seconds later that it is none (8 s and more were
seen), and what it takes until then is lost; so they are asked again twice a second while connections are used. Nothing
here repeats a command. Called by ``bananas.redis_client`` only.

All keys share one hash tag and so one slot: in a cluster, one node has all of them, and an ordinary client of that
node is enough.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from bananas import keys
from bananas.redis_url import Address, RedisUrl

#: A sentinel or a node that needs longer to say who has our keys is passed over.
ASK_TIMEOUT_S: Final = 1.0
#: How often sentinels are asked again, how long that may take, and the pause after it failed: the master works.
RECHECK_S: Final = 0.5
RECHECK_TIMEOUT_S: Final = 0.25
RECHECK_PAUSE_S: Final = 5.0
#: Nodes of a cluster that are remembered, besides those of the URL.
_MAX_NODES: Final = 50
#: The slot of every key of ours.
SLOT: Final = key_slot(keys.PREFIX.encode())


class NotTheOwnerError(ConnectionError):
    """The server that was asked does not take our writes any more; the next connection goes to another."""


class Finder(ABC):
    """Knows where our keys are. Thread-safe: it holds no sockets, and replaces its list in one assignment."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self._nodes = list(url.nodes)
        #: What ``locate`` found last.
        self.address: Address | None = None
        #: Monotonic seconds; one thread at a time asks again.
        self._recheck_at_s = 0.0
        self._rechecking = threading.Lock()

    def locate(self) -> Address:
        """Ask until one node knows; raises redis-py's ConnectionError with what each one said."""
        problems = []
        for node in list(self._nodes):
            try:
                self.address = self._asked(node, ASK_TIMEOUT_S)
            except (RedisError, OSError) as e:
                problems.append(f"{node[0]}:{node[1]} says: {e}")
                continue
            self._prefer(node)
            self._recheck_at_s = time.monotonic() + RECHECK_S
            return self.address
        raise ConnectionError(f"{self._sought} was not found; {'; '.join(problems)}")

    def recheck(self) -> None:
        """Ask one node again if it is time to; sets ``address``, never raises for a node that does not answer."""
        if time.monotonic() < self._recheck_at_s or not self._rechecking.acquire(blocking=False):
            return
        try:
            self._recheck_at_s = time.monotonic() + RECHECK_S
            self.address = self._asked(self._nodes[0], RECHECK_TIMEOUT_S)
        except (RedisError, OSError):  # told when a connection is needed, by locate
            self._recheck_at_s = time.monotonic() + RECHECK_PAUSE_S
            self.suspect(None)
        finally:
            self._rechecking.release()

    def suspect(self, better: Address | None) -> None:
        """What was found is wrong: ask ``better`` next, or somebody else than last time."""
        if better is None:
            self._nodes = [*self._nodes[1:], *self._nodes[:1]]
        else:
            self._prefer(better)

    def _prefer(self, node: Address) -> None:
        self._nodes = [node, *(other for other in self._nodes if other != node)]

    def _asked(self, node: Address, timeout_s: float) -> Address:
        client = redis.Redis(
            host=node[0],
            port=node[1],
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            ssl=self._url.tls,
            **self._login(),
            **self._url.tls_arguments(),
        )
        with client:
            return self._ask(client, node)

    @property
    @abstractmethod
    def _sought(self) -> str: ...

    @abstractmethod
    def _login(self) -> dict[str, Any]: ...

    @abstractmethod
    def _ask(self, client: Any, asked: Address) -> Address:
        """Where our keys are, as far as this node knows; raises RedisError when it does not."""


class SentinelFinder(Finder):
    """Asks sentinels for the master of a service."""

    @property
    def _sought(self) -> str:
        return f"the master of {self._url.service!r}"

    def _login(self) -> dict[str, Any]:
        return self._url.sentinel_login()

    def _ask(self, client: Any, asked: Address) -> Address:  # noqa: ARG002
        # Not SENTINEL MASTER: during a failover that names the old one until all replicas have followed. Two words, so
        # that redis-py leaves the answer as it is.
        found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
        if found is None:
            raise ConnectionError(f"it watches no master called {self._url.service!r}")
        return found[0].decode(), int(found[1])


class ClusterFinder(Finder):
    """Asks nodes of a cluster for the one that has the slot of our keys."""

    def recheck(self) -> None:
        """Not needed: a node that has lost the slot says so itself (MOVED, CLUSTERDOWN)."""

    @property
    def _sought(self) -> str:
        return f"the cluster node with slot {SLOT} (of all keys {keys.PREFIX}…)"

    def _login(self) -> dict[str, Any]:
        return self._url.login()

    def _ask(self, client: Any, asked: Address) -> Address:
        owner, known = None, []
        # Two words, so that redis-py leaves the answer as it is.
        for first, last, *servers in client.execute_command("CLUSTER", "SLOTS"):
            # A node that does not know its own name leaves it empty: it is the one that was asked.
            addresses = [((server[0] or b"").decode() or asked[0], int(server[1])) for server in servers]
            known += addresses
            if first <= SLOT <= last:
                owner = addresses[0]
        # Those that were asked so far may all be gone one day.
        self._nodes = list(dict.fromkeys([asked, *known[:_MAX_NODES], *self._url.nodes]))
        if owner is None or owner[0] == "?":
            raise ConnectionError(f"no node has slot {SLOT}")
        return owner


def finder_of(url: RedisUrl) -> Finder | None:
    """The finder for the URL; None when it names the server itself."""
    if url.kind == "sentinel":
        return SentinelFinder(url)
    return ClusterFinder(url) if url.kind == "cluster" else None


# Any: redis-py's connection classes come in three kinds, which share these methods and no annotated base for them.
class _Finding:
    """Mixed into a connection class of redis-py."""

    def __init__(self, *args: Any, finder: Finder | None, **kwargs: Any) -> None:
        self._finder = finder
        super().__init__(*args, **kwargs)

    def is_left(self: Any) -> bool:
        """True for an open socket to a server that others have left."""
        if self._finder is None or not self._sock:
            return False
        self._finder.recheck()
        return bool((self.host, self.port) != self._finder.address)

    def connect(self: Any) -> None:
        """Called by the pool before every use: a socket to a server that others have left is closed."""
        if self.is_left():
            self.disconnect()
        super().connect()  # type: ignore[misc]

    def connect_check_health(self: Any, *args: Any, **kwargs: Any) -> None:
        """Called wherever a socket may have to be opened."""
        if self._finder is not None and not self._sock:
            self.host, self.port = self._finder.locate()
        super().connect_check_health(*args, **kwargs)  # type: ignore[misc]

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        """One answer; raises NotTheOwnerError, with the socket closed, when the server is the wrong one."""
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as e:
            wrong = isinstance(e, ReadOnlyError) or str(e).startswith("UNBLOCKED") or "-READONLY" in str(e)
            if self._finder is not None:
                wrong = wrong or isinstance(e, MovedError | ClusterDownError)
            if not wrong:
                raise
            self.disconnect()
            if self._finder is not None:
                self._finder.suspect((e.host or self.host, int(e.port)) if isinstance(e, MovedError) else None)
            raise NotTheOwnerError(str(e)) from e


class Plain(_Finding, redis.Connection):
    """TCP."""


class Tls(_Finding, redis.SSLConnection):
    """TCP with TLS."""


class Unix(_Finding, redis.UnixDomainSocketConnection):
    """A socket file."""


def connection_class(url: RedisUrl) -> type[Any]:
    """The class of connections that suits the URL."""
    return Unix if url.kind == "unix" else Tls if url.tls else Plain
