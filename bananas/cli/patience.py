"""Tells somebody who waits for a call why there is no answer yet; called by ``bananas invoke``.

Says one sentence on stderr, once, and changes nothing.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Final, Self

import rich_click as click

from bananas.cli.output import waits_for_runner
from bananas.client import Client
from bananas.errors import BananasError
from bananas.units import show_time

#: Longer than a cold start takes.
NOTE_S: Final = 3.0
#: The gateway is asked in the background; the answer to the call does not wait longer for that.
_LEAVE_S: Final = 5.0


class Patience:
    """For the time of a call of ``function``."""

    def __init__(self, gateway: Client, function: str) -> None:
        """``gateway`` is a client of its own, since the other one is busy; whoever made it closes it."""
        self._gateway = gateway
        self._function = function
        self._timer = threading.Timer(NOTE_S, self._tell)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """No note from now on; one that is being made is waited for."""
        self._timer.cancel()
        self._timer.join(_LEAVE_S)

    def _tell(self) -> None:
        try:
            function = self._gateway.function(self._function)
            pools = {pool["name"]: pool for pool in self._gateway.pools()}
            click.echo(f"no answer yet: {why(function, pools[function['spec']['pool']])}", err=True)
        except (BananasError, KeyError) as e:
            click.echo(f"no answer yet, and nothing more is known: {e}", err=True)


def why(function: dict[str, Any], pool: dict[str, Any]) -> str:
    """What a call of the function may wait for, by what the gateway tells of it and its pool."""
    if pool["waits_for_runner"]:
        return waits_for_runner(pool)
    if function["parked"]:
        return (
            f"{function['name']} runs {function['running']} jobs, which is its max_concurrency; "
            f"{function['parked']} wait"
        )
    queued = sum(pool["queued"].values())
    if queued:
        return f"{queued} wait in pool {pool['name']}, where {pool['processing']} run on {pool['runners']} runners"
    return f"nothing waits in pool {pool['name']}, so it runs; it may for {show_time(function['spec']['timeout_ms'])}"
