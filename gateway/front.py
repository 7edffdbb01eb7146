"""What happens around every call, whichever way its request took: the checks before it, its problem when it fails, and
afterwards its id, its line in the log and its place in the counts.

Called by the two ways: ``gateway.direct`` for the calls that are made most, Flask's hooks (``gateway.app``) for the
rest. Decides nothing by itself: each check is where its rule is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bananas import events, logs
from bananas.errors import RedisUnavailable, UnknownFunction
from gateway import hints, problems
from gateway.answers import Answer
from gateway.asked import Asked
from gateway.bodies import TRACE_HEADER
from gateway.traffic import Traffic

Check = Callable[[Asked], None]


class Front:
    """One for each app."""

    def __init__(self, checks: Sequence[Check], traffic: Traffic, names: Callable[[], list[str]]) -> None:
        """``checks`` raise for a request that is not served; ``names`` of functions, for who misspelt one."""
        self._checks = checks
        self._traffic = traffic
        self._names = names

    def check(self, asked: Asked) -> None:
        """Before the call, which must be known by then; raises what the checks raise."""
        logs.bind(request=asked.id, trace=logs.trace_id(asked.header(TRACE_HEADER)))
        for check in self._checks:
            check(asked)

    def problem(self, error: Exception) -> Answer:
        """The answer of a call that raised; an unknown function gets the nearest name that is known."""
        if not isinstance(error, UnknownFunction):
            return problems.of(error)
        try:
            detail, facts = hints.unknown_function(error, self._names())
        except RedisUnavailable as e:
            return problems.of(e)
        return problems.problem(error.code, detail, **facts)

    def finish(self, asked: Asked, status: int, media: str) -> str:
        """After the call; returns the request's id, which belongs into the answer."""
        if media == problems.MEDIA:
            tell = events.REQUEST_FAILED if status == 503 else events.REQUEST_REFUSED
            tell(request=asked.id, method=asked.method, path=asked.path, status=status)
        self._traffic.count(asked.endpoint, status, (time.monotonic() - asked.arrived_s) * 1000)
        return asked.id
