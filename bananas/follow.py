"""What running attempts print, live: from the runner to whoever follows, through one bounded stream for each job.

Nothing is written unless somebody follows: a gateway asks (``ask``), the runner hears of it in its inbox and tells
(``tell``) for ``FOLLOW_S`` seconds, until it is asked again. The stream is for the moment only; what an attempt printed
is kept in the job's record when the attempt ends, and that is where a follower gets whatever it missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bananas import keys, scripts
from bananas.redis_client import Connections

#: How long a runner tells after it was asked.
FOLLOW_S: Final = 30.0
#: Most pieces in a stream: of 4 a second and up to PIECE_BYTES, so more than an attempt's log has.
_PIECES: Final = 500
PIECE_BYTES: Final = 64 * 1024
_STREAM_TTL_MS: Final = 60_000
_START: Final = b"0-0"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what one attempt printed."""

    job_id: str
    token: int
    #: Of its first byte in the attempt's log.
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream was read."""

    at: bytes = _START


class Follow:
    """Both ends, over one set of connections. Raises RedisUnavailable."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._run = scripts.Caller(connections).run

    def ask(self, jobs: Mapping[str, str]) -> dict[str, str]:
        """Have the runners tell what these jobs print: id → token that was told before, "" for none or to tell again.

        Gives back id → token of the attempt that runs now, "" when none does.
        """
        if not jobs:
            return {}
        answers = self._run("follow", *(part for pair in jobs.items() for part in pair))
        return {job_id: token.decode() for job_id, token in zip(jobs, answers, strict=True)}

    def tell(self, pieces: Sequence[Piece]) -> None:
        """Add to the streams of jobs."""
        if not pieces:
            return
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            for piece in pieces:
                key = keys.tail(piece.job_id)
                fields = {"token": piece.token, "offset": piece.offset, "data": piece.data}
                pipe.xadd(key, fields, maxlen=_PIECES, approximate=False)
                pipe.pexpire(key, _STREAM_TTL_MS)
            pipe.execute()

    def so_far(self, job_id: str) -> list[Piece]:
        """What is in a job's stream."""
        with self._connections.guard():
            return _pieces(job_id, self._connections.commands.xrange(keys.tail(job_id)))

    def read(self, positions: Mapping[str, Position], block_s: float) -> tuple[list[Piece], dict[str, Position]]:
        """What came after the positions, as soon as something has, and the new positions; empty after ``block_s``."""
        wanted = {keys.tail(job_id): position.at for job_id, position in positions.items()}
        with self._connections.guard():
            found = self._connections.blocking.xread(wanted, block=max(1, round(block_s * 1000))) or []
        pieces: list[Piece] = []
        moved: dict[str, Position] = {}
        for key, entries in found:
            job_id = key.decode().removeprefix(keys.tail(""))
            pieces += _pieces(job_id, entries)
            moved[job_id] = Position(entries[-1][0])
        return pieces, moved


# Any: redis-py's answers have no useful types.
def _pieces(job_id: str, entries: Iterable[Any]) -> list[Piece]:
    return [
        Piece(job_id, int(fields[b"token"]), int(fields[b"offset"]), fields[b"data"]) for _, fields in entries if fields
    ]
