"""The command line over a stub of the gateway; no network but loopback, no Redis."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bananas.cli import main
from tests.tools.stub_gateway import StubGateway, serving

Cli = Callable[..., SimpleNamespace]


@pytest.fixture
def gateway() -> Iterator[StubGateway]:
    """A gateway on a free port."""
    with serving(StubGateway()) as gateway:
        yield gateway


@pytest.fixture
def bananas(
    gateway: StubGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cli:
    """Runs one command in an empty folder against the gateway; gives code, out and err."""
    for name in [name for name in os.environ if name.startswith("BANANAS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BANANAS_URL", gateway.url)
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: bytes = b"") -> SimpleNamespace:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(args)
        captured = capfd.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run
