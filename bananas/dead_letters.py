"""Dead letters: failed jobs whose records are kept, to be looked at, put back into the queue or dropped.

Called by the gateway. A letter is the job itself: it has the job's id, keeps its payload, history and logs, and a
replayed one goes on with the same token, so a report of an attempt that was given up long ago is still refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from bananas import codec, errors, keys, scripts
from bananas.job import DeadReason, JobState
from bananas.redis_client import Connections
from bananas.settings import LIMITS

_FIELDS: Final = ("fn", "ver", "pool", "reason", "error", "finished", "token")
#: Letters that one call looks at, however few of them match.
SCAN: Final = 1000


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which letters; None matches any."""

    function: str | None = None
    reason: DeadReason | None = None
    #: Died at or after, and before: Unix ms.
    after_ms: int | None = None
    before_ms: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One failed job, in short; ``Queue.show`` has the rest."""

    id: str
    function: str
    version: str
    pool: str
    reason: str
    #: JSON text ``{"type", "message", "traceback"?}`` of the last attempt.
    error: bytes | None
    died_at_ms: int
    attempts: int


@dataclass(frozen=True, slots=True)
class DeadPage:
    """Letters, oldest first."""

    letters: list[DeadLetter]
    #: Where the next page begins; None: there is nothing more.
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """What a call by filter did."""

    moved: list[str]
    #: Id → why it stayed.
    refused: dict[str, errors.BananasError]
    #: Where the next call goes on; None: everything was looked at.
    cursor: str | None


class DeadLetters:
    """All operations on dead letters, over one set of connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._run = scripts.Caller(connections).run

    def page(self, wanted: DeadFilter, cursor: str | None = None, limit: int = 100) -> DeadPage:
        """At most ``limit`` letters that match, out of at most ``SCAN`` that are looked at; raises InvalidRequest."""
        entries, following = self._entries(wanted, cursor)
        letters: list[DeadLetter] = []
        for at, (job_id, died_at_ms, fields) in enumerate(entries):
            if fields["fn"] is None or not _matches(wanted, fields):
                continue
            letters.append(_letter(job_id, died_at_ms, fields))
            if len(letters) == limit:
                is_last = at + 1 == len(entries) and following is None
                return DeadPage(letters, None if is_last else _cursor(job_id, died_at_ms))
        return DeadPage(letters, following)

    def replay(
        self,
        ids: Sequence[str],
        payload: bytes | None = None,
        interval_ms: int = 0,
        version: Literal["current", "same"] = "current",
        delay_ms: int = 0,
        key: str = "",
    ) -> list[JobState | errors.BananasError]:
        """Put letters back into the queue, each ``interval_ms`` after the one before; the state or error of each.

        Args:
            payload: JSON text that replaces theirs; None keeps it.
            version: ``current`` runs the code and settings of now, ``same`` those that failed.
            delay_ms: from now until the first.
            key: a letter that an earlier call with the same key put back is not put back again; its state is told.
        """
        if not ids:
            return []
        args = [version, delay_ms, interval_ms, LIMITS.queued_jobs, LIMITS.old_version_s * 1000]
        answers = self._run("replay", *args, int(payload is not None), payload or b"", key, *ids)
        return [self._replayed(job_id, answer) for job_id, answer in zip(ids, answers, strict=True)]

    def replay_matching(
        self,
        wanted: DeadFilter,
        interval_ms: int = 0,
        version: Literal["current", "same"] = "current",
        cursor: str | None = None,
        limit: int = 100,
        delay_ms: int = 0,
    ) -> Moved:
        """Put back at most ``limit`` letters that match; call again with the cursor for the rest."""
        page = self.page(wanted, cursor, limit)
        ids = [letter.id for letter in page.letters]
        answers = dict(zip(ids, self.replay(ids, None, interval_ms, version, delay_ms), strict=True))
        refused = {job_id: e for job_id, e in answers.items() if isinstance(e, errors.BananasError)}
        return Moved([job_id for job_id in ids if job_id not in refused], refused, page.cursor)

    def purge(self, ids: Sequence[str]) -> int:
        """Drop letters for good; returns how many were there."""
        return int(self._run("purge", LIMITS.tombstone_s, *ids)) if ids else 0

    def purge_matching(self, wanted: DeadFilter, cursor: str | None = None, limit: int = 100) -> Moved:
        """Drop at most ``limit`` letters that match; call again with the cursor for the rest."""
        page = self.page(wanted, cursor, limit)
        ids = [letter.id for letter in page.letters]
        self.purge(ids)
        return Moved(ids, {}, page.cursor)

    # -- inside -----------------------------------------------------------------------------------------------

    def _entries(
        self, wanted: DeadFilter, cursor: str | None
    ) -> tuple[list[tuple[str, int, dict[str, Any]]], str | None]:
        """Letters from the cursor on, within the filter's times: (id, Unix ms, fields); and the next cursor."""
        low = "-inf" if wanted.after_ms is None else wanted.after_ms
        high = "+inf" if wanted.before_ms is None else f"({wanted.before_ms}"
        with self._connections.guard():
            client = self._connections.commands
            start = client.zcount(keys.DEAD, "-inf", f"({low}") if wanted.after_ms is not None else 0
            if cursor is not None:
                start = max(start, self._after(cursor))
            end = client.zcount(keys.DEAD, "-inf", high)
            found = client.zrange(keys.DEAD, start, min(start + SCAN, end) - 1, withscores=True) if start < end else []
            pipe = client.pipeline(transaction=False)
            for raw, _ in found:
                pipe.hmget(keys.job(raw.decode()), _FIELDS)
            rows = pipe.execute() if found else []
        entries = [
            (raw.decode(), int(score), dict(zip(_FIELDS, row, strict=True)))
            for (raw, score), row in zip(found, rows, strict=True)
        ]
        has_more = bool(entries) and start + len(entries) < end
        return entries, _cursor(*entries[-1][:2]) if has_more else None

    def _after(self, cursor: str) -> int:
        """The rank at which to go on; the letter that the cursor names may be gone."""
        died, _, job_id = cursor.partition("-")
        if not died.isdecimal():
            raise errors.InvalidRequest(f"{cursor[:60]!r} is not a cursor; use the one of the last answer, or none")
        pipe = self._connections.commands.pipeline(transaction=True)
        pipe.zscore(keys.DEAD, job_id)
        pipe.zrank(keys.DEAD, job_id)
        pipe.zcount(keys.DEAD, "-inf", f"({died}")
        score, rank, before = pipe.execute()
        # One that was replayed and died again stands at the end now.
        return int(rank) + 1 if score == float(died) else int(before)

    def _replayed(self, job_id: str, answer: list[Any]) -> JobState | errors.BananasError:
        match [part.decode() if isinstance(part, bytes) else part for part in answer]:
            case ["ok", state]:
                return codec.state_of(state)
            case ["missing"]:
                return errors.UnknownJob(f"no job has the id {job_id}")
            case ["not_dead", state]:
                status = codec.state_of(state).value
                return errors.JobNotDead(f"job {job_id} is {status}; only failed jobs can be replayed", status=status)
            case ["unknown_function", function]:
                return errors.UnknownFunction(f"no function {function!r} is deployed any more", function=function)
            case ["version_gone", function, version]:
                return errors.VersionGone(
                    f"version {version} of function {function!r} is not kept any more; replay with the current one"
                )
            case ["full", pool, queued]:
                return codec.queue_full(pool, queued)
        raise AssertionError(f"replay.lua answered {answer!r}")


def _cursor(job_id: str, died_at_ms: int) -> str:
    return f"{died_at_ms}-{job_id}"


def _matches(wanted: DeadFilter, fields: dict[str, Any]) -> bool:
    return (wanted.function is None or fields["fn"] == wanted.function.encode()) and (
        wanted.reason is None or fields["reason"] == wanted.reason.value.encode()
    )


def _letter(job_id: str, died_at_ms: int, f: dict[str, Any]) -> DeadLetter:
    return DeadLetter(
        id=job_id,
        function=f["fn"].decode(),
        version=f["ver"].decode(),
        pool=f["pool"].decode(),
        reason=(f["reason"] or b"").decode(),
        error=f["error"] or None,
        died_at_ms=died_at_ms,
        attempts=int(f["token"]),
    )
