"""``egress`` from inside a real sandbox: what is listed is reached, and nothing else, in whatever way it is tried."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

INSIDE = """
import http.client, json, os, socket, urllib.error, urllib.request

def attempt(action, *args):
    try:
        return action(*args)
    except OSError as e:
        reason = getattr(e, "reason", e)
        return type(reason).__name__ if isinstance(reason, OSError) else str(reason)
    except http.client.HTTPException as e:
        return type(e).__name__

def connect(host, port):
    socket.create_connection((host, port), timeout=2).close()
    return "connected"

def fetch(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()

def relay(target):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect("/run/bananas/e")
        sock.sendall(json.dumps({"target": target}).encode() + b"\\n")
        return sock.recv(500).decode()

def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (host, port))
        return "sent"

def handle(event, context):
    own = socket.gethostname()
    return {"answers": [attempt(globals()[do], *args) for do, *args in event], "own": own,
            "interfaces": sorted(os.listdir("/sys/class/net"))}
"""


class Web(http.server.BaseHTTPRequestHandler):
    """Says hello, redirects to where the path says, or sends without end."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/endless":
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        """Not to stderr."""


@contextmanager
def web(address: str = "127.0.0.1") -> Iterator[int]:
    """A web server of this machine; gives its port."""
    with http.server.ThreadingHTTPServer((address, 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(5)


@pytest.fixture(scope="module")
def listed() -> Iterator[int]:
    """The port of a server that the pool lists."""
    with web() as port:
        yield port


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo, listed: int) -> Iterator[Platform]:
    """A pool with a few targets, two functions in it, and a small limit of bytes."""
    with Platform(empty_redis, BANANAS_LEASE_S="5", BANANAS_GRACE_S="5", BANANAS_EGRESS_MB="1") as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        pools = (
            f'pools:\n  out: {{egress: ["web=127.0.0.1:{listed}", "127.0.0.1:{listed}", "no-such-name.invalid:80"], '
            "concurrency: 4}"
        )
        settings = "    pool: out\n    timeout: 20s\n    retries: 0"
        platform.deploy({"wide": INSIDE}, settings, pools)
        platform.deploy({"narrow": INSIDE}, f'{settings}\n    egress: ["web:{listed}"]', pools)
        yield platform


def ask(app: Platform, function: str, *steps: list[Any]) -> list[Any]:
    """What became of each step inside."""
    seen = json.loads(app.client.invoke(function, list(steps), timeout_s=30))
    assert seen["interfaces"] == ["lo"]
    return list(seen["answers"])


def audited(app: Platform, verdict: str, job: str) -> list[dict[str, Any]]:
    """What the runner logged of a job's connections with that verdict."""
    told = app.processes[1].events("egress.connection")
    return [event for event in told if event["verdict"] == verdict and event.get("jobs") == job]


def test_an_unmodified_client_reaches_a_listed_name_and_its_job_is_in_the_audit_log(app: Platform, listed: int) -> None:
    """The name is the pool's own word for a private address; the line says who, where to, how much, and the verdict."""
    record = app.finished(app.client.submit("wide", [["fetch", f"http://web:{listed}/"]])["id"])
    assert record["result"]["answers"] == ["hello"]
    (told,) = until(lambda: audited(app, "ok", record["id"]), 30, "the audit line")
    expected = {"pool": "out", "function": "wide", "target": f"web:{listed}", "address": "127.0.0.1"}
    assert expected.items() <= told.items()
    assert re.fullmatch(r"\w+", told["sandbox"])
    assert 10 <= told["sent_bytes"] < 1000
    assert 10 <= told["received_bytes"] < 1000
    assert told["ms"] >= 0
    assert "reason" not in told


def test_a_function_reaches_less_than_its_pool_where_it_says_so(app: Platform, listed: int) -> None:
    """And learns why from its log, as from the connection that breaks."""
    steps = [["fetch", f"http://web:{listed}/"], ["fetch", f"http://127.0.0.1:{listed}/"]]
    assert ask(app, "wide", *steps) == ["hello", "hello"]
    record = app.finished(app.client.submit("narrow", steps)["id"])
    good, bad = record["result"]["answers"]
    assert (good, bad) in (("hello", "ConnectionResetError"), ("hello", "RemoteDisconnected"))
    why = f"bananas: egress to 127.0.0.1:{listed}: the target is not in the egress list of function 'narrow'"
    assert why in record["history"][0]["logs"]


def test_nothing_else_is_reached_in_any_way(app: Platform, listed: int, redis_server: str) -> None:
    """Redis, the gateway, this machine and its other ports, metadata addresses, the internet, by IPv6 as well: neither
    directly, nor by a redirect of a listed server, nor by UDP, nor by asking the relay itself.
    """
    redis = int(redis_server.rsplit(":", 1)[1].split("/")[0])
    own = host_address()
    with web("0.0.0.0") as other:
        targets = [
            *([host, port] for host in ("127.0.0.1", own) for port in (redis, app.port, other)),
            *([host, 80] for host in ("169.254.169.254", "169.254.170.2", "172.17.0.1", "10.0.0.1", "1.1.1.1")),
            *([host, 80] for host in ("::1", "fe80::1", "fd00:ec2::254", "2606:4700::1111")),
            ["127.66.0.99", listed],
        ]
        direct = ask(app, "wide", *(["connect", *target] for target in targets))
        assert set(direct) <= {"ConnectionRefusedError", "OSError"}, dict(zip(map(str, targets), direct, strict=True))
        urls = [f"http://{host}:{port}/" for host, port in targets if ":" not in str(host)]
        sent = ask(app, "wide", *(["fetch", f"http://web:{listed}/to/{url}"] for url in urls))
        assert set(sent) <= {"ConnectionRefusedError", "OSError"}, dict(zip(urls, sent, strict=True))
        asked = ask(app, "wide", *(["relay", f"{host}:{port}"] for host, port in targets if host != "127.0.0.1"))
        assert set(asked) == {"error the target is not in the pool's egress list\n"}
        assert ask(app, "wide", ["udp", own, other], ["udp", "169.254.169.254", 53]) == ["OSError"] * 2


def test_names_that_lead_nowhere_are_refused_with_the_reason(app: Platform) -> None:
    """Listed, but not in DNS: the code sees a broken connection, its log the reason."""
    record = app.finished(app.client.submit("wide", [["fetch", "http://no-such-name.invalid:80/"]])["id"])
    assert record["result"]["answers"][0] in ("ConnectionResetError", "RemoteDisconnected")
    assert "bananas: egress to no-such-name.invalid:80: the name does not resolve: " in record["history"][0]["logs"]


def test_a_download_over_the_limit_breaks_and_says_so(app: Platform, listed: int) -> None:
    """An error that code sees, a line in its log with the setting, and `cut` in the audit log and the metrics."""
    record = app.finished(app.client.submit("wide", [["fetch", f"http://web:{listed}/endless"]])["id"])
    assert record["result"]["answers"] == ["ConnectionResetError"]
    assert "more than 1 MiB passed, the limit of a connection (BANANAS_EGRESS_MB)" in record["history"][0]["logs"]
    assert until(lambda: audited(app, "cut", record["id"]), 30, "the audit line")
    until(lambda: _metric(app, 'bananas_egress_connections_total{pool="out",verdict="cut"}') >= 1, 15, "the metric")
    assert _metric(app, 'bananas_egress_bytes_total{direction="received",pool="out"}') > 1024 * 1024


def _metric(app: Platform, name: str) -> float:
    with urllib.request.urlopen(f"{app.url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0]) if found else 0.0


def host_address() -> str:
    """An address of this machine that others would use; the engine's bridge where there is no better one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "172.17.0.1"
        return str(sock.getsockname()[0])
