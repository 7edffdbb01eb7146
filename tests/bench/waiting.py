"""2,000 calls that wait at once in one gateway process: are all answered, and what does it hold meanwhile?"""

from __future__ import annotations

from typing import Final

from bananas import keys
from tests.bench.bench import Bench
from tests.bench.load import closed, request
from tests.bench.memory import children, rss_mb
from tests.bench.table import Row
from tests.platform import Platform, until

#: What occupies the sandboxes of the pool while the calls come.
_HOLD: Final = "import time\ndef handle(event, context):\n    time.sleep(event)\n"
_ECHO: Final = "def handle(event, context):\n    return event\n"
_SANDBOXES: Final = 4


def waiting(bench: Bench) -> list[Row]:
    """2,000 calls at once in one gateway process, all waiting before the first is answered"""
    calls = bench.options.n(2000, 100)
    hold_s = bench.options.n(12, 3)
    platform = bench.platform(BANANAS_GATEWAY_WORKERS="1")
    platform.runner()
    pools = f"pools:\n  busy: {{concurrency: {_SANDBOXES}}}"
    platform.deploy({"hold": _HOLD, "echo": _ECHO}, "    pool: busy", pools)
    before_mb = _gateway_mb(platform)
    for _ in range(_SANDBOXES):
        platform.client.submit("hold", hold_s)
    until(lambda: platform.queue.counts().leased == _SANDBOXES, 30.0, "all sandboxes to be busy")
    held: list[float] = []

    def all_begun() -> None:
        until(lambda: _enqueued(platform) >= calls, 60.0, f"{calls} calls to wait")
        if platform.connections.commands.hget(keys.COUNTERS, "outcome:echo:ok"):
            raise SystemExit(f"the machine is too slow: {calls} calls were not there within {hold_s} s")
        held.append(_gateway_mb(platform))

    sample = closed(platform.port, request("POST", "/functions/echo/invoke", b"1"), calls, calls, on_begun=all_begun)
    row = Row("waiting", f"{calls:,} waiting calls in one gateway process", n=calls, errors=sample.errors, mb=held[0])
    row.ratio, row.reference = held[0] / before_mb, "the same process before"
    return [Row("waiting", "the gateway process before", mb=before_mb), row]


def _enqueued(platform: Platform) -> int:
    return int(platform.connections.commands.hget(keys.COUNTERS, "enqueued:echo") or 0)


def _gateway_mb(platform: Platform) -> float:
    """Of the process that serves, without its master."""
    [gateway] = [process for process in platform.processes if process.name.startswith("gateway")]
    return max(rss_mb(pid) for pid in children(gateway.popen.pid))
