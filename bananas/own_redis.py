"""Our Redis as a part of the supervisor: where it listens, how it starts and stops; ``bananas.embedded`` does it."""

from __future__ import annotations

import os
from pathlib import Path

from bananas.embedded import EmbeddedRedis
from bananas.ports import free_port, taken
from bananas.settings import LIMITS

#: The first start reads what the last one left in its append-only file.
REDIS_START_S = 30.0
REDIS_STOP_S = 10.0


class OwnRedis:
    """Our Redis as a part of the supervisor; it logs to a file in its data directory."""

    name = "redis"
    start_s = REDIS_START_S
    stop_s = REDIS_STOP_S
    output = None

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        """On ``port`` of 127.0.0.1 if it is not 0 and free; else on a Unix socket that only this user can open, or on
        a free port when its path is too long.
        """
        unix_socket = data_dir.absolute() / "redis.sock"
        if port and taken("127.0.0.1", port) is None:
            self.server = EmbeddedRedis(data_dir, port=port)
        elif len(os.fsencode(unix_socket)) <= LIMITS.socket_path_bytes:
            self.server = EmbeddedRedis(data_dir, unix_socket=unix_socket)
        else:
            self.server = EmbeddedRedis(data_dir, port=free_port())

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.server.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.server.start(self.start_s)

    def saw(self, line: str) -> None:
        """It prints nothing."""

    def is_ready(self) -> bool:
        """``start`` has waited for that."""
        return True

    def poll(self) -> int | None:
        """None while it runs."""
        return self.server.poll()

    def terminate(self) -> None:
        """Let it write what is pending, and wait for that."""
        self.server.stop(self.stop_s)

    def kill(self) -> None:
        """End it at once."""
        if self.server.pid is not None:
            self.server.kill()
