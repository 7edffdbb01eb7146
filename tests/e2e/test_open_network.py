"""``network: open``: refused while something inside can be reached, and what the sandboxes see once it is closed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import docker
import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

PROBE = """
import socket, time
from concurrent.futures import ThreadPoolExecutor

def handle(event, context):
    own = socket.gethostbyname(socket.gethostname())
    if event["do"] == "listen":
        kept.append(socket.create_server(("0.0.0.0", 9999)) if not kept else None)
        time.sleep(1)  # so that the other job gets a sandbox of its own
        return own
    with open("/proc/net/if_inet6") as file:
        ipv6 = [line.split()[-1] for line in file if line.split()[-1] != "lo"]
    targets = [target for target in event["targets"] if target[0] != own]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda target: connect(*target), targets))
    return {"ipv6": ipv6, "answers": [[*target, answer] for target, answer in zip(targets, answers)]}

def connect(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
        return "connected"
    except OSError as e:
        return type(e).__name__

kept = []
"""


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A pool with an open network on this machine, whose own addresses answer."""
    with Platform(empty_redis, BANANAS_LEASE_S="5", BANANAS_GRACE_S="5") as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        platform.deploy(
            {"outside": PROBE},
            "    pool: web\n    timeout: 20s",
            "pools:\n  web: {concurrency: 2, network: open, stems: 0}",
        )
        yield platform


def bridge_of(platform: Platform) -> str:
    """The network of the platform's runners, which is also the name of its interface."""
    return "bno-" + hashlib.sha256(platform.registry.instance().encode()).hexdigest()[:8]


def iptables(*rule: str) -> None:
    subprocess.run(["iptables", "-w", "10", *rule], check=True, capture_output=True, timeout=20)


@contextmanager
def closed(bridge: str) -> Iterator[None]:
    """The rules that the refusal names, for this bridge only; gone afterwards."""
    rules = [
        ("INPUT", "-i", bridge, "-j", "DROP"),
        ("DOCKER-USER", "-i", bridge, "-d", "169.254.0.0/16", "-j", "DROP"),
    ]
    with ExitStack() as stack:
        for rule in rules:
            iptables("-I", *rule)
            stack.callback(iptables, "-D", *rule)
        yield


@contextmanager
def outside() -> Iterator[tuple[str, int]]:
    """A machine outside: a network namespace behind a link of its own, with a server in it."""
    name, address = f"bn{os.getpid()}", "198.51.100.2"

    def ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True, timeout=20)

    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", "198.51.100.1/30", "dev", f"{name}h")
        ip("link", "set", f"{name}h", "up")
        ip("-n", name, "addr", "add", f"{address}/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        serve = [sys.executable, "-c", SERVER, address]
        server = subprocess.Popen(["ip", "netns", "exec", name, *serve], stdout=subprocess.PIPE, text=True)
        stack.callback(server.stdout.close)  # type: ignore[union-attr]
        stack.callback(server.wait, 10)
        stack.callback(server.kill)
        yield address, int(server.stdout.readline())  # type: ignore[union-attr]


SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
while True:
    listener.accept()[0].close()
"""


def refusal(app: Platform) -> str:
    """Why a job of the pool does not start."""
    job = app.client.submit("outside", {"do": "listen"})["id"]
    record = until(lambda: (r := app.client.job(job))["history"] and r, 30, "the first try to start")
    app.client.cancel(job)
    error = record["history"][0]["error"]
    assert error["type"] == "SandboxStartError", record
    return str(error["message"])


def test_it_is_refused_while_this_machine_can_be_reached_and_says_how_to_close_it(app: Platform) -> None:
    """What was reached, and a firewall rule for exactly the bridge; the log says the same when the pool appears."""
    message = refusal(app)
    assert message.startswith("network: open is refused, because code in its sandboxes can reach this machine at ")
    bridge = re.search(r"for the bridge (bno-[0-9a-f]{8})", message)
    assert bridge, message
    assert f"iptables -I INPUT -i {bridge[1]} -j DROP" in message
    assert bridge[1] == bridge_of(app)
    assert "network: open is refused" in app.processes[1].text


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("iptables"), reason="changing the firewall needs root")
def test_once_closed_jobs_start_and_reach_what_is_outside_and_nothing_inside(
    app: Platform, engine: docker.DockerClient
) -> None:
    """The refused job starts by itself when the rules are there; its sandbox sees none of ours and no other sandbox."""
    bridge = bridge_of(app)
    redis_port = int(app.redis_url.rsplit(":", 1)[1].split("/")[0])
    with closed(bridge), outside() as (address, port):
        jobs = [app.client.submit("outside", {"do": "listen"})["id"] for _ in range(2)]
        peers = {app.finished(job, 60)["result"] for job in jobs}
        assert len(peers) == 2
        network = engine.networks.list(names=[bridge])[0].attrs
        own = dict.fromkeys([network["IPAM"]["Config"][0]["Gateway"], *host_addresses()])
        inside = [[host, number] for host in own for number in (redis_port, app.port, 22)]
        inside += [["169.254.169.254", 80], ["169.254.170.2", 80], *([peer, 9999] for peer in peers)]
        inside += [[ip, 6379] for c in engine.containers.list() if (ip := c.attrs["NetworkSettings"]["IPAddress"])]
        seen = ask(app, [*inside, [address, port]])
        assert seen.pop((address, port)) == "connected"
        assert len(seen) == len(inside) - 1  # its own address
        assert set(seen.values()) <= {"TimeoutError", "OSError"}, seen
        assert ask(app, [["127.0.0.1", redis_port]]) == {("127.0.0.1", redis_port): "ConnectionRefusedError"}
    host = engine.api.inspect_container(engine.containers.list(filters={"network": bridge})[0].id)["HostConfig"]
    assert (host["NetworkMode"], host["CapDrop"], host["ReadonlyRootfs"]) == (bridge, ["ALL"], True)


def ask(app: Platform, targets: list[list[Any]]) -> dict[tuple[str, int], str]:
    """What a sandbox of the pool finds at each target that is not itself."""
    seen = json.loads(app.client.invoke("outside", {"do": "connect", "targets": targets}, timeout_s=60))
    assert seen["ipv6"] == []
    return {(host, port): answer for host, port, answer in seen["answers"]}


def host_addresses() -> list[str]:
    """This machine's addresses."""
    found = subprocess.run(["ip", "-4", "-j", "addr"], check=True, capture_output=True, timeout=20).stdout
    return [a["local"] for link in json.loads(found) for a in link["addr_info"] if not a["local"].startswith("127.")]
