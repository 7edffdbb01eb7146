"""The set-up scripts where something is wrong: one line with the fix, an exit code of its own, and nothing changed.

Whole runs on bare machines are in tests/setup. Here the scripts run for real, with a PATH that lacks what is missing.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
TOOLS = "cat cksum date dirname env grep id ls mkdir printf rm sed setsid sh sleep stat tail timeout true uname"
#: An address that cannot be asked without packages, so that no engine of this machine is looked at.
NO_LOOK = "ssh://nowhere"


class Checkout:
    """The scripts in a folder of their own, run with nothing but ``bin`` on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkout"
        self.bin = folder / "bin"
        (self.path / "bananas").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copytree(ROOT / "scripts", self.path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.path)
        shutil.copy(ROOT / "bananas/ports.py", self.path / "bananas")
        for tool in TOOLS.split():
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.program("python3.11", f'exec {sys.executable} "$@"')

    def program(self, name: str, body: str) -> None:
        """A program of that name, which runs these lines of sh."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def be(self, user_id: int) -> None:
        """Let the scripts believe that they run as this user."""
        self.program("id", f'case "$1" in -u) echo {user_id} ;; -un) echo ada ;; *) echo users ;; esac')

    def env(self, **env: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "HOME": str(self.path), "DOCKER_HOST": NO_LOOK, "PYTHON": "python3.11", **env}

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", f"scripts/{script}", *arguments],
            cwd=self.path,
            env=self.env(**env),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )

    def refused(self, code: int, script: str, *arguments: str, **env: str) -> str:
        """Run it, assert that it stops with ``code`` and one line before it changes anything; returns the line."""
        done = self.run(script, *arguments, **env)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done
        assert sorted(path.name for path in self.path.iterdir()) == ["bananas", "pyproject.toml", "scripts"]
        return done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A Unix socket at ``tmp_path / "s"`` that accepts and never answers by itself."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)
        server.settimeout(TIMEOUT_S)
        yield server


def test_unknown_arguments_are_refused(checkout: Checkout) -> None:
    """A misspelt option is named, not ignored."""
    assert "--deb; known are --dev" in checkout.refused(2, "setup", "--deb")
    assert "--all" in checkout.refused(2, "wheels", "--all")
    assert "one folder" in checkout.refused(2, "wheels", "a", "b")
    assert "say what to run" in checkout.refused(2, "run")


@pytest.mark.parametrize("script", ["setup", "wheels"])
def test_help_is_the_head_of_the_script(checkout: Checkout, script: str) -> None:
    """--help tells usage and exit codes, and does nothing else."""
    done = checkout.run(script, "--help")
    assert done.returncode == 0
    assert f"sh scripts/{script}" in done.stdout
    assert "Exit codes: 0" in done.stdout
    assert not (checkout.path / ".bananas").exists()


def test_a_python_that_is_missing_or_too_old_is_named(checkout: Checkout) -> None:
    """The version that was found is said, and how to name another one."""
    assert "PYTHON=/nowhere/python does not run" in checkout.refused(10, "setup", PYTHON="/nowhere/python")
    checkout.program("python3.9", "echo old 3.9.2 /usr/bin/python3.9")
    line = checkout.refused(10, "setup", PYTHON="python3.9")
    assert "found Python 3.9.2 /usr/bin/python3.9; 3.11 or newer is needed" in line
    assert "PYTHON=/path" in line


def test_a_folder_without_wheels_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    """BANANAS_WHEELS that names nothing useful never falls back to an index."""
    assert "not a folder" in checkout.refused(19, "setup", BANANAS_WHEELS=str(tmp_path / "none"))
    assert "holds no wheels" in checkout.refused(19, "setup", BANANAS_WHEELS=str(tmp_path))


def test_an_engine_that_does_not_answer_is_named(checkout: Checkout, tmp_path: Path) -> None:
    """A DOCKER_HOST where nothing listens stops set-up before it installs anything."""
    address = f"unix://{tmp_path}/nobody.sock"
    line = checkout.refused(13, "setup", DOCKER_HOST=address)
    assert f"no engine answers ({address}: No such file or directory)" in line
    assert "unset DOCKER_HOST" in line


def test_something_else_on_the_socket_is_no_engine(tmp_path: Path, listener: socket.socket) -> None:
    """Only a Docker API counts as an engine."""
    command = f". scripts/lib.sh; probe_engine {sys.executable} unix://{tmp_path}/s"
    with subprocess.Popen(["sh", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as asking:
        link, _ = listener.accept()
        with link:
            assert link.recv(100).startswith(b"GET /_ping ")
            link.sendall(b"220 mail.example.com ready\r\n")
        said, _ = asking.communicate(timeout=TIMEOUT_S)
    assert said == "not a Docker API: 220 mail.example.com ready\n"


def test_what_is_missing_comes_as_one_line_to_paste(checkout: Checkout) -> None:
    """An ordinary user gets the exact command: with sudo where there is one, else with su; without apt, the names."""
    checkout.be(1000)
    assert "missing on this system: curl" in checkout.refused(11, "setup")
    checkout.program("apt-get", "exit 9")
    assert "Run: su -c 'apt-get update && apt-get install -y curl'" in checkout.refused(11, "setup")
    checkout.program("sudo", "exit 1")  # one that wants a password
    assert 'Run: sudo sh -c "apt-get update && apt-get install -y curl"' in checkout.refused(11, "setup")


def test_a_failed_apt_has_its_own_code(checkout: Checkout) -> None:
    """What apt said is in the line, the rest in a log."""
    checkout.be(0)
    checkout.program("apt-get", "echo 'E: Unable to locate package: error 404' >&2; exit 100")
    done = checkout.run("setup")
    assert done.returncode == 16
    assert "E: Unable to locate package: error 404; see .bananas/apt.log" in done.stderr
    assert "going to install with apt-get: curl" in done.stdout


def test_a_terminal_is_asked_once_and_may_say_no(checkout: Checkout) -> None:
    """The plan is said first; with a no, nothing is run; with BANANAS_YES=1, nothing is asked."""
    checkout.be(0)
    checkout.program("apt-get", f"echo called >>{checkout.bin}/calls; exit 1")
    code, text = on_terminal(checkout, "n\n")
    assert code == 15, text
    assert text.index("going to install with apt-get: curl") < text.index("go on? [Y/n]")
    assert not (checkout.bin / "calls").exists()
    code, text = on_terminal(checkout, "", BANANAS_YES="1")
    assert code == 16, text
    assert "go on?" not in text
    assert (checkout.bin / "calls").exists()


def on_terminal(checkout: Checkout, answer: str, **env: str) -> tuple[int, str]:
    """Run set-up on a terminal of its own, type the answer; the exit code and all that it wrote."""
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        ["sh", "scripts/setup"], cwd=checkout.path, env=checkout.env(**env), stdin=inside, stdout=inside, stderr=inside
    ) as setup:
        os.close(inside)
        os.write(terminal, answer.encode())
        text = b""
        deadline_s = time.monotonic() + TIMEOUT_S
        while select.select([terminal], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            try:
                text += os.read(terminal, 4096)
            except OSError:  # the last one to hold it has gone
                break
        os.close(terminal)
        return setup.wait(TIMEOUT_S), text.decode()


def test_a_taken_port_stops_the_demo_first(checkout: Checkout) -> None:
    """The line names this process; nothing has been changed for a demo that could not run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = checkout.refused(20, "demo", BANANAS_PORT=str(port))
    assert f"port {port} on 127.0.0.1 is taken by" in line
    assert f"(process {os.getpid()})" in line
    assert "BANANAS_PORT='web' is not valid" in checkout.refused(2, "demo", BANANAS_PORT="web")


