"""Lists of jobs: which index a question is read from, and how a page goes on where the last one ended.

Called by the gateway and, to keep the lists short, by the janitor. Decides no state. A page looks at ``SCAN`` jobs at
most, however few of them match; the cursor then says where to go on, so no question makes one request long. Whatever
is paged through changes meanwhile: a job that moves can be seen twice or not at all, one that stays is seen once.

=============================== ================================================ ========================
question                        index                                            order
=============================== ================================================ ========================
no status, completed, cancelled ``jobs:<function>``, of one or of all, merged    created last first
failed                          ``dead`` and ``calls``, merged                   died last first
processing                      ``leases``                                       by id, last first
scheduled                       ``schedule``                                     due last first
pending                         the lanes, then ``parked:<function>``            lane by lane, last first
=============================== ================================================ ========================
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bananas import codec, errors, keys, scripts
from bananas.job import JobState
from bananas.redis_client import Connections
from bananas.spec import PRIORITIES

#: Jobs that one page looks at.
SCAN: Final = 1000
#: Members of an index that are read at a time.
_CHUNK: Final = 100
#: Leases that are sorted for one page: far more than runners have places.
_LEASES: Final = 50_000
#: How far a lane is searched for the job at which the last page ended.
_SEARCH: Final = 20_000
_FIELDS: Final = ("fn", "ver", "pool", "prio", "state", "created", "due", "claimed", "finished", "token", "reason")
_CURSOR: Final = re.compile(r"([cdpsl])~(\d{1,15})~([A-Za-z0-9_:.-]{1,220})")


@dataclass(frozen=True, slots=True)
class Listed:
    """One job, in short; ``Queue.show`` has the rest. Times are Unix ms."""

    id: str
    function: str
    version: str
    pool: str
    priority: str
    state: JobState
    created_at_ms: int
    #: While scheduled.
    due_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    attempts: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs in the order of their index."""

    jobs: list[Listed]
    #: Where the next page begins; None: there is nothing more.
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """Which jobs; None matches any."""

    state: JobState | None = None
    function: str | None = None
    #: Whether a function's jobs may be seen by who asks.
    may_see: Callable[[str], bool] = lambda _: True

    def matches(self, job: Listed) -> bool:
        """True for a job of this state and function that may be seen."""
        return self.state in (None, job.state) and self.function in (None, job.function) and self.may_see(job.function)


#: A cursor's place, and the id of the job there.
_Entry = tuple[str, str]


