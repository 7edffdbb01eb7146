"""gunicorn's master as systemd sees it: ready once a process of ours takes jobs, alive while its loop comes round.

A process that hangs is killed and replaced by the master (gunicorn's ``timeout``), a master that hangs by systemd's
watchdog. Decides when that is told; without systemd it does nothing. Not patched by gevent; called by ``__main__.py``.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, Final

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]

from bananas.notify import Notifier

#: For one look at ``/readyz``; the master hears of signals only afterwards.
LOOK_S: Final = 5.0


class Master(Arbiter):  # type: ignore[misc]
    """The process that starts and watches the others. gunicorn calls each method here from its one loop."""

    def __init__(self, app: Any, notifier: Notifier) -> None:
        super().__init__(app)
        self._notifier = notifier
        self._is_ready = False
        self._fed_at_s = 0.0

    def murder_workers(self) -> None:
        """Once in a second."""
        super().murder_workers()
        self._feed()
        if self._notifier.is_heard and not self._is_ready:
            self._look()

    def reap_workers(self) -> None:
        """Ten times in a second while a reload or a stop waits for processes; the loop stands still then."""
        super().reap_workers()
        self._feed()

    def stop(self, graceful: bool = True) -> None:
        """Once, when the shutdown begins."""
        self._notifier.stopping()
        super().stop(graceful)

    def _feed(self) -> None:
        now_s = time.monotonic()
        if self._notifier.watchdog_s and now_s - self._fed_at_s >= self._notifier.watchdog_s / 4:
            self._fed_at_s = now_s
            self._notifier.alive()

    def _look(self) -> None:
        """Ask our own address, as a client would: the answer of a process that has reached Redis."""
        problem = _not_ready(self.LISTENERS[0].getsockname())
        if problem:
            self._notifier.status(problem)
        else:
            self._is_ready = True
            self._notifier.ready(f"serves {self.LISTENERS[0]} with {len(self.WORKERS)} processes")


def _not_ready(address: tuple[Any, ...]) -> str:
    """Why ``/readyz`` at this address does not say that jobs are taken; empty when it does."""
    connection = http.client.HTTPConnection(address[0], address[1], timeout=LOOK_S)
    try:
        connection.request("GET", "/readyz", headers={"Host": "localhost"})
        answer = connection.getresponse()
        body = answer.read()
        return "" if answer.status == 200 else f"takes no jobs: {json.loads(body)['detail']}"
    except (OSError, http.client.HTTPException, ValueError, KeyError) as e:
        return f"no answer to /readyz yet ({type(e).__name__})"
    finally:
        connection.close()
