"""The trace context of a call reaches its handler, in either language, and none of it the next call."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import framing
from tests.contract.node_host import NodeHost
from tests.contract.shim_host import ShimHost

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def told(host: ShimHost) -> list[object]:
    """What the handler answers with a trace context and then without."""
    host.call_id += 1
    meta = {"job": "j", "attempt": 1, "timeout_ms": 20_000, "traceparent": TRACE}
    host.send(framing.INVOKE, host.call_id, meta, b"null")
    return [host.answer().json(), host.call().json()]


def test_python_has_it_as_an_attribute_of_the_context() -> None:
    """None without one."""
    with ShimHost("def handle(event, context): return context.traceparent") as host:
        assert told(host.ready()) == [TRACE, None]


@pytest.mark.docker
def test_node_has_it_as_a_property_of_the_context(node: Path) -> None:
    """null without one."""
    with NodeHost(node, "export function handle(event, context) { return context.traceparent; }") as host:
        assert told(host.ready()) == [TRACE, None]
