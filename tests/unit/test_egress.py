"""What a sandbox may reach: the targets, the plan of its routes, and which addresses count as public."""

from __future__ import annotations

import pytest

from bananas.addresses import is_public
from bananas.errors import ConfigError, InvalidRequest
from bananas.spec import FunctionSpec, PoolSpec
from bananas.targets import Target, parse_target
from runner import egress
from runner.egress import Route


def test_each_name_gets_a_loopback_address_of_its_own() -> None:
    """Two targets may share a port, two ports of a name share its address, doubles vanish."""
    targets = ["a.example:443", "b.example:443", "A.example:25", "127.0.0.1:6000", "a.example:443", "db=10.0.0.5:5432"]
    routes = egress.plan(targets)
    assert routes == [
        Route("a.example", "127.66.0.1", 443),
        Route("b.example", "127.66.0.2", 443),
        Route("A.example", "127.66.0.1", 25),
        Route("127.0.0.1", "127.0.0.1", 6000),
        Route("db", "127.66.0.3", 5432),
    ]
    assert egress.extra_hosts(routes) == {
        "a.example": "127.66.0.1",
        "b.example": "127.66.0.2",
        "A.example": "127.66.0.1",
        "db": "127.66.0.3",
    }
    assert egress.plan([]) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("10.0.0.5:25", "10.0.0.5 is an address, and a sandbox has no route to it; give it a name .* db=10.0.0.5:25"),
        ("93.184.216.34:443", "no route to it"),
        ("[::1]:25", r"\[::1\] is an address, .* db=\[::1\]:25"),
        ("127.66.0.9:25", "no route to it"),
        ("127.1:25", "'127.1' is not a DNS name"),
        ("300.1.1.1:25", "not a DNS name"),
        ("a..b:25", "not a DNS name"),
        ("localhost:25", "is the sandbox itself; 127.0.0.1 with a port means the runner's machine"),
        ("x.localhost.:25", "is the sandbox itself"),
        ("example.com", "'example.com' has no port; write a DNS name and a port, such as smtp.example.com:587"),
        ("example.com:0", "port 0 is out of range"),
        ("example.com:65536", "port 65536 is out of range"),
        ("ex ample.com:25", "is not host:port"),
        ("db=db.internal:25", "db.internal is not a complete IP address; .* as in db=10.0.0.5:5432"),
        ("db=10.1:25", "10.1 is not a complete IP address"),
        ("10.0.0.5=10.0.0.5:25", "'10.0.0.5' is not a DNS name"),
        ("localhost=10.0.0.5:25", "is the sandbox itself"),
        ("=10.0.0.5:25", "is not host:port"),
    ],
)
def test_a_target_that_cannot_work_is_refused_with_the_reason(target: str, message: str) -> None:
    """At deploy or start, not at the first connection."""
    with pytest.raises(ConfigError, match=message):
        egress.plan(["fine.example:1", target])


def test_more_names_than_addresses_are_refused() -> None:
    """One address per name, from one network."""
    assert egress.plan([f"n{n}.example:1" for n in range(254)])[-1].ip == "127.66.0.254"
    with pytest.raises(ConfigError, match=r"n254\.example:1 is one name too many; 254 are possible"):
        egress.plan([f"n{n}.example:1" for n in range(255)])


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%2",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
    ],
)
def test_addresses_of_machines_nearby_are_not_public(address: str) -> None:
    """Also when they hide in an IPv6 address."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """IPv4 and IPv6."""
    assert is_public(address)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("smtp.example.com:587", Target("smtp.example.com", 587)),
        ("127.0.0.1:2525", Target("127.0.0.1", 2525, "127.0.0.1")),
        ("db=10.0.0.5:5432", Target("db", 5432, "10.0.0.5")),
        ("db6=[fd00::5]:5432", Target("db6", 5432, "fd00::5")),
        ("metadata=169.254.169.254:80", Target("metadata", 80, "169.254.169.254")),
    ],
)
def test_a_target_says_what_code_connects_to_and_whose_address_that_is(text: str, target: Target) -> None:
    """A private or link-local address is a target only where it is written out, and the spec takes the same texts."""
    assert parse_target(text) == target
    assert PoolSpec.decode(PoolSpec(egress=(text,)).encode()).egress == (text,)


def test_a_function_names_targets_of_its_pool_and_no_addresses() -> None:
    """Whoever deploys a function cannot say which address a name is."""
    with pytest.raises(InvalidRequest, match=r"db=10.0.0.5:1 of a function is host:port"):
        FunctionSpec.decode(b'{"egress": ["db=10.0.0.5:1"]}')
    assert FunctionSpec.decode(b'{"egress": ["db:1"]}').egress == ("db:1",)


def test_an_open_network_has_no_list() -> None:
    """The two contradict each other."""
    with pytest.raises(InvalidRequest, match="network 'open' reaches everything outside; leave one of the two out"):
        PoolSpec.decode(b'{"egress": ["a.example:1"], "network": "open"}')
