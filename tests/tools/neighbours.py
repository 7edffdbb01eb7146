"""Ordinary work beside an attack: jobs at a steady pace on the same runner and pool, each of which must be done.

The promise is that whatever one function does, its neighbours finish all their jobs, none of them tried twice for it.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from bananas.client import Client

PERIOD_S = 0.1
#: Also an attack that is over at once had neighbours.
FEWEST = 3
DEADLINE_S = 30.0

SOURCE = """
import hashlib

def handle(event, context):
    return hashlib.sha256(str(event).encode()).hexdigest()[:8]
"""


class Neighbours:
    """Submits a job of ``function`` every 0.1 s from entry to exit; leaving checks every one of them."""

    def __init__(self, url: str, function: str = "neighbour") -> None:
        self._url = url
        self._function = function
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._submit, daemon=True)
        self._problem: Exception | None = None
        self.ids: list[str] = []
        #: Of the slowest, from its submission to its end.
        self.slowest_ms = 0.0

    def _submit(self) -> None:
        try:
            with Client(self._url, patience_s=0) as client:
                while not self._stop.wait(PERIOD_S) or len(self.ids) < FEWEST:
                    self.ids.append(client.submit(self._function, len(self.ids))["id"])
        except Exception as e:  # told by the block's end
            self._problem = e

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        if kind is not None:
            return  # that is the failure to tell
        assert self._problem is None, self._problem
        assert not self._thread.is_alive()
        with Client(self._url, patience_s=0) as client:
            for job in self.ids:
                self._check(client.job(job, wait_s=DEADLINE_S))

    def _check(self, record: dict[str, Any]) -> None:
        assert record["status"] == "completed", record
        assert [attempt["outcome"] for attempt in record["history"]] == ["ok"], record
        self.slowest_ms = max(self.slowest_ms, record["history"][0]["timings"]["total_ms"])
