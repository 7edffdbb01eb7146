"""Every execution, written down by whoever executes, independently of the queue: a line at its begin, one at its end.

A line is one write to a file opened for appending, so it survives a SIGKILL that comes right after it. Times are
seconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Execution:
    """One time that a job's code ran."""

    job_id: str
    token: int
    #: The number of the attempt as the code was told; the same again after a loss.
    attempt: int
    runner: str
    nonce: str
    begun_s: float
    ended_s: float | None = None


class Journal:
    """The writing end of one process."""

    def __init__(self, folder: Path, runner: str) -> None:
        self._fd = os.open(folder / f"{runner}.journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def begin(self, job_id: str, token: int, attempt: int) -> str:
        """The code is about to run; returns a nonce that no other execution has."""
        nonce = os.urandom(8).hex()
        self._write(f"B {job_id} {token} {attempt} {nonce} {time.monotonic():.6f}")
        return nonce

    def end(self, nonce: str) -> None:
        """The code has returned or raised."""
        self._write(f"E {nonce} {time.monotonic():.6f}")

    def _write(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")


def read(folder: Path) -> list[Execution]:
    """All executions of all processes, by begin."""
    found: dict[str, Execution] = {}
    for path in sorted(folder.glob("*.journal")):
        for line in path.read_text("ascii").splitlines():
            match line.split(" "):
                case ["B", job_id, token, attempt, nonce, at_s]:
                    found[nonce] = Execution(job_id, int(token), int(attempt), path.stem, nonce, float(at_s))
                case ["E", nonce, at_s]:
                    found[nonce].ended_s = float(at_s)
    return sorted(found.values(), key=lambda e: e.begun_s)
