"""Kept versions: which ones stay, how one goes back, and what becomes of the archives of those that go."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from bananas import errors, keys
from bananas.job import NewJob
from bananas.leftovers import Leftovers
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, ScheduleSpec

pytestmark = pytest.mark.redis


@pytest.fixture
def registry(connections: Connections) -> Registry:
    return Registry(connections)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three versions are kept."""
    monkeypatch.setattr("bananas.registry.LIMITS", replace(LIMITS, versions=3))


def deploy(registry: Registry, code: bytes, name: str = "f", deps: bytes | None = None, **spec: object) -> str:
    shas = [hashlib.sha256(data).hexdigest() for data in (code, deps) if data is not None]
    for sha, data in zip(shas, (code, deps), strict=False):
        registry.put_bundle(sha, data or b"")
    bundles = Bundles(code=shas[0], deps=shas[1] if deps is not None else None)
    return registry.deploy(name, Deployment(spec=FunctionSpec(**spec), bundles=bundles, abi="x"))[0].version


def ids(registry: Registry) -> list[str]:
    return [version.version for version in registry.history("f")]


def ttl(connections: Connections, code: bytes) -> int:
    return int(connections.commands.ttl(keys.bundle(hashlib.sha256(code).hexdigest())))


def rounds(connections: Connections) -> int:
    """What one walk over everything lets go."""
    leftovers = Leftovers(connections)
    gone = leftovers.look(10)
    while leftovers._cursor:
        gone += leftovers.look(10)
    return gone


def test_the_last_versions_are_kept_newest_first(registry, connections, few):
    """Older ones end by themselves later, so that queued jobs keep theirs."""
    made = [deploy(registry, b"%d" % n) for n in range(5)]
    assert ids(registry) == made[:1:-1]
    ttls = [connections.commands.ttl(keys.version("f", version)) for version in made]
    assert [at > 0 for at in ttls] == [True, True, False, False, False]
    with pytest.raises(errors.UnknownFunction):
        registry.history("nobody")


def test_rollback_goes_one_back_each_time_and_to_any_kept_one(registry, connections):
    """New jobs get that version at once, with its settings; the list stays as it is."""
    made = [deploy(registry, b"%d" % n, timeout_ms=1000 * (n + 1)) for n in range(3)]
    queue = Queue(connections)
    for wanted in (made[1], made[0]):
        version, changed = registry.rollback("f")
        assert (version.version, changed, registry.current("f").version) == (wanted, True, wanted)
        answer = queue.enqueue(NewJob("f", b"1"))
        assert (answer.version, answer.timeout_ms) == (wanted, version.spec.timeout_ms)
    with pytest.raises(errors.VersionGone, match=f"from before {made[0]} is kept"):
        registry.rollback("f")
    assert registry.rollback("f", made[2])[0].spec.timeout_ms == 3000
    assert registry.rollback("f", made[2])[1] is False
    assert ids(registry) == made[::-1]
    with pytest.raises(errors.VersionGone, match=r"'nope' of function 'f' is not kept; kept are"):
        registry.rollback("f", "nope")
    with pytest.raises(errors.UnknownFunction):
        registry.rollback("nobody")


def test_the_current_version_is_kept_after_a_rollback_however_old_it_is(registry, connections, few):
    """A deploy lets go of the oldest of the others."""
    made = [deploy(registry, b"%d" % n) for n in range(3)]
    registry.rollback("f", made[0])
    assert ids(registry) == made[::-1]
    fresh = deploy(registry, b"fresh")
    assert ids(registry) == [fresh, made[2], made[1]]


def test_rollback_checks_what_the_version_needs(registry, connections):
    """A pool that is gone refuses it; the current version goes on serving."""
    registry.put_pool("gpu", PoolSpec())
    first = deploy(registry, b"1", pool="gpu")
    second = deploy(registry, b"2")
    connections.commands.hdel(keys.POOLS, "gpu")
    with pytest.raises(errors.UnknownPool, match="gpu"):
        registry.rollback("f")
    assert registry.current("f").version == second
    registry.put_pool("gpu", PoolSpec())
    connections.commands.delete(keys.bundle(hashlib.sha256(b"1").hexdigest()))
    with pytest.raises(errors.UnknownBundle):
        registry.rollback("f", first)


def test_rollback_brings_the_schedule_back(registry, connections):
    """What fires is what the version says."""
    deploy(registry, b"1", schedule=ScheduleSpec(cron="@daily"))
    deploy(registry, b"2")
    assert not connections.commands.sismember(keys.SCHEDULES, "f")
    registry.rollback("f")
    assert connections.commands.hget(keys.cron("f"), "cron") == b"@daily"


def test_archives_stay_while_a_version_needs_them(registry, connections, few):
    """Those of kept versions, of versions with time left, and those shared with another function."""
    for n in range(5):
        deploy(registry, b"%d" % n, deps=b"deps")
    deploy(registry, b"0", name="g")
    assert rounds(connections) == 0
    assert [ttl(connections, b"%d" % n) for n in range(5)] == [-1] * 5
    old = connections.commands.keys(keys.version("f", "*"))
    gone = [key for key in old if connections.commands.ttl(key) > 0]
    assert len(gone) == 2
    connections.commands.delete(*gone)
    assert rounds(connections) == 1, "only that of the second version: the first is still needed by g"
    assert 0 < ttl(connections, b"1") <= LIMITS.orphan_bundle_s
    assert [ttl(connections, code) for code in (b"0", b"2", b"4", b"deps")] == [-1] * 4
    assert rounds(connections) == 0
    deploy(registry, b"1")
    assert ttl(connections, b"1") == -1, "a deploy takes it back"


def test_archives_of_a_removed_function_go_after_its_versions(registry, connections):
    """Queued jobs have their grace first."""
    made = [deploy(registry, b"1"), deploy(registry, b"2")]
    assert registry.remove("f")
    assert rounds(connections) == 0
    for version in made:
        assert 0 < connections.commands.ttl(keys.version("f", version)) <= LIMITS.old_version_s
        assert registry.version("f", version).version == version
        connections.commands.delete(keys.version("f", version))
    assert rounds(connections) == 2
    with pytest.raises(errors.UnknownFunction):
        registry.history("f")


def test_a_version_of_another_release_keeps_every_archive(registry, connections, caplog):
    """What cannot be read may need anything."""
    deploy(registry, b"1")
    connections.commands.set(keys.version("g", "new"), b'{"bundles": 1}')
    connections.commands.persist(keys.bundle(hashlib.sha256(b"2").hexdigest()))
    registry.put_bundle(hashlib.sha256(b"2").hexdigest(), b"2")
    connections.commands.persist(keys.bundle(hashlib.sha256(b"2").hexdigest()))
    assert rounds(connections) == 0
    assert "cannot be read by this release" in caplog.text
