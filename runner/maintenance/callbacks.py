"""Tells the ends of jobs to their ``callback_url``. Every runner does; a lease in Redis gives each to one at a time.

A receiver that does not answer with 2xx is told again, later and later, until ``LIMITS.callback_tries`` or a day are
over; 410 says that it wants no more. A runner that dies in the middle leaves the end to the next: at least once, with
one id. Nothing here delays a job: its end is settled before this hears of it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from random import SystemRandom
from typing import Final

from gevent.pool import Pool

from bananas import events, webhooks
from bananas.callbacks import Callbacks, Delivery, Verdict
from bananas.errors import RedisUnavailable
from bananas.redis_client import BLOCK_S
from runner.service import GreenletService
from runner.webhook import Forbidden, Sender, Unanswered

#: Deliveries at a time, in one runner; and of those to one receiver that did not answer last time.
_AT_ONCE: Final = 32
_TO_SILENT: Final = 4
#: Longer than a try takes. A runner that dies leaves its deliveries to the others after this long.
LEASE_MS: Final = 60_000
#: Wait before the second try; each further one is twice as long, up to an hour, and a little by chance.
_BASE_S: Final = 5.0
_CAP_S: Final = 3600.0
_JITTER: Final = 0.1
#: The receiver is gone and wants no more.
_GONE: Final = 410
#: Receivers that are remembered as silent.
_SILENT: Final = 1000


def backoff_ms(number: int, chance: float) -> int:
    """Until the next try, after the ``number``-th; ``chance`` is from 0 to 1.

    >>> [backoff_ms(number, 0) for number in (1, 2, 3, 15)]
    [5000, 10000, 20000, 3600000]
    """
    wait_s = min(_CAP_S, math.ldexp(_BASE_S, min(number, 30) - 1))
    return round(wait_s * (1 + _JITTER * chance) * 1000)


class CallbackTeller(GreenletService):
    """Waits for ends, and sends up to 32 at a time."""

    name = "callbacks"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        callbacks: Callbacks,
        sender: Sender,
        signing_keys: tuple[bytes, ...],
        lease_ms: int = LEASE_MS,
    ) -> None:
        super().__init__(on_crash)
        self._callbacks = callbacks
        self._sender = sender
        self._keys = signing_keys
        self._lease_ms = lease_ms
        self._pool = Pool(_AT_ONCE)
        self._random = SystemRandom()
        #: Receivers whose last try got no answer, oldest first; and tries that run, by receiver.
        self._silent: dict[str, None] = {}
        self._running: Counter[str] = Counter()

    def stop(self, deadline_s: float) -> None:
        """What is on its way is left to the others, after its lease."""
        super().stop(deadline_s)
        self._pool.kill(timeout=deadline_s)

    def run(self) -> None:
        """Take what is due, wait for more."""
        while not self.stopping.is_set():
            try:
                self._turn()
            except RedisUnavailable as e:
                events.CALLBACKS_WAIT(error=e)
                self.stopping.wait(timeout=1.0)

    def _turn(self) -> None:
        if not self._pool.free_count():
            self._pool.wait_available(timeout=BLOCK_S)
            return
        due = self._callbacks.take(self._pool.free_count(), self._lease_ms)
        for delivery in due.deliveries:
            self._pool.spawn(self._guarded_tell, delivery)
        if not due.deliveries and due.next_ms != 0:
            self._callbacks.wait(BLOCK_S if due.next_ms is None else min(BLOCK_S, due.next_ms / 1000))

    def _guarded_tell(self, delivery: Delivery) -> None:
        try:
            self._tell(delivery)
        except RedisUnavailable as e:
            # Whoever takes it after its lease sends it again.
            events.CALLBACK_UNSETTLED(job=delivery.id, error=e)
        except Exception as e:  # noqa: BLE001 - the top of a greenlet: reported, then the runner ends
            self._on_crash(self.name, e)

    def _tell(self, delivery: Delivery) -> None:
        try:
            place = webhooks.parse_url(delivery.url).place
        except ValueError as e:  # let in by another release
            self._settle(delivery, "?", "never", 0, str(e))
            return
        verdict: Verdict = "again"
        delay_ms, why = backoff_ms(delivery.number, self._random.random()), f"{place} is silent"
        # One that is down must not take all places from the others.
        if place not in self._silent or self._running[place] < _TO_SILENT:
            self._running[place] += 1
            try:
                verdict, delay_ms, why = self._send(delivery, place, delay_ms)
            finally:
                self._running[place] -= 1
                if not self._running[place]:
                    del self._running[place]
        self._settle(delivery, place, verdict, delay_ms, why)

    def _settle(self, delivery: Delivery, place: str, verdict: Verdict, delay_ms: int, why: str) -> None:
        became = self._callbacks.told(delivery, verdict, delay_ms, why)
        if became in ("delivered", "stale"):
            events.CALLBACK_DELIVERED(job=delivery.id, to=place, number=delivery.number, became=became)
        else:
            events.CALLBACK_FAILED(job=delivery.id, to=place, number=delivery.number, became=became, error=why)

    def _send(self, delivery: Delivery, place: str, delay_ms: int) -> tuple[Verdict, int, str]:
        """One try: the verdict, ms until the next, and what went wrong."""
        body = delivery.body()
        headers = webhooks.sign(self._keys, delivery.id, body, int(time.time()))
        try:
            answer = self._sender.post(delivery.url, headers, body)
        except Forbidden as e:
            return "never", 0, str(e)
        except Unanswered as e:
            self._silent[place] = None
            while len(self._silent) > _SILENT:
                del self._silent[next(iter(self._silent))]
            return "again", delay_ms, str(e)
        self._silent.pop(place, None)
        if answer.is_ok:
            return "delivered", 0, ""
        why = f"{place} answered {answer.status}"
        if answer.status == _GONE:
            return "never", 0, why
        if 300 <= answer.status < 400:
            why += ", and redirects are not followed"
        return "again", max(delay_ms, answer.retry_after_s * 1000), why
