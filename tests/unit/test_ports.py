"""Who has a port: named when it can be seen, and always with a way out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import ports
from bananas.errors import ConfigError

MODULE = Path(ports.__file__)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(MODULE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/")


def test_a_free_port_has_no_problem(free_port: int) -> None:
    """Nothing is said about a port that can be used."""
    assert ports.taken("127.0.0.1", free_port) is None
    assert ports.problem("127.0.0.1", free_port) is None
    ports.check_port("127.0.0.1", ports.free_port())


def test_a_taken_port_names_the_process_and_the_way_out(taken: int) -> None:
    """The line holds the program, its process id and a port that is free."""
    said = ports.problem("127.0.0.1", taken)
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert said is not None
    with pytest.raises(ConfigError, match=r"is taken by .*; stop it"):
        ports.check_port("127.0.0.1", taken)
    assert f"port {taken} on 127.0.0.1 is taken by {name} (process {os.getpid()}); stop it" in said
    other = int(said.rpartition("BANANAS_PORT=")[2])
    assert other != taken
    assert ports.taken("127.0.0.1", other) is None


def test_a_process_that_listens_on_ipv6_is_named_too() -> None:
    """A listener on :: has the port of 127.0.0.1 as well."""
    try:
        server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as e:
        pytest.skip(f"no IPv6 here: {e}")
    with server:
        assert f"(process {os.getpid()})" in ports.holder(server.getsockname()[1])


def test_a_process_that_cannot_be_seen_is_told_by_its_user(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to look into a process, its user and the command that names it are said."""
    monkeypatch.setattr(ports, "_sockets", lambda: iter(()))
    assert f"'sport = :{taken}'" in ports.holder(taken)
    assert ports.holder(taken).startswith("a process of user ")


def test_an_address_that_is_not_here_is_no_taken_port(free_port: int) -> None:
    """Another refusal than a taken port keeps the kernel's words."""
    said = ports.problem("192.0.2.77", free_port)
    assert said is not None
    assert "cannot be used (Cannot assign requested address)" in said


def test_the_module_answers_before_anything_is_installed(taken: int, free_port: int) -> None:
    """Run as a file by a bare interpreter: 0 for a free port, 20 and one line for a taken one, 2 for no port."""
    assert ask(str(free_port)).returncode == 0
    refused = ask(str(taken))
    assert refused.returncode == ports.TAKEN_EXIT
    assert f"(process {os.getpid()})" in refused.stderr
    assert refused.stderr.count("\n") == 1
    for wrong in ("", "0", "65536", "http"):
        assert ask(wrong).returncode == 2
        assert "BANANAS_PORT=" in ask(wrong).stderr
