"""Notice that a client has gone while its request waits. Reads nothing from its connection.

The hub watches the client's socket: it becomes readable at a hang-up, or when the client sends its next request
early. ``poll`` tells the two apart without taking a byte. After an early request that connection is not watched any
more (the readiness would never end), so its hang-up is noticed only when the answer is written.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent import get_hub
from gevent.monkey import get_original

_READ = 1
#: Set when the peer will send nothing more, also with bytes still to be read; other systems say POLLHUP for that.
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL
# The real one: it is asked for the state of this moment, so it never waits.
_poll = get_original("select", "poll")


class ClientGone(Exception):
    """The client closed its connection before the answer."""


def has_hung_up(fd: int) -> bool:
    """True when the peer of a connected socket has closed it, or its sending half."""
    poll = _poll()
    poll.register(fd, _GONE)
    return bool(poll.poll(0))


@contextmanager
def watched(environ: dict[str, Any], on_gone: Callable[[], None]) -> Iterator[None]:
    """While in the block, ``on_gone`` is called once (in the hub: it must not wait) if the client hangs up."""
    connection = environ.get("gunicorn.socket")
    if connection is None:  # another server, or Flask's test client
        yield
        return
    fd = connection.fileno()
    watcher = get_hub().loop.io(fd, _READ)

    def look() -> None:
        watcher.stop()
        if has_hung_up(fd):
            on_gone()

    watcher.start(look)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()
