"""What docker-compose.yml runs inside a container to ask whether it works: ``healthcheck.py gateway|runner|mail``.

gateway: /readyz answers 200, so jobs can be taken and kept. runner: the list of live runners in Redis has one of this
host name, so it runs and reaches Redis. mail: the sink greets. Changes nothing. Exit code: 0 healthy, 1 not, and why
on stderr, where ``docker inspect`` finds it; 2 for other arguments.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from contextlib import closing

#: Shorter than the timeout of the checks in docker-compose.yml, so that the reason is still told.
TIMEOUT_S = 4.0
PORT = 8080
MAIL_PORT = 2525


def gateway() -> str:
    """Why it is not ready, or "" when it is."""
    with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(2000).decode(errors="replace")
    return "" if answer.status == 200 else f"/readyz answered {answer.status}: {body}"


def runner() -> str:
    """Why it does not count as live, or "" when it does."""
    from bananas.redis_client import Connections
    from bananas.registry import Registry

    host = os.uname().nodename
    with closing(Connections(os.environ["BANANAS_REDIS_URL"])) as connections:
        live = [info.host for info in Registry(connections).runners()]
    return "" if host in live else f"no live runner says that its host is {host}; live are {live}"


def mail() -> str:
    """Why the sink does not take mail, or "" when it does."""
    with socket.create_connection(("127.0.0.1", MAIL_PORT), TIMEOUT_S) as server:
        greeting = server.recv(512)
        server.sendall(b"QUIT\r\n")
    return "" if greeting.startswith(b"220 ") else f"the mail sink said {greeting!r}"


CHECKS = {"gateway": gateway, "runner": runner, "mail": mail}


def main(argv: list[str]) -> int:
    """See the module."""
    if len(argv) != 1 or argv[0] not in CHECKS:
        print(f"usage: healthcheck.py {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    try:
        problem = CHECKS[argv[0]]()
    except Exception as e:  # noqa: BLE001 - whatever it is, it is the answer
        problem = f"{type(e).__name__}: {e}"
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
