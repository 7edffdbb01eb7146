"""The units of deploy/systemd, as systemd itself reads and judges them, and what a service tells it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas.notify import Notifier
from bananas.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/systemd"
UNITS = ["bananas-gateway.service", "bananas-runner@.service", "bananas.service"]
#: Of systemd's scale from 0 (closed) to 10; a service without any hardening has 9.6.
MOST_EXPOSED = 2.0
TIMEOUT_S = 60


@pytest.fixture
def analyze() -> str:
    path = shutil.which("systemd-analyze")
    if path is None:
        if os.environ.get("CI") and not os.environ.get("BANANAS_ALLOW_SKIP"):
            pytest.fail("no systemd-analyze on PATH; apt-get install systemd", pytrace=False)
        pytest.skip("no systemd-analyze on PATH; apt-get install systemd")
    return path


def instance(unit: str) -> str:
    return unit.replace("@.", "@gpu.")


def verify(analyze: str, folder: Path, unit: str, text: str) -> list[str]:
    """What systemd has against a unit's text; only the program's place is this machine's."""
    text = re.sub(r"/opt/bananas/bin/(python|bananas)", sys.executable, text)
    # The engine's own unit need not be on the machine that runs the tests.
    (folder / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    (folder / unit).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--recursive-errors=yes", "--man=no", str(folder / instance(unit))],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    about = [line for line in done.stderr.splitlines() if "bananas" in line]
    return about or ([done.stderr] if done.returncode else [])


def is_closed(analyze: str, folder: Path, unit: str, text: str) -> bool:
    """Whether systemd's judgement of what a service could do stays below the threshold."""
    (folder / instance(unit)).write_text(text)
    threshold = str(round(MOST_EXPOSED * 10))
    done = subprocess.run(
        [analyze, "security", "--offline=yes", f"--threshold={threshold}", str(folder / instance(unit))],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "exposure level" in done.stdout, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_every_line_and_the_units_are_closed(analyze: str, tmp_path: Path, unit: str):
    """Unknown keys and wrong values are errors here."""
    text = (FOLDER / unit).read_text()
    assert verify(analyze, tmp_path, unit, text) == []
    assert is_closed(analyze, tmp_path, unit, text)


def test_a_broken_or_open_unit_would_be_noticed(analyze: str, tmp_path: Path):
    """The two checks above can fail: by a misspelt key, a wrong value, a program that is not there, missing walls."""
    unit = "bananas-runner@.service"
    text = (FOLDER / unit).read_text()
    for right, wrong, says in (
        ("WatchdogSec=30", "WatchdogSecs=30", "WatchdogSecs"),
        ("WatchdogSec=30", "WatchdogSec=soon", "soon"),
        ("/opt/bananas/bin/python", "/opt/bananas/bin/pythom", "pythom"),
    ):
        broken = text.replace(right, wrong)
        assert says in " ".join(verify(analyze, tmp_path, unit, broken)), wrong
    assert not is_closed(analyze, tmp_path, unit, text.partition("NoNewPrivileges")[0])


def seconds(unit: str, key: str) -> float:
    found = re.search(rf"^{key}=(\d+)$", (FOLDER / unit).read_text(), re.MULTILINE)
    assert found, key
    return float(found[1])


def test_a_stop_is_longer_than_the_longest_grace():
    """systemd must not kill what is still handing its jobs back."""
    grace_s = Settings().grace_s
    assert seconds("bananas-gateway.service", "TimeoutStopSec") > grace_s + 10
    assert seconds("bananas-runner@.service", "TimeoutStopSec") > grace_s + 20
    assert seconds("bananas.service", "TimeoutStopSec") > grace_s + 25 + 10


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        sock.settimeout(5)
        yield sock


def test_a_service_tells_systemd_how_it_is(listener: socket.socket):
    """Ready, alive, stopping; and no child can speak in its name."""
    environ = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert environ == {}
    assert notifier.watchdog_s == 30
    notifier.ready("serves gpu")
    notifier.alive()
    notifier.stopping()
    told = [listener.recv(1000) for _ in range(3)]
    assert told == [b"READY=1\nSTATUS=serves gpu", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_systemd_nothing_is_told_and_a_lost_socket_ends_nothing(tmp_path: Path, caplog):
    """The jobs matter more."""
    silent = Notifier({"WATCHDOG_USEC": "1000"})
    assert silent.watchdog_s is None
    silent.ready("x")
    assert caplog.records == []
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()
    assert "systemd was not told WATCHDOG=1" in caplog.text


def test_the_watchdog_of_another_process_is_not_ours():
    """systemd names the process that it watches."""
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s is None
