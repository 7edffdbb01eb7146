"""Run the calls of README.md against a fresh stack, and check every answer. ``make demo`` calls it after set-up.

The commands are the fenced ``sh`` blocks that follow ``<!-- demo -->``, run exactly as written but for the port and
``{job-id}``, the id that the latest ``POST /jobs`` answered. Exit code 0: every call answered with a 2xx status and
every job asked for was completed. Everything it starts is stopped. BANANAS_PORT chooses another port than 8080.
"""

from __future__ import annotations

import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bananas.errors import BananasError
from bananas.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
#: What the README writes.
README_URL = "http://localhost:8080"
#: From nothing to deployed functions; a cold machine reads images and packages from disk first.
START_S = 120.0
STOP_S = 90.0
CALL_S = 90.0
#: The mail is in the log before its job is over; this is for the log's way through the pipe.
MAIL_S = 5.0
LOG_LINES = 2000
TAIL_LINES = 40
#: Sockets of sandboxes lie below the state directory, and a socket's path has 107 bytes.
STATE_BYTES = 60
#: Settings that the demo leaves to its user; all others could point it at a Redis or a directory in use.
KEPT_SETTINGS = ("BANANAS_PORT", "BANANAS_PYTHON_IMAGE", "BANANAS_LOG_LEVEL")