class JobLists:
    """Pages of jobs, over one set of connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._redis = connections.commands
        self._run = scripts.Caller(connections).run

    def page(self, wanted: Question, cursor: str | None = None, limit: int = 100) -> Page:
        """At most ``limit`` jobs that match, out of at most ``SCAN``; raises InvalidRequest for a foreign cursor."""
        with self._connections.guard():
            entries = self._entries(wanted, cursor)
            looked, found = 0, []
            while chunk := [entry for _, entry in zip(range(min(limit, SCAN - looked)), entries, strict=False)]:
                looked += len(chunk)
                for (place, _), job in zip(chunk, self._read([job_id for _, job_id in chunk]), strict=True):
                    if job is None or not wanted.matches(job):
                        continue
                    found.append(job)
                    if len(found) == limit:
                        is_last = place == chunk[-1][0] and next(entries, None) is None
                        return Page(found, None if is_last else place)
                if looked >= SCAN:
                    return Page(found, None if next(entries, None) is None else chunk[-1][0])
        return Page(found, None)

    def forget(self, function: str, cursor: int, count: int = 500) -> int:
        """Look at about ``count`` entries of a function's list and drop those whose records are gone; the next cursor.

        Called by the janitor. Only records that ended while nobody swept leave such entries.
        """
        with self._connections.guard():
            following, found = self._redis.zscan(keys.jobs(function), cursor, count=count)
            if found:
                self._run("unlist", function, *(job_id for job_id, _ in found))
            if not following and not self._redis.exists(keys.jobs(function)):
                self._redis.srem(keys.UNLISTED, function)
        return int(following)

    def functions(self) -> list[str]:
        """Every function that may have jobs, also removed ones; sorted."""
        with self._connections.guard():
            return sorted(name.decode() for name in self._redis.sunion([keys.FUNCTIONS, keys.UNLISTED]))

    # -- inside -----------------------------------------------------------------------------------------------

    def _entries(self, wanted: Question, cursor: str | None) -> Iterator[_Entry]:
        """The index of the question from the cursor on; read in chunks, as far as it is asked for."""
        match wanted.state:
            case JobState.FAILED:
                return self._merged("d", [keys.DEAD, keys.CALLS], _position("d", cursor))
            case JobState.SCHEDULED:
                return self._merged("s", [keys.SCHEDULE], _position("s", cursor))
            case JobState.PROCESSING:
                return self._leased(_position("l", cursor))
            case JobState.PENDING:
                return self._waiting(wanted.function, _position("p", cursor))
        at = _position("c", cursor)
        names = [wanted.function] if wanted.function is not None else self.functions()
        return self._merged("c", [keys.jobs(name) for name in names if wanted.may_see(name)], at)

    def _merged(self, kind: str, names: Sequence[str], at: _Position | None) -> Iterator[_Entry]:
        """Sorted sets as one, from the end, below a position."""
        looks = self._looks(names, at) if names else []
        lists = [self._sorted(kind, key, at, look) for key, look in zip(names, looks, strict=True)]
        return heapq.merge(*lists, key=lambda entry: _order(entry[0]), reverse=True)

    def _looks(self, names: Sequence[str], at: _Position | None) -> list[_Look]:
        """A first look at each of many sorted sets, below a position: one round trip, or two from a position on.

        It takes the fewer members the more sets there are, and enough that few of them are read again for one page.
        """
        starts = [0] * len(names) if at is None else self._below(names, at)
        size = max(_CHUNK // 10, min(_CHUNK, SCAN // max(1, len(names))))
        pipe = self._redis.pipeline(transaction=False)
        for key, start in zip(names, starts, strict=True):
            pipe.zrange(key, start, start + size - 1, desc=True, withscores=True)
        return [_Look(start, size, found) for start, found in zip(starts, pipe.execute(), strict=True)]

    def _below(self, names: Sequence[str], at: _Position) -> list[int]:
        """In each sorted set the rank, counted from its end, of the first member that may be below a position."""
        pipe = self._redis.pipeline(transaction=False)
        for key in names:
            pipe.zrevrank(key, at.name)
            pipe.zscore(key, at.name)
            pipe.zcount(key, f"({at.number}", "+inf")
        told = pipe.execute()
        return [
            int(rank) + 1 if rank is not None and score == at.number else int(above)
            for rank, score, above in zip(told[::3], told[1::3], told[2::3], strict=True)
        ]

    def _sorted(self, kind: str, key: str, at: _Position | None, look: _Look) -> Iterator[_Entry]:
        """A sorted set from its end, below a position: what the look found, then what is behind it."""
        while True:
            for raw, score in look.found:
                job_id = raw.decode()
                if at is None or (int(score), job_id) < (at.number, at.name):
                    at = _Position(int(score), job_id)  # whatever comes in meanwhile shifts the ranks
                    yield f"{kind}~{int(score)}~{job_id}", job_id
            if len(look.found) < look.size:
                return
            start = look.start + len(look.found)
            found = self._redis.zrange(key, start, start + _CHUNK - 1, desc=True, withscores=True)
            look = _Look(start, _CHUNK, found)

    def _leased(self, at: _Position | None) -> Iterator[_Entry]:
        """Jobs in execution by id: their deadlines change all the time."""
        found = sorted((raw.decode() for raw in self._redis.zrange(keys.LEASES, 0, _LEASES - 1)), reverse=True)
        for job_id in found:
            if at is None or job_id < at.name:
                yield f"l~0~{job_id}", job_id

    def _waiting(self, function: str | None, at: _Position | None) -> Iterator[_Entry]:
        """Jobs that wait for their turn: the lanes of each pool from their ends, then those that are set aside."""
        pools = sorted({"default", *(name.decode() for name in self._redis.hkeys(keys.POOLS))})
        names = self.functions() if function is None else [function]
        places = [f"l.{pool}.{prio}" for pool in pools for prio in PRIORITIES] + [f"p.{name}" for name in names]
        source, _, last = at.name.partition(":") if at else ("", "", "")
        if at is not None and source not in places:  # the pool or function is gone; those after it are not
            source, at = next((place for place in places if place > source), places[-1]), None
        for place in self._filled(places[places.index(source) if source else 0 :]):
            here = at.number if at is not None and place == source else 0
            read = self._lane if place.startswith("l.") else self._parked
            yield from read(place, here, last if here else "")

    def _filled(self, places: Sequence[str]) -> list[str]:
        """Those in which anything waits."""
        pipe = self._redis.pipeline(transaction=False)
        for place in places:
            if place.startswith("l."):
                pipe.llen(_lane_key(place))
            else:
                pipe.zcard(keys.parked(place[2:]))
        return [place for place, size in zip(places, pipe.execute(), strict=True) if size]

    def _lane(self, place: str, seen: int, last: str) -> Iterator[_Entry]:
        key = _lane_key(place)
        if last:
            found = self._redis.lpos(key, last, rank=-1, maxlen=_SEARCH)
            if isinstance(found, int):
                seen = int(self._redis.llen(key)) - found
        while chunk := self._redis.lrange(key, -seen - 100, -seen - 1):
            for raw in reversed(chunk):
                seen += 1
                yield f"p~{seen}~{place}:{raw.decode()}", raw.decode()

    def _parked(self, place: str, seen: int, _last: str) -> Iterator[_Entry]:
        while chunk := self._redis.zrange(keys.parked(place[2:]), seen, seen + 99, desc=True):
            for raw in chunk:
                seen += 1
                job_id = raw.decode().split(":", 3)[3]
                yield f"p~{seen}~{place}:{job_id}", job_id

    def _read(self, ids: Sequence[str]) -> list[Listed | None]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), _FIELDS)
        return [_listed(job_id, row) for job_id, row in zip(ids, pipe.execute(), strict=True)]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one read of a sorted set brought: at most ``size`` members and their scores, from a rank on."""

    start: int
    size: int
    found: Sequence[tuple[bytes, float]]


@dataclass(frozen=True, slots=True)
class _Position:
    number: int
    name: str


def _position(kind: str, cursor: str | None) -> _Position | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None or match[1] != kind:
        raise errors.InvalidRequest(
            f"{cursor[:60]!r} is not a cursor of this list; use that of the last answer with the same status, or none"
        )
    return _Position(int(match[2]), match[3])


def _lane_key(place: str) -> str:
    return keys.PREFIX + "lane:" + place[2:].replace(".", ":")


def _order(place: str) -> tuple[int, str]:
    _, number, job_id = place.split("~", 2)
    return int(number), job_id


def _listed(job_id: str, row: Sequence[Any]) -> Listed | None:
    f = dict(zip(_FIELDS, row, strict=True))
    if f["fn"] is None or f["created"] is None:
        return None
    return Listed(**codec.in_short(job_id, f), attempts=int(f["token"]))
