"""Tells systemd how a service is (``Type=notify`` and the watchdog): one datagram each. Does nothing without systemd.

The protocol is that of sd_notify(3). Called by the runner, the gateway's master and ``bananas up``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from bananas import events


class Notifier:
    """The socket of one service. The variables that name it are taken away, so that no child speaks for us."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        #: An abstract address is written with @ for its NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        pid, usec = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        is_ours = bool(self._address) and pid in ("", str(os.getpid()))
        #: Seconds within which systemd wants to hear from us; None when it does not watch.
        self.watchdog_s = int(usec) / 1e6 if is_ours and usec.isdecimal() and int(usec) else None

    @property
    def is_heard(self) -> bool:
        """True when a systemd wants to know."""
        return bool(self._address)

    def status(self, status: str) -> None:
        """What ``systemctl status`` shows, while the service is not ready."""
        self._send(f"STATUS={status}")

    def ready(self, status: str) -> None:
        """The service serves from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The shutdown has begun."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(1.0)
                out.sendto(message.encode(), self._address)
        except OSError as e:  # systemd decides what that means; the jobs go on
            events.SYSTEMD_NOT_TOLD(message=message.partition("\n")[0], error=e)
