"""What a sandbox forbids, met by real code: its error is one that the command line has a hint for."""

from __future__ import annotations

import pytest

from bananas.cli import main
from tests.platform import Platform

pytestmark = [pytest.mark.redis, pytest.mark.docker]

HANDLERS = {
    "module": ("import no_such_package\ndef handle(event, context): pass", "put no_such_package into"),
    "network": (
        "import urllib.request\ndef handle(event, context): urllib.request.urlopen('http://example.com', timeout=5)",
        "code reaches no network but the egress of its pool",
    ),
    "address": (
        "import socket\ndef handle(event, context): socket.create_connection(('192.0.2.1', 80), timeout=5)",
        "code reaches no network but the egress of its pool",
    ),
    "write": ("def handle(event, context): open('out.txt', 'w')", "only /tmp can be written to"),
    "file": ("def handle(event, context): open('data.csv')", "files of the function are beside its handler"),
}


def test_what_a_sandbox_forbids_is_told_with_a_hint(
    platform: Platform, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last line, after the error itself."""
    platform.deploy({name: source for name, (source, _) in HANDLERS.items()})
    monkeypatch.setenv("BANANAS_URL", platform.url)
    for name, (_, told) in HANDLERS.items():
        assert main(["invoke", name]) == 4
        said = capfd.readouterr().err
        assert said.splitlines()[-1].startswith(f"hint: {told}"), said