_BLOCK = re.compile(r"<!-- demo -->\s*\n```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


class DemoFailed(Exception):
    """A call did not answer as the README promises; the message is the one line to show."""


def commands(readme: str) -> list[str]:
    """Every command of the marked blocks, in order; a backslash at a line's end joins it with the next one."""
    blocks = [block.replace("\\\n", " ") for block in _BLOCK.findall(readme)]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


class Log:
    """The last lines of the stack, and a way to wait for one. Written by the stack's thread."""

    def __init__(self) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._news = threading.Condition()

    def emit(self, line: str) -> None:
        """Take one line."""
        with self._news:
            self._lines.append(line)
            self._news.notify_all()

    def wait_for(self, part: str, timeout_s: float) -> str | None:
        """The newest line with ``part`` in it, or None when there is none within that time."""

        def found() -> str | None:
            return next((line for line in reversed(self._lines) if part in line), None)

        with self._news:
            return self._news.wait_for(found, timeout_s)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines."""
        with self._news:
            return "\n".join(list(self._lines)[-lines:])


class DemoStack:
    """A dev stack in a thread of its own; a context manager that stops it."""

    def __init__(self, state: Path, environ: dict[str, str], manifest: Path = ROOT / "bananas.yaml") -> None:
        """``state`` holds its data. Raises BananasError for a wrong setting."""
        self.log = Log()
        self.stack = Stack("dev", manifest, {**environ, "BANANAS_STATE_DIR": str(state)}, self.log.emit)
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="stack")

    def _run(self) -> None:
        try:
            self.stack.run()
        except BananasError as e:
            self.problem = str(e)
        else:
            self.problem = self.stack.supervisor.problem

    def __enter__(self) -> Self:
        """Start it; returns at once (see ``wait_live``)."""
        self._thread.start()
        return self

    def wait_live(self) -> None:
        """Return once the first functions can be called; raises DemoFailed when that does not come."""
        if not self.stack.live.wait(START_S):
            raise DemoFailed(f"the stack was not ready within {START_S:g} s")
        if self.stack.deploy_status != 0:
            if not self.stack.supervisor.ready.is_set():  # the run is over: its thread ends and says why
                self._thread.join(STOP_S)
            said = self.log.wait_for("| error: ", 0) or f"status {self.stack.deploy_status}"
            raise DemoFailed(self.problem or f"the deploy did not work: {said.partition('| error: ')[2] or said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.stop()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            self.stack.stop()  # the second time kills
            self._thread.join(STOP_S)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answered."""

    #: HTTP status; None when the command was not curl.
    status: int | None
    body: str


class Session:
    """Runs the commands one after the other and remembers the latest job."""

    def __init__(self, url: str, home: Path) -> None:
        """``home`` is an existing folder for curl's settings."""
        self._url = url
        self._job = ""
        #: Seconds of the monotonic clock at which the first result was there; None before that.
        self.first_result_s: float | None = None
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "CURL_HOME": str(home),  # so that the commands can stay as they are in the README
            "BANANAS_URL": url,
            "no_proxy": "localhost,127.0.0.1",
        }
        (home / ".curlrc").write_text(f'silent\nshow-error\nmax-time = {CALL_S:g}\nwrite-out = "\\n%{{http_code}}"\n')

    def expand(self, command: str) -> str:
        """The command for this stack and the latest job; raises DemoFailed when there is no job yet."""
        if "{job-id}" in command and not self._job:
            raise DemoFailed(f"no POST /jobs came before: {command}")
        return command.replace(README_URL, self._url).replace("{job-id}", self._job)

    def run(self, command: str) -> Answer:
        """Run one command of the README and check its answer; raises DemoFailed."""
        try:
            done = subprocess.run(
                ["sh", "-c", self.expand(command)],
                capture_output=True,
                text=True,
                timeout=CALL_S + 5,
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as e:
            raise DemoFailed(f"no answer within {CALL_S + 5:g} s: {command}") from e
        if done.returncode:
            raise DemoFailed(f"exit code {done.returncode} ({done.stderr.strip()[:500]}): {command}")
        if not command.startswith("curl "):
            answer = Answer(None, done.stdout.strip())
        else:
            body, _, status = done.stdout.rpartition("\n")
            answer = Answer(int(status), body.strip())
        self._check(command, answer)
        return answer

    def _check(self, command: str, answer: Answer) -> None:
        if answer.status is not None and not 200 <= answer.status < 300:
            raise DemoFailed(f"HTTP {answer.status} {answer.body[:500]}: {command}")
        if answer.status == 202:
            self._job = str(_json(command, answer)["id"])
            return
        if "/jobs/{job-id}" in command:
            record = _json(command, answer)
            if record["status"] != "completed":
                raise DemoFailed(f"job {self._job} is {record['status']}, not completed: {record.get('error')}")
        if self.first_result_s is None:
            self.first_result_s = time.monotonic()


def _json(command: str, answer: Answer) -> dict[str, Any]:
    try:
        value = json.loads(answer.body)
    except ValueError as e:
        raise DemoFailed(f"the answer is not JSON ({answer.body[:200]}): {command}") from e
    if not isinstance(value, dict):
        raise DemoFailed(f"the answer is not an object ({answer.body[:200]}): {command}")
    return value


def walk(running: DemoStack, home: Path, say: Callable[[str], None]) -> Session:
    """Run every call of the README against a live stack and show the mail; raises DemoFailed."""
    session = Session(running.stack.url, home)
    for command in commands((ROOT / "README.md").read_text()):
        say(f"\n$ {session.expand(command)}")
        say(session.run(command).body)
    mail = running.log.wait_for("mail received: ", MAIL_S)
    if mail is None:
        raise DemoFailed("the mail sink received no mail")
    say(f"\nThe mail that the sink received: {mail.partition('mail received: ')[2]}")
    return session


def main() -> int:
    """Returns the exit code."""
    started_s = time.monotonic()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BANANAS_") or k in KEPT_SETTINGS}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    log = Log()
    try:
        with _folder() as home, DemoStack(Path(home) / "s", environ) as running:
            log = running.log
            print("Starting Redis, a gateway, a runner and a mail sink, then deploying bananas.yaml …", flush=True)
            running.wait_live()
            print(f"Ready {time.monotonic() - started_s:.1f} s after the start, at {running.stack.url}", flush=True)
            session = walk(running, Path(home), lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("demo: interrupted; everything is stopped", file=sys.stderr)
        return 130
    except (DemoFailed, BananasError, OSError) as e:
        if tail := log.tail():
            print(f"--- the last lines of the stack ---\n{tail}\n---", file=sys.stderr)
        print(f"demo failed: {e}", file=sys.stderr)
        return 1
    assert session.first_result_s is not None
    print(f"\nThe first result was there {session.first_result_s - started_s:.1f} s after the start of this script.")
    print("Everything is stopped. `make dev` keeps it running.")
    return 0


def _folder() -> tempfile.TemporaryDirectory[str]:
    """An empty folder that the engine sees at the same path; removed with all that is in it."""
    base = ROOT / ".bananas"
    base.mkdir(exist_ok=True)
    is_short = len(os.fsencode(base)) <= STATE_BYTES
    return tempfile.TemporaryDirectory(prefix="demo-", dir=base if is_short else None, ignore_cleanup_errors=True)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - the signature is signal's
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
