"""What nobody refers to any more: archives of versions that are gone, entries of lists whose records are gone, counters
of functions that are gone.

Called by the janitor of every runner, a bounded piece at a time; any number of them at once do no harm.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

import msgspec

from bananas import events, keys
from bananas.counters import Counters
from bananas.listing import JobLists
from bananas.redis_client import Connections
from bananas.settings import LIMITS
from bananas.spec import Bundles

#: Version records that are read in one go.
_CHUNK: Final = 200


class _Version(msgspec.Struct):
    bundles: Bundles


_VERSION: Final = msgspec.json.Decoder(_Version)


class Leftovers:
    """One walk over all keys and one over all lists, each of which goes on where its last piece ended."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._redis = connections.commands
        self._lists = JobLists(connections)
        self._counters = Counters(connections)
        self._cursor = 0
        self._versions: set[bytes] = set()
        self._bundles: set[bytes] = set()
        #: The list that is looked at, and where.
        self._function = ""
        self._list_cursor = 0

    def look(self, count: int = 1000) -> int:
        """Look at about ``count`` keys; returns how many archives were let go, at the end of each round.

        An archive goes ``LIMITS.orphan_bundle_s`` later, like one that was never deployed: a deploy that relies on it
        meanwhile keeps it, since it takes that time away in the transaction that stores its version.
        """
        with self._connections.guard():
            pattern = f"{keys.PREFIX}[vb]*:*"
            self._cursor, found = self._redis.scan(self._cursor, match=pattern, count=count, _type="STRING")
            version, bundle = (f"{keys.PREFIX}{kind}:".encode() for kind in ("version", "bundle"))
            self._versions.update(key for key in found if key.startswith(version))
            self._bundles.update(key for key in found if key.startswith(bundle))
            if self._cursor:
                return 0
            versions, bundles = self._versions, self._bundles
            self._versions, self._bundles = set(), set()
            self._counters.forget()
            return self._let_go(versions, bundles)

    def forget(self, count: int = 500) -> None:
        """Look at about ``count`` entries of the lists of jobs; those without a record go."""
        if not self._list_cursor:
            names = self._lists.functions()
            self._function = next((name for name in names if name > self._function), names[0] if names else "")
        if self._function:
            self._list_cursor = self._lists.forget(self._function, self._list_cursor, count)

    def _let_go(self, versions: set[bytes], bundles: set[bytes]) -> int:
        try:
            orphans = self._for_ever(bundles - self._used(versions))
            for key in orphans:
                self._redis.expire(key, LIMITS.orphan_bundle_s)
            # Versions of deploys that came in between; later ones take the time away again by themselves.
            still = orphans & self._used(self._deployed()) if orphans else set()
        except msgspec.DecodeError as e:
            events.BUNDLES_KEPT(error=e)
            return 0
        for key in still:
            self._redis.persist(key)
        return len(orphans - still)

    def _for_ever(self, keys_: Iterable[bytes]) -> set[bytes]:
        names = list(keys_)
        pipe = self._redis.pipeline(transaction=False)
        for key in names:
            pipe.ttl(key)
        return {key for key, ttl in zip(names, pipe.execute(), strict=True) if ttl == -1} if names else set()

    def _used(self, versions: Iterable[bytes]) -> set[bytes]:
        """The keys of all archives of some versions."""
        used: set[bytes] = set()
        names = iter(versions)
        while chunk := list(islice(names, _CHUNK)):
            raw: list[Any] = self._redis.mget(chunk)
            for text in raw:
                if text is not None:
                    used.update(keys.bundle(sha).encode() for sha in _VERSION.decode(text).bundles.archives)
        return used

    def _deployed(self) -> set[bytes]:
        """The keys of all kept versions."""
        names = [name.decode() for name in self._redis.smembers(keys.FUNCTIONS)]
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.zrange(keys.versions(name), 0, -1)
        kept = pipe.execute() if names else []
        return {
            keys.version(name, version.decode()).encode()
            for name, found in zip(names, kept, strict=True)
            for version in found
        }
