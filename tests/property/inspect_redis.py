"""Reads the whole queue from Redis in one step, and compares it with the model, field by field.

What the model calls ``Now(offset)`` is replaced by the server's value here, after a check that it lies in the window of
the operation; everything else must be equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

from bananas import keys
from bananas.redis_client import Connections
from tests.property.model import CALLBACK_MS, LIVE, PRIORITIES, RESULT_TTL_MS, UNSWEPT_MS, Job, Model, Now, Time

_DUMP = """
local READ = {
  hash = function(k) return redis.call('HGETALL', k) end,
  list = function(k) return redis.call('LRANGE', k, 0, -1) end,
  set = function(k) return redis.call('SMEMBERS', k) end,
  zset = function(k) return redis.call('ZRANGE', k, 0, -1, 'WITHSCORES') end,
  string = function(k) return redis.call('GET', k) end,
}
local t = redis.call('TIME')
local out = {t[1] * 1000 + math.floor(t[2] / 1000)}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local short = string.sub(key, #ARGV[1] + 1)
  local kind = string.match(short, '^[^:]+')
  local is_of_registry = {fn = 1, version = 1, versions = 1, bundle = 1, functions = 1, pools = 1}
  if not is_of_registry[kind] then
    out[#out + 1] = {short, READ[redis.call('TYPE', key).ok](key), redis.call('PTTL', key)}
  end
end
return out
"""
_ATTEMPT = re.compile(rb'"token":(\d+),"outcome":"(\w+)"')
_TYPE = re.compile(rb'"type":"(\w+)"')
#: Fields that are text, those of the callback last.
_TOLD = ("cb", "cbstate", "cberr", "sync")
_TEXTS = ("fn", "ver", "pool", "prio", "state", "runner", "reason", "uniq", *_TOLD)
#: Fields whose values are times.
_TIMES = ("created", "enqueued", "due", "expires", "finished")


@dataclass(frozen=True)
class Dump:
    """Everything that the queue keeps, by short key: value and ms to live (-1: for ever)."""

    now_ms: int
    values: dict[str, Any]
    ttl_ms: dict[str, int]

    def pairs(self, key: str) -> dict[bytes, bytes]:
        """A hash, or a sorted set as member → score."""
        flat = self.values.get(key, [])
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def below(self, kind: str) -> dict[str, Any]:
        """What lies under ``kind:``, by the rest of the key."""
        return {key[len(kind) + 1 :]: value for key, value in self.values.items() if key.startswith(kind + ":")}


class Inspector:
    """Dumps one server's queue."""

    def __init__(self, connections: Connections) -> None:
        self._dump: Callable[..., Any] = connections.commands.register_script(_DUMP)

    def dump(self) -> Dump:
        """All of it, at one moment."""
        now, *rows = self._dump(keys=[keys.SCHEDULE], args=[keys.PREFIX])
        values = {key.decode(): value for key, value, _ in rows}
        return Dump(now, values, {key.decode(): ttl for key, _, ttl in rows})


def compare(model: Model, dump: Dump) -> None:
    """Raise AssertionError with the place where the server differs from the model."""
    known = {
        "job",
        "lane",
        "stride",
        "bell",
        "running",
        "busy",
        "parked",
        "called",
        "unique",
        "tomb",
        "reply",
        "inbox",
        "wake",
    }
    known |= {
        "schedule",
        "leases",
        "expiring",
        "dead",
        "done",
        "park",
        "counters",
        "jobs",
        "unlisted",
        "callbacks",
        "calls",
        "rate",
    }
    unknown = [key for key in dump.values if key.split(":")[0] not in known]
    assert not unknown, f"keys that nobody knows: {unknown}"
    _compare_jobs(model, dump)
    for name in ("schedule", "leases", "expiring", "dead", "done", "callbacks", "calls"):
        _compare_times(name, getattr(model, name), dump, model.window)
    lanes = {key: [i.decode() for i in ids] for key, ids in dump.below("lane").items()}
    _equal("lanes", lanes, {f"{pool}:{prio}": ids for (pool, prio), ids in model.lanes.items() if ids})
    _compare_sets(model, dump)
    _compare_pools(model, dump)
    _compare_rest(model, dump)


def _equal(what: str, real: object, expected: object) -> None:
    assert real == expected, f"{what}: the server has {real!r}, the model {expected!r}"


def _adopt(what: str, real: int, expected: Time, window: tuple[int, int]) -> int:
    if isinstance(expected, Now):
        low, high = (t + expected.offset_ms for t in window)
        assert low <= real <= high, f"{what}: {real} is not within {low} and {high}"
        return real
    _equal(what, real, expected)
    return expected


def _compare_times(name: str, times: dict[str, Time], dump: Dump, window: tuple[int, int]) -> None:
    real = {member.decode(): int(float(score)) for member, score in dump.pairs(name).items()}
    _equal(f"ids in {name}", set(real), set(times))
    for job_id, at in times.items():
        times[job_id] = _adopt(f"{name} of {job_id}", real[job_id], at, window)


def _compare_jobs(model: Model, dump: Dump) -> None:
    real = dump.below("job")
    _equal("records", set(real), set(model.jobs))
    for job_id, job in model.jobs.items():
        times, record = _record(tuple(real[job_id]))
        for name, at in times.items():
            expected = getattr(job, name)
            if at != expected:
                setattr(job, name, _adopt(f"{name} of {job_id}", at, expected, model.window))
        _equal(f"record {job_id}", record, _expected(job))
        ttl = dump.ttl_ms[f"job:{job_id}"]
        _equal(f"whether record {job_id} ends", ttl != -1, job.state not in LIVE)
        if job.state in ("completed", "cancelled"):
            assert 0 < ttl <= (CALLBACK_MS if job.cbstate == "pending" else RESULT_TTL_MS) + UNSWEPT_MS


@lru_cache(maxsize=2000)
def _record(flat: tuple[bytes, ...]) -> tuple[dict[str, int], dict[str, object]]:
    """The times of a record, and the rest of it as the model has it; most records are as they were a step ago."""
    f = {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
    texts = {name: f.get(name, b"").decode() for name in _TEXTS}
    numbers = {name: int(f[name]) for name in ("timeout", "maxr", "token", "failures", "losses", "starts")}
    numbers |= {name: int(f.get(name, 0)) for name in ("cbend", "cbtries")}
    attempts = [_ATTEMPT.search(line) for line in f.get("hist", b"").split(b"\n") if line]
    error = _TYPE.search(f.get("error", b""))
    return {name: int(f.get(name) or 0) for name in _TIMES}, {
        **texts,
        **numbers,
        "payload": f["payload"],
        "result": f.get("result", b""),
        "progress": f.get("progress", b""),
        "pseq": int(f["pseq"]) if "pseq" in f else None,
        "waiters": [name.decode() for name in f.get("waiters", b"").split(b"\n") if name],
        "hist": [(int(m[1]), m[2].decode()) for m in attempts if m],
        "logs": {int(name[4:]): text for name, text in f.items() if name.startswith("log:")},
        "error": error[1].decode() if error else "",
        "is_over": bool(f.get("finished")),
    }


_SAME = ("fn", "ver", "pool", "prio", "state", "runner", "reason", "uniq", "timeout", "maxr", "token", "failures")
_SAME_TOO = ("losses", "starts", "payload", "result", "progress", "pseq", "waiters", "hist", "logs", "error")


_NAMES = (*_SAME, *_SAME_TOO, *_TOLD, "cbend", "cbtries")
_values = attrgetter(*_NAMES)


def _expected(job: Job) -> dict[str, object]:
    return dict(zip(_NAMES, _values(job), strict=True), is_over=job.state not in LIVE)


def _compare_sets(model: Model, dump: Dump) -> None:
    for name, of in (("running", "fn"), ("busy", "pool")):
        real = {key: {i.decode() for i in ids} for key, ids in dump.below(name).items()}
        derived: dict[str, set[str]] = {}
        for job_id in model.leases:
            derived.setdefault(getattr(model.jobs[job_id], of), set()).add(job_id)
        _equal(name, real, derived)
    for name in ("parked", "called"):
        tickets = {key: {_ticket(t) for t in flat[::2]} for key, flat in dump.below(name).items()}
        _equal(name, tickets, {fn: found for fn, found in getattr(model, name).items() if found})


def _ticket(raw: bytes) -> tuple[str, int, int, str]:
    pool, rank, number, job_id = raw.decode().split(":", 3)
    return pool, int(rank), int(number), job_id


def _compare_pools(model: Model, dump: Dump) -> None:
    for name, pool in model.pools.items():
        s = {key.decode(): float(value) for key, value in dump.pairs(f"stride:{name}").items()}
        real = (s.get("v", 0.0), {prio: s.get(prio, 0.0) for prio in PRIORITIES}, s.get("maxc", 0))
        _equal(f"stride of {name}", real, (pool.virtual, pool.passes, pool.max_concurrency))
    rung = set(dump.below("bell"))
    assert model.bells <= rung <= model.bells | model.perhaps, f"bells: {rung}, not {model.bells} (or {model.perhaps})"
    model.bells = rung
    model.perhaps = set()


def _compare_rest(model: Model, dump: Dump) -> None:
    listed = {
        fn: {i.decode(): int(float(at)) for i, at in dump.pairs(f"jobs:{fn}").items()} for fn in dump.below("jobs")
    }
    _equal("lists", {fn: set(found) for fn, found in listed.items()}, {fn: i for fn, i in model.listed.items() if i})
    created = {job.id: listed[job.fn][job.id] for job in model.jobs.values()}
    _equal("lists' times", created, {job.id: job.created for job in model.jobs.values()})
    _equal("unlisted", {fn.decode() for fn in dump.values.get("unlisted", [])}, model.unlisted)
    _equal("buckets", set(dump.below("rate")), {f"function:{fn}" for fn, n in model.spent.items() if n})
    _equal("the callbacks' bell", "bell" in dump.below("callbacks"), model.is_rung_for_callbacks)
    _equal("tombs", set(dump.below("tomb")), model.tombs)
    counters = {name.decode(): float(value) for name, value in dump.pairs("counters").items()}
    _equal("counters", counters, dict(model.counters))
    unique = {}
    for key, text in dump.below("unique").items():
        job_id, ver, state, pool, timeout = text.decode().split("\n")
        is_for_ever = dump.ttl_ms[f"unique:{key}"] == -1
        unique[tuple(key.split(":"))] = {
            "id": job_id,
            "ver": ver,
            "state": state,
            "pool": pool,
            "timeout": int(timeout),
            "is_for_ever": is_for_ever,
        }
    _equal("unique keys", unique, model.unique)
    replies = {keys.reply(name): [_reply(raw) for raw in found] for name, found in dump.below("reply").items()}
    _equal("replies", replies, {name: found for name, found in model.replies.items() if found})
    inbox = {name: [raw.decode() for raw in found] for name, found in dump.below("inbox").items()}
    _equal("inboxes", inbox, {name: found for name, found in model.inbox.items() if found})
    if model.park_seq:
        _equal("park:seq", int(dump.values["park:seq"]), model.park_seq)


def _reply(raw: bytes) -> tuple[str, str, int | None, bytes | None]:
    job_id, state, attempt, rest = raw.split(b"\n", 3)
    match = _ATTEMPT.search(attempt)
    return job_id.decode(), state.decode(), int(match[1]) if match else None, rest[1:] if rest[:1] == b"r" else None
