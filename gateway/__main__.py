"""``python -m gateway``: the gateway's master process, which starts and watches the others.

The master is not patched by gevent and imports neither Flask nor Redis; each process it forks does both for itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gunicorn.app.base import Application  # type: ignore[import-untyped]

from bananas import logs
from bananas.errors import BananasError
from bananas.notify import Notifier
from bananas.settings import Settings
from gateway import listen
from gateway.master import Master

if TYPE_CHECKING:
    from flask import Flask

_CONFIG = Path(__file__).with_name("gunicorn.conf.py")


class Server(Application):  # type: ignore[misc]
    """gunicorn with our settings, on a socket that is already open; it reads no other file or variable."""

    def __init__(self, listener_fd: int, notifier: Notifier) -> None:
        self._bind = f"fd://{listener_fd}"
        self._notifier = notifier
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn, again on SIGHUP."""
        self.load_config_from_file(str(_CONFIG))
        self.cfg.set("bind", self._bind)

    def load(self) -> Flask:
        """Called in each process after the fork."""
        from gateway.app import from_env

        return from_env()

    def run(self) -> None:
        """Serve until a signal ends it; does not return."""
        Master(self, self._notifier).run()


def main(argv: list[str]) -> int:
    """Returns the exit code: 1 when it could not start. Once started, gunicorn ends the process itself (0)."""
    if argv:
        print(f"error: python -m gateway takes no arguments, got {argv}", file=sys.stderr)
        return 2
    try:
        settings = Settings.from_env()
        logs.set_up(settings, "gateway")
        settings.require_redis_url()
        listen.check_exposure(settings)
        listener = listen.bind(settings)
    except BananasError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    Server(listener.detach(), Notifier()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
