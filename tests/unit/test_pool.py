"""The reuse contract of runner.pool, outcome by outcome, with the public fakes."""

from __future__ import annotations

from dataclasses import replace

import gevent
import pytest
from gevent.lock import BoundedSemaphore

from bananas.errors import SandboxStartError
from bananas.protocols import Binding, HandlerLoadError
from bananas.spec import PoolSpec
from bananas.testing import FakeSandboxFactory, ManualClock
from runner.pool import SandboxPool, SandboxState, profile_of

SPEC = PoolSpec(concurrency=2, idle_timeout_ms=10_000)
HELLO = Binding("hello", "v1", "handler.handle", "a" * 64, None)
OTHER = replace(HELLO, function="other")


@pytest.fixture
def factory() -> FakeSandboxFactory:
    return FakeSandboxFactory({"handler.handle": lambda event, context: event})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pool(factory: FakeSandboxFactory, clock: ManualClock) -> SandboxPool:
    return SandboxPool("default", SPEC, factory, BoundedSemaphore(2), clock)


def profile(spec: PoolSpec = SPEC) -> object:
    return profile_of("default", spec, "image", "sha256:1")


def use(pool: SandboxPool, binding: Binding = HELLO, *, reusable: bool = True, max_uses: int | None = None) -> object:
    slot = pool.acquire(profile(pool.spec), binding, max_uses)
    slot.uses += 1
    pool.bind(slot, binding, 1.0, lambda _: None)
    pool.release(slot, reusable=reusable)
    gevent.sleep(0)
    return slot


def test_second_call_of_a_version_is_warm_and_uses_the_same_sandbox(pool, factory):
    """After an attempt that may be followed by another, the sandbox is used again."""
    first = use(pool)
    second = use(pool)
    assert first is second
    assert (second.start, second.uses, len(factory.created)) == ("warm", 2, 1)


def test_first_call_is_cold_and_says_why(pool):
    """A start carries its reason."""
    slot = use(pool)
    assert (slot.start, slot.reason) == ("cold", "none_idle")


def test_a_sandbox_never_serves_another_version(pool, factory):
    """A bound sandbox belongs to one version of one function."""
    use(pool)
    use(pool, replace(HELLO, version="v2"))
    assert len(factory.created) == 2


def test_full_pool_evicts_the_longest_idle_one_for_another_function(pool, factory, clock):
    """Room is made by ending what was idle for the longest time."""
    use(pool)
    clock.advance(1)
    use(pool, OTHER)
    third = use(pool, replace(HELLO, function="third"))
    assert third.reason == "none_idle_evicted_other"
    assert [s.terminated for s in factory.created] == [True, False, False]
    assert pool.states()["idle"] == 2


def test_last_in_first_out(pool, factory):
    """The hottest sandbox works, so that the others can become old."""
    a = pool.acquire(profile(), HELLO, None)
    b = pool.acquire(profile(), HELLO, None)
    for slot in (a, b):
        pool.bind(slot, HELLO, 1, lambda _: None)
    pool.release(a, reusable=True)
    pool.release(b, reusable=True)
    assert pool.acquire(profile(), HELLO, None) is b


def test_free_counts_idle_sandboxes_as_free_and_busy_ones_not(pool):
    """The worker claims no more than it can place at once."""
    assert pool.free == 2
    slot = pool.acquire(profile(), HELLO, None)
    assert pool.free == 1
    pool.release(slot, reusable=True)
    assert pool.free == 2


def test_a_claimed_attempt_holds_its_place_before_it_runs(pool):
    """Two steps in a row never claim more than there is room for."""
    pool.reserve()
    assert pool.free == 1
    pool.unreserve()
    slot = pool.acquire(profile(), HELLO, None)
    assert pool.free == 1
    pool.release(slot, reusable=False)
    assert pool.free == 2


def test_not_reusable_is_destroyed_and_its_place_is_free(pool, factory):
    """What may not serve again is gone, and nothing leaks."""
    slot = use(pool, reusable=False)
    assert factory.created[0].terminated
    assert slot.state is SandboxState.ENDING
    assert pool.free == 2
    assert pool.states()["idle"] == 0


def test_a_sandbox_that_died_while_idle_is_not_handed_out(pool, factory):
    """Its death costs no call a try."""
    use(pool)
    factory.created[0].interrupted = True
    slot = use(pool)
    assert (slot.start, len(factory.created)) == ("cold", 2)
    assert pool.states()["idle"] == 1


def test_max_uses_ends_a_sandbox(pool, factory):
    """A sandbox serves at most max_uses attempts."""
    use(pool, max_uses=2)
    use(pool, max_uses=2)
    use(pool, max_uses=2)
    assert [s.terminated for s in factory.created] == [True, False]


def test_destroy_then_release_is_harmless(pool, factory):
    """A sandbox destroyed for a timeout is not put back by the same attempt's end."""
    slot = pool.acquire(profile(), HELLO, None)
    pool.destroy(slot, "timeout")
    pool.release(slot, reusable=True)
    assert pool.states()["idle"] == 0
    assert pool.free == 2


def test_idle_sandboxes_end_after_the_idle_timeout(pool, factory, clock):
    """Nothing idles for ever, and the next expiry is known."""
    use(pool)
    assert pool.expire() == pytest.approx(10)
    clock.advance(10)
    assert pool.expire() is None
    gevent.sleep(0)
    assert factory.created[0].terminated


def test_changed_settings_end_idle_sandboxes_now_and_busy_ones_after_their_call(pool, factory):
    """A pool's new settings hold for every call that begins after them."""
    busy = pool.acquire(profile(), HELLO, None)
    use(pool, OTHER)
    pool.reconfigure(replace_spec(memory_mb=512))
    gevent.sleep(0)
    assert [s.terminated for s in factory.created] == [False, True]
    pool.release(busy, reusable=True)
    gevent.sleep(0)
    assert [s.terminated for s in factory.created] == [True, True]


def test_a_failed_start_leaves_the_pool_as_it_was(pool, factory):
    """Trouble with the engine costs no slot."""
    factory.fail_next = 1
    with pytest.raises(SandboxStartError):
        pool.acquire(profile(), HELLO, None)
    assert pool.free == 2
    assert sum(pool.states().values()) == 0


def test_a_failed_load_reaches_the_caller(pool):
    """Code that cannot be loaded is the function's error, not the pool's."""
    slot = pool.acquire(profile(), replace(HELLO, handler="missing.handle"), None)
    with pytest.raises(HandlerLoadError):
        pool.bind(slot, replace(HELLO, handler="missing.handle"), 1, lambda _: None)


def test_close_ends_idle_and_interrupts_busy(pool, factory):
    """At shutdown no sandbox survives."""
    pool.acquire(profile(), HELLO, None)
    use(pool, OTHER)
    pool.close(1.0)
    assert factory.created[0].interrupted
    assert factory.created[1].terminated


def replace_spec(**changes: object) -> PoolSpec:
    return PoolSpec(**{"concurrency": 2, "idle_timeout_ms": 10_000, **changes})
