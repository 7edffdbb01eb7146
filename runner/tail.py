"""Tells what followed attempts print while they run. Costs nothing while nobody follows.

Whoever follows asks through the runner's inbox (``follow``) again and again; without that it ends after ``FOLLOW_S``.
Secrets are masked over the whole text, and an end that may be the begin of one is held back, so that none goes out in
halves; the rest comes with the record when the attempt ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gevent.event import Event

from bananas import events
from bananas.errors import RedisUnavailable
from bananas.follow import FOLLOW_S, PIECE_BYTES, Follow, Piece
from bananas.redis_client import BLOCK_S
from runner.executor import Running
from runner.service import GreenletService

PERIOD_S: Final = 0.25


@dataclass(slots=True)
class _Tail:
    running: Running
    until_s: float
    #: Bytes printed when it was looked at last, and bytes of the masked text that were told.
    seen: int = 0
    told: int = 0

    def pieces(self) -> list[Piece]:
        """What is new. Changes nothing."""
        if self.running.logs.size_bytes == self.seen:
            return []
        text, claim = self.running.mask.so_far(self.running.logs.text()), self.running.claim
        return [
            Piece(claim.id, claim.token, at, text[at : at + PIECE_BYTES])
            for at in range(self.told, len(text), PIECE_BYTES)
        ]


class LogTeller(GreenletService):
    """See the module. Holds one entry for each followed attempt in flight."""

    name = "tail"

    def __init__(self, on_crash: Callable[[str, BaseException], None], follow: Follow) -> None:
        super().__init__(on_crash)
        self._follow = follow
        self._tails: dict[tuple[str, int], _Tail] = {}
        self._wake = Event()

    def follow(self, running: Running) -> None:
        """Somebody follows this attempt. Never waits."""
        key = (running.claim.id, running.claim.token)
        until_s = time.monotonic() + FOLLOW_S
        if key in self._tails:
            self._tails[key].until_s = until_s
        else:
            self._tails[key] = _Tail(running, until_s)
        self._wake.set()

    def wake(self) -> None:
        """Look whether to stop."""
        self._wake.set()

    def run(self) -> None:
        """Turn after turn while somebody follows; else wait."""
        is_away = False
        while not self.stopping.is_set():
            if not self._tails:
                self._wake.wait(timeout=BLOCK_S)
                self._wake.clear()
                continue
            try:
                self._tell()
                is_away = False
            except RedisUnavailable as e:
                if not is_away:
                    events.TAIL_WAITS(error=e)
                is_away = True
            self.stopping.wait(timeout=PERIOD_S)

    def _tell(self) -> None:
        now_s = time.monotonic()
        # The record of one that is over has everything.
        gone = [key for key, tail in self._tails.items() if tail.running.over or tail.until_s < now_s]
        for key in gone:
            del self._tails[key]
        for tail in list(self._tails.values()):
            size, pieces = tail.running.logs.size_bytes, tail.pieces()
            self._follow.tell(pieces)
            tail.seen = size
            if pieces:
                tail.told = pieces[-1].offset + len(pieces[-1].data)
