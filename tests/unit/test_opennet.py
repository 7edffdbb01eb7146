"""What the probe of an open network asks for, and what it makes of the answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bananas.errors import SandboxStartError
from bananas.protocols import Binding, Sandbox
from bananas.spec import PoolSpec
from bananas.testing import FakeSandboxFactory
from runner import opennet
from runner.doctor import probe
from runner.opennet import METADATA, OpenNetwork, Place, own_addresses, places, redis_places
from runner.slot import profile_of


def test_every_way_to_the_platform_is_asked_for() -> None:
    """The machine's addresses with the ports of Redis, the gateway and SSH; Redis elsewhere; the metadata service."""
    found = places([("127.0.0.1", 6379), ("10.0.0.5", 6380)], 8080, ["172.18.0.1", "10.0.0.2", "172.18.0.1"])
    assert {(p.address, p.port) for p in found} == {
        *((address, port) for address in ("172.18.0.1", "10.0.0.2") for port in (6379, 6380, 8080, 22)),
        ("10.0.0.5", 6380),
        *((address, 80) for address in METADATA),
    }
    rules = {p.rule for p in found}
    assert "iptables -I DOCKER-USER -i {bridge} -d 10.0.0.5 -j DROP" in rules
    assert len(rules) == 3


def test_this_machines_addresses_are_read_from_the_kernel(tmp_path: Path) -> None:
    """Each once, without loopback."""
    table = tmp_path / "fib_trie"
    table.write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.2\n"
        "        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.0.0.2\n"
        "        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n"
    )
    assert own_addresses(table) == ["10.0.0.2"]
    assert all(not address.startswith("127.") for address in own_addresses())


def test_the_servers_of_a_redis_url_are_found() -> None:
    """By name or address; a socket has none."""
    assert redis_places("redis://:secret@localhost:7000/0") == [("127.0.0.1", 7000)]
    assert redis_places("unix:///run/redis.sock") == []


class Engine:
    """Makes bridges and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def open_network(self, name: str, labels: dict[str, str]) -> list[str]:
        self.made += 1
        assert (name, labels) == ("bno-1", {"bananas.instance": "i"})
        return ["172.18.0.1"]


def network(answers: list[str], ipv6: list[str] | None = None) -> tuple[OpenNetwork, list[Any]]:
    """An open network whose sandboxes answer so; and what they were asked."""
    asked: list[Any] = []

    def handle(event: Any, context: object) -> Any:
        if event["do"] == "listen":
            return ["172.18.0.2", 4000]
        asked.append(event["targets"])
        return {"ipv6": ipv6 or [], "answers": answers[: len(event["targets"])]}

    factory = FakeSandboxFactory({opennet.HANDLER: handle})

    def create(name: str) -> tuple[Sandbox, Binding]:
        profile = profile_of("probe", PoolSpec(network="open"), "fake", "fake")
        assert name == "bno-1"
        return factory.create(profile), Binding("probe", "v1", opennet.HANDLER, "0" * 64, None)

    def find(gateways: list[str]) -> list[Place]:
        return [Place("this machine", gateways[0], 22, "close {bridge}")]

    engine: Any = Engine()
    return OpenNetwork(engine, "bno-1", {"bananas.instance": "i"}, find, create), asked


@pytest.mark.parametrize("answer", ["", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH"])
def test_silence_is_safe_and_asked_for_once(answer: str) -> None:
    """A good result holds for a while: no job waits for a second probe."""
    open_network, asked = network([answer, answer])
    assert open_network.require() == open_network.require() == "bno-1"
    assert asked == [[["172.18.0.1", 22], ["172.18.0.2", 4000]]]


@pytest.mark.parametrize("answer", ["connected", "ECONNREFUSED", "ECONNRESET"])
def test_any_answer_is_a_refusal_that_names_it_and_the_rule(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also "refused": something is there and says so. It is asked again soon, so that the rule helps."""
    open_network, asked = network([answer, ""])
    for _ in range(2):
        with pytest.raises(SandboxStartError, match=r"can reach this machine at 172.18.0.1:22\. .*: close bno-1$"):
            open_network.require()
    assert len(asked) == 1
    monkeypatch.setattr(opennet, "BAD_S", 0.0)
    open_network, asked = network([answer, ""])
    for _ in range(2):
        with pytest.raises(SandboxStartError):
            open_network.require()
    assert len(asked) == 2


def test_other_sandboxes_and_ipv6_are_refusals_too() -> None:
    """A kernel without br_netfilter passes what the engine meant to keep apart; no rule of ours is about IPv6."""
    with pytest.raises(SandboxStartError, match=r"another sandbox at 172.18.0.2:4000\. .*modprobe br_netfilter"):
        network(["", "connected"])[0].require()
    with pytest.raises(SandboxStartError, match=r"can reach IPv6 "):
        network(["", ""], ["eth0"])[0].require()


def test_the_source_of_the_probe_tells_answers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very text that runs inside: connected, refused, and silence."""
    import socket

    # In the bundle it lies beside the source, by this name.
    monkeypatch.setitem(sys.modules, "look", probe)
    scope: dict[str, Any] = {}
    exec(compile(opennet.SOURCE, "probe.py", "exec"), scope)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as closed, socket.socket() as full:
        closed.bind(("127.0.0.1", 0))
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            targets = [list(sock.getsockname()) for sock in (listener, closed, full)]
            event = {"do": "connect", "targets": targets, "timeout_s": 0.2}
            found = json.loads(json.dumps(scope["handle"](event, None)))
    assert found["answers"] == ["connected", "ECONNREFUSED", ""]
