"""gunicorn's settings, with the reason for each that is not obvious. Read by ``gateway/__main__.py``."""

# ruff: noqa: N999 - the name that gunicorn gives to such a file

from __future__ import annotations

import gc
import math
from typing import Any

from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from bananas.settings import Settings
from gateway import listen
from gateway.worker import ANSWER_S

_settings = Settings.from_env()


class _Log(Logger):  # type: ignore[misc]
    """gunicorn's own lines take the way of ours (``bananas.logs``)."""

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn, again on SIGHUP."""
        self.cfg = cfg
        self.error_log.propagate = True
        self._access_log_enabled = False


logger_class = _Log

wsgi_app = "gateway.app:from_env()"
bind = [listen.url(_settings).removeprefix("http://")]
backlog = listen.BACKLOG
workers = _settings.worker_count
worker_class = "gateway.worker.Worker"
# Requests that wait cost a greenlet each, so the limit is far above what a process can answer at once.
worker_connections = 4096
# Longer than the usual 60 s of proxies and clients in front, so that it is they who close idle connections.
keepalive = 75
# Requests that are waiting get the rest of the grace to end; ANSWER_S before its end they are told to try again.
graceful_timeout = max(math.ceil(_settings.grace_s), math.ceil(ANSWER_S) + 1)
# As much as it can be told to take: a raw HTTP function may have a long query.
limit_request_line = 8190
# In C where the extra [fast] is installed: it is published as source only, and a bare machine has no compiler.
http_parser = "auto"
# Nobody's X-Forwarded-* is believed.
forwarded_allow_ips = ""
# One line per request costs more than the request; /metrics tells what happens.
accesslog = None
# Its own remote control listens on a socket in the home directory; nothing here uses it.
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    """A process is ready; the last of the first ones says where."""
    # What is loaded by now stays: a full collection looks at it no more, some 25 ms in which nobody would be answered.
    gc.collect()
    gc.freeze()
    if worker.age == worker.cfg.workers:
        processes = "1 process" if worker.age == 1 else f"{worker.age} processes"
        print(f"gateway listening on {listen.url(_settings)} ({processes})", flush=True)


def worker_exit(_server: Any, worker: Any) -> None:
    """A process ends: nothing waits in it any more, and what it counted is told."""
    if worker.booted:
        worker.wsgi.extensions["bananas.waiters"].stop()
        worker.wsgi.extensions["bananas.traffic"].stop()
