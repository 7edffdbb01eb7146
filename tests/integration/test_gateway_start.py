"""``python -m gateway`` when something is wrong: one line that says what, and exit code 1."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def start(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Try to start a gateway from some directory; returns once it has ended."""
    return subprocess.run(
        [sys.executable, "-m", "gateway"],
        env={"PATH": "/usr/bin:/bin", "BANANAS_REDIS_URL": "redis://127.0.0.1:1/0", **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_wrong_start_is_one_line_and_exit_code_1(tmp_path, free_port):
    """Without a Redis, on a port in use, with a misspelt setting."""
    with socket.create_server(("127.0.0.1", free_port)):
        ends = {
            "BANANAS_REDIS_URL is not set": start(tmp_path, BANANAS_REDIS_URL=""),
            f"port {free_port} is in use": start(tmp_path, BANANAS_PORT=str(free_port)),
            "did you mean BANANAS_PORT": start(tmp_path, BANANAS_PORTS="1"),
        }
    for said, end in ends.items():
        assert (end.returncode, end.stdout, end.stderr.count("\n")) == (1, "", 1), end.stderr
        assert said in end.stderr
        assert end.stderr.startswith("error: ")
