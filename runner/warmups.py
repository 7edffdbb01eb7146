"""Starts and binds the sandboxes that ``min_warm`` asks for, behind the attempts that wait.

One at a time in each pool: loading code takes a core, and attempts need it more. The pool decides how many are missing
and takes in those that are ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
from gevent.lock import BoundedSemaphore

from bananas import events
from bananas.errors import BananasError
from bananas.protocols import Binding, HandlerLoadError
from runner.gate import Gate
from runner.masking import Mask
from runner.reasons import EndReason
from runner.slot import Slot, Wish
from runner.supply import Supply


class WarmUps:
    """Those of one pool."""

    def __init__(
        self,
        gate: Gate,
        supply: Supply,
        is_wanted: Callable[[Wish], bool],
        load: Callable[[Slot, Binding, float, Callable[[bytes], None]], float],
        on_ready: Callable[[Slot, float], None],
        on_failure: Callable[[Slot, EndReason], None],
    ) -> None:
        """``is_wanted`` is asked when its turn has come; every slot that gets a sandbox ends in one of the last two.
        ``on_ready`` hears how many ms it took.
        """
        self._gate = gate
        self._supply = supply
        self._is_wanted = is_wanted
        self._load = load
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._turn = BoundedSemaphore(1)
        #: Under way or waiting for their turn.
        self.slots: list[Slot] = []
        self.greenlets: set[gevent.Greenlet[..., None]] = set()

    def start(self, wish: Wish) -> None:
        """Begin one more."""
        slot = Slot(wish.key, wish.binding.function, wish.binding.version, reuse=wish.reuse)
        self.slots.append(slot)
        greenlet = gevent.spawn(self._run, slot, wish)
        self.greenlets.add(greenlet)
        greenlet.link(self.greenlets.discard)

    def interrupt(self) -> None:
        """At shutdown: whatever is being bound ends now."""
        for slot in self.slots:
            if slot.sandbox is not None:
                slot.sandbox.interrupt()

    def _run(self, slot: Slot, wish: Wish) -> None:
        began = time.monotonic()
        try:
            with self._turn:
                if not self._is_wanted(wish):
                    return
                self._gate.enter(is_spare=True)
                try:
                    self._supply.make_into(slot, wish.profile)
                finally:
                    self._gate.leave(is_spare=True)
                # What the code prints while it is loaded belongs to no job.
                self._load(slot, wish.binding, wish.init_timeout_s, lambda _: None)
        except Exception as e:  # noqa: BLE001 - whatever it is, the slot must be given back
            is_defect = not isinstance(e, BananasError | HandlerLoadError | TimeoutError)
            said = Mask(wish.binding.secrets).words(str(e))
            events.MIN_WARM_FAILED(e if is_defect else None, function=slot.function, pool=wish.profile.pool, error=said)
            self._on_failure(slot, EndReason.FAILED_LOAD)
        else:
            self._on_ready(slot, (time.monotonic() - began) * 1000)
        finally:
            self.slots.remove(slot)
