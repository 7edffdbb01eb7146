"""What is kept in Redis can be read by neighbouring releases, or says that it cannot."""

from __future__ import annotations

import json

import msgspec
import pytest

from bananas import storage
from bananas.errors import NewerRelease
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, RetrySpec, Version, Weights


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    size: int = 3


class Old(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    inner: Inner = msgspec.field(default_factory=Inner)


class New(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same in a release that has two fields more."""

    name: str
    inner: Inner = msgspec.field(default_factory=Inner)
    extra: int = 1
    names: tuple[str, ...] = ()


def test_a_new_field_is_in_nobody_s_way_until_it_is_used():
    """The older release reads what leaves the field at its default, and the newer one reads what never had it."""
    assert storage.decode(storage.encode(New(name="a")), Old, "it") == Old(name="a")
    assert storage.decode(storage.encode(Old(name="a")), New, "it") == New(name="a")


def test_a_field_that_is_not_known_is_named():
    """The error says what cannot be read, which field it is, and what helps."""
    with pytest.raises(NewerRelease, match=r"pool 'x' cannot be read.*`extra`.*newer release"):
        storage.decode(storage.encode(New(name="a", extra=2)), Old, "pool 'x'")


def test_defaults_are_left_out_at_every_depth_and_keys_are_sorted():
    """Equal values have equal bytes, and a value that happens to be a default is not written."""
    assert storage.encode(New(names=("x",), name="a", inner=Inner(size=4))) == (
        b'{"inner":{"size":4},"name":"a","names":["x"]}'
    )
    assert storage.encode(New(name="a", inner=Inner(size=3), extra=1)) == b'{"name":"a"}'


@pytest.mark.parametrize(
    "value",
    [
        FunctionSpec(),
        FunctionSpec(retries=RetrySpec(max=0), env={"A": "B"}, secrets=("S",)),
        PoolSpec(egress=("a.example.com:1",), concurrency=1),
        Deployment(spec=FunctionSpec(), bundles=Bundles(code="a" * 64), abi="x"),
        Version(
            function="f",
            version="v",
            spec=FunctionSpec(single_use=True),
            bundles=Bundles(code="a" * 64, deps="b" * 64),
            abi="x",
            deployed_at_ms=7,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_kept_comes_back(value: msgspec.Struct):
    """Leaving out what is usual loses nothing."""
    assert storage.decode(storage.encode(value), type(value), "it") == value


def test_a_version_s_id_stays_when_a_release_adds_a_setting():
    """It is made of what is written, so that the same function is the same version in both."""
    text = json.loads(FunctionSpec(timeout_ms=5000).encode())
    assert text == {"timeout_ms": 5000}


@pytest.mark.parametrize("stored", [None, b"0", str(storage.FORMAT).encode()])
def test_formats_up_to_ours_are_read(stored: bytes | None):
    """Data without a number is of a time before there was one."""
    assert storage.unknown_format(stored) == ""


@pytest.mark.parametrize("stored", [str(storage.FORMAT + 1).encode(), b"99", b"2b", b"", b"\xff"])
def test_other_formats_are_not(stored: bytes):
    """Neither a higher number nor anything that is none."""
    assert "knows formats up to" in storage.unknown_format(stored)


#: What a field that is not written means, in every release that shares data with another one.
DEFAULTS = {
    FunctionSpec: {
        "runtime": "python",
        "handler": "handler.handle",
        "pool": "default",
        "allow_pools": (),
        "priority": "normal",
        "timeout_ms": 30_000,
        "init_timeout_ms": 20_000,
        "schedule": None,
        "env": {},
        "secrets": (),
        "result_ttl_ms": 3_600_000,
        "max_concurrency": None,
        "rate": None,
        "max_uses": None,
        "max_lifetime_ms": None,
        "single_use": False,
        "calls_per_sandbox": 1,
        "min_warm": None,
        "egress": None,
        "contract": "handler",
        "image": None,
        "command": (),
    },
    PoolSpec: {
        "concurrency": 8,
        "max_concurrency": None,
        "memory_mb": 256,
        "cpus": 1.0,
        "pids": 128,
        "tmp_mb": 64,
        "idle_timeout_ms": 300_000,
        "min_warm": 0,
        "stems": 2,
        "egress": (),
        "network": "none",
        "gpus": 0,
        "runtime": None,
    },
    RetrySpec: {"max": 3, "base_ms": 2000, "factor": 2.0, "cap_ms": 3_600_000, "jitter": "none"},
    Weights: {"high": 16, "normal": 4, "low": 1},
}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_a_default_never_changes(kind: type[msgspec.Struct]):
    """It is what stored data means by leaving a field out; another default is another field, or another format."""
    now = msgspec.structs.asdict(kind())
    assert {name: now[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]
    nested = {name for name, value in now.items() if isinstance(value, msgspec.Struct)}
    assert set(now) - set(DEFAULTS[kind]) == nested, "a new field: write its default down here"
