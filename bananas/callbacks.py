"""Ends of jobs on their way to a ``callback_url``: what is due, what it says, and how a try went.

The script that ends a job puts it into ``callbacks`` in the same step (``finish`` in ``_lib.lua``), so no end is
forgotten. A runner takes what is due on a lease, sends it and tells how it went; one that dies in between leaves it to
the next. So an end is told **at least once**, with the same id in every try. Decides nothing about networks; see
``runner/maintenance/callbacks.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from bananas import codec, keys, scripts
from bananas.job import JobRecord
from bananas.redis_client import Connections
from bananas.settings import LIMITS
from bananas.units import iso

Verdict = Literal["delivered", "again", "never"]
#: Of what went wrong, as it is kept in the record.
_ERROR_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Delivery:
    """One try to tell one end."""

    job_id: str
    url: str
    #: Counts the job's ends: a replayed one has several.
    end: int
    #: Counts from 1.
    number: int
    record: JobRecord

    @property
    def id(self) -> str:
        """The same in every try of this end, and of no other."""
        return f"{self.job_id}.{self.end}"

    def body(self) -> bytes:
        """What is told: the end of the record, without history and logs. Equal in every try."""
        record = self.record
        values = {"result": record.result, "error": record.error}
        large = [name for name, text in values.items() if text and len(text) > LIMITS.callback_value_bytes]
        job = {
            "id": record.id,
            "name": record.function,
            "version": record.version,
            "pool": record.pool,
            "priority": record.priority,
            "status": record.state.value,
            "created_at": iso(record.created_at_ms),
            "started_at": iso(record.started_at_ms),
            "finished_at": iso(record.finished_at_ms),
            "attempts": record.token,
            "reason": record.reason,
            **{name: msgspec.Raw(text) if text and name not in large else None for name, text in values.items()},
            # What is too large to go along; the record has it.
            "omitted": large,
        }
        told = {"type": f"job.{record.state.value}", "timestamp": iso(record.finished_at_ms), "data": job}
        return msgspec.json.encode(told)


@dataclass(frozen=True, slots=True)
class Due:
    """What one look brought."""

    deliveries: list[Delivery]
    #: Until the next is due; None: there is none.
    next_ms: int | None


class Callbacks:
    """All operations on ends that are not told yet."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._run = scripts.Caller(connections).run

    def take(self, most: int, lease_ms: int) -> Due:
        """At most so many that are due; for ``lease_ms`` they are the caller's."""
        next_ms, rows = self._run("take_callbacks", most, lease_ms, *codec.RECORD, once=True)
        return Due([_delivery(row) for row in rows], None if next_ms < 0 else next_ms)

    def told(self, delivery: Delivery, verdict: Verdict, delay_ms: int = 0, error: str = "") -> str:
        """How the try went; ``delay_ms`` is until the next one, after ``again``.

        Returns what becomes of it: ``delivered``, ``again``, ``failed`` for good, or ``stale`` when this was not the
        caller's any more.
        """
        short = error if len(error) <= _ERROR_CHARS else error[:_ERROR_CHARS] + "…"
        facts = (delivery.end, delivery.number, verdict, delay_ms, LIMITS.callback_tries, short)
        answer: bytes = self._run("told", delivery.job_id, *facts)
        return answer.decode()

    def wait(self, block_s: float) -> bool:
        """Block until somebody rings for a new one or the time is over; True when it rang."""
        with self._connections.guard():
            return self._connections.blocking.bzpopmin([keys.CALLBACKS_BELL], timeout=block_s) is not None

    def untold(self) -> int:
        """Ends that are not told yet."""
        with self._connections.guard():
            return int(self._connections.commands.zcard(keys.CALLBACKS))


def _delivery(row: Sequence[Any]) -> Delivery:
    job_id, url, end, number, *values = row
    record = codec.record(job_id.decode(), values)
    assert record is not None, "the script gives no record without a function"
    return Delivery(record.id, url.decode(), end, number, record)