def test_down_stops_nothing_that_setup_did_not_start(checkout: Checkout) -> None:
    """Without a record of ours there is nothing to stop, and a recorded id of another program is left alone."""
    assert "nothing to stop" in checkout.run("down").stdout
    (checkout.path / ".bananas").mkdir()
    (checkout.path / ".bananas/dockerd.pid").write_text(f"{os.getpid()}\n")
    assert "is gone already" in checkout.run("down").stdout
    assert not (checkout.path / ".bananas/dockerd.pid").exists()


def of_suite(checkout: Checkout, ran: int, *arguments: str, pytest_code: int = 0) -> subprocess.CompletedProcess[str]:
    """scripts/test in a checkout that is set up, where pytest ends with that code and ``ran`` of 1000 lines ran."""
    (checkout.path / "scripts/setup").write_text("exit 0\n")
    shutil.copytree(ROOT / "tests/tools", checkout.path / "tests/tools", ignore=shutil.ignore_patterns("__pycache__"))
    python = checkout.path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    totals = f'{{"totals": {{"covered_lines": {ran}, "num_statements": 1000}}}}'
    python.write_text(
        f"""#!/bin/sh
case "$*" in
    "-m coverage run "*) exit {pytest_code} ;;
    "-m coverage json "*) echo '{totals}' ;;
    "-m tests.tools.line_coverage") exec {sys.executable} "$@" ;;
esac
"""
    )
    python.chmod(0o755)
    return checkout.run("test", *arguments)


def test_too_few_lines_fail_the_whole_suite(checkout: Checkout) -> None:
    """All tests may pass: below the wanted share the suite fails with a code of its own, and says the figure."""
    done = of_suite(checkout, 939)
    assert done.returncode == 21, done
    assert "line coverage: 93.9 %, 939 of 1000 lines; too low, at least 94 % are wanted" in done.stdout


@pytest.mark.parametrize(
    ("ran", "arguments", "pytest_code"), [(940, [], 0), (10, ["tests/unit"], 0), (10, [], 1), (10, ["-x"], 5)]
)
def test_coverage_hides_no_failure_and_asks_nothing_of_a_part(
    checkout: Checkout, ran: int, arguments: list[str], pytest_code: int
) -> None:
    """With enough lines, for a part of the tests, or where a test failed, the exit code is pytest's."""
    done = of_suite(checkout, ran, *arguments, pytest_code=pytest_code)
    assert done.returncode == pytest_code, done
    assert f"line coverage: {ran / 10} %" in done.stdout
