"""The reuse contract of runner.pool, outcome by outcome, with the public fakes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import gevent
import msgspec
import pytest
from gevent.lock import Semaphore

from bananas.errors import SandboxStartError
from bananas.protocols import Binding, HandlerLoadError, SandboxProfile, Secret
from bananas.spec import PoolSpec
from bananas.testing import FakeSandbox, FakeSandboxFactory, ManualClock
from runner.gate import Gate
from runner.ledger import Ledger
from runner.pool import STALE_S, SandboxPool, profile_of
from runner.reasons import EndReason, Start
from runner.slot import Plan, Reuse, SandboxState, Seat, Wish
from runner.tally import Tally

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
def tally() -> Tally:
    return Tally()


@pytest.fixture
def pool(factory: FakeSandboxFactory, clock: ManualClock, tally: Tally) -> SandboxPool:
    return SandboxPool("default", SPEC, factory, Gate(2), clock, tally=tally, rng=Random(0))


def profile(spec: PoolSpec = SPEC) -> SandboxProfile:
    return profile_of("default", spec, "image", "sha256:1")


def use(pool: SandboxPool, binding: Binding = HELLO, *, reusable: bool = True, reuse: Reuse = Reuse()) -> Seat:  # noqa: B008
    seat = pool.acquire(profile(pool.spec), binding, reuse)
    pool.bind(seat, binding, 1.0, lambda _: None)
    pool.release(seat, reusable=reusable)
    gevent.sleep(0)
    return seat


def test_second_call_of_a_version_is_warm_and_uses_the_same_sandbox(pool, factory):
    """After an attempt that may be followed by another, the sandbox is used again."""
    first = use(pool)
    second = use(pool)
    assert first.slot is second.slot
    assert (second.start, second.nth_use, len(factory.created)) == ("warm", 2, 1)


def test_first_call_is_cold_and_says_why(pool):
    """A start carries its reason."""
    seat = use(pool)
    assert (seat.start, seat.reason) == ("cold", "no_stem")


def test_a_sandbox_never_serves_another_version(pool, factory):
    """A bound sandbox belongs to one version of one function."""
    use(pool)
    use(pool, replace(HELLO, version="v2"))
    assert len(factory.created) == 2


def test_full_pool_evicts_the_longest_idle_one_for_another_function(pool, factory, clock, tally):
    """Room is made by ending what was idle for the longest time."""
    use(pool)
    clock.advance(1)
    use(pool, OTHER)
    use(pool, replace(HELLO, function="third"))
    assert [s.terminated for s in factory.created] == [True, False, False]
    assert pool.states()["idle"] == 2
    assert ends(tally) == {"hello capacity": 1}


def test_last_in_first_out(pool, factory):
    """The hottest sandbox works, so that the others can become old."""
    a = pool.acquire(profile(), HELLO)
    b = pool.acquire(profile(), HELLO)
    for slot in (a, b):
        pool.bind(slot, HELLO, 1, lambda _: None)
    pool.release(a, reusable=True)
    pool.release(b, reusable=True)
    assert pool.acquire(profile(), HELLO).slot is b.slot


def test_free_counts_idle_sandboxes_as_free_and_busy_ones_not(pool):
    """The worker claims no more than it can place at once."""
    assert pool.free == 2
    seat = pool.acquire(profile(), HELLO)
    assert pool.free == 1
    pool.release(seat, reusable=True)
    assert pool.free == 2


def test_a_claimed_attempt_holds_its_place_before_it_runs(pool):
    """Two steps in a row never claim more than there is room for."""
    pool.reserve()
    assert pool.free == 1
    pool.unreserve()
    seat = pool.acquire(profile(), HELLO)
    assert pool.free == 1
    pool.release(seat, reusable=False)
    assert pool.free == 2


def test_not_reusable_is_destroyed_and_its_place_is_free(pool, factory):
    """What may not serve again is gone, and nothing leaks."""
    seat = use(pool, reusable=False)
    assert factory.created[0].terminated
    assert seat.slot.state is SandboxState.ENDING
    assert pool.free == 2
    assert pool.states()["idle"] == 0


def test_a_sandbox_that_died_while_idle_is_not_handed_out(pool, factory):
    """Its death costs no call a try."""
    use(pool)
    factory.created[0].interrupted = True
    seat = use(pool)
    assert (seat.start, len(factory.created)) == ("cold", 2)
    assert pool.states()["idle"] == 1


def test_an_idle_sandbox_with_an_old_secret_ends_soon(pool, factory, clock, tally):
    """Another value was set: no call comes to it any more, and it still knows the old one."""
    old = replace(HELLO, secrets={"TOKEN": Secret("1", b"old")})
    new = replace(HELLO, secrets={"TOKEN": Secret("2", b"new")})
    use(pool, old)
    pool.prepare(Plan(versions={"hello": HELLO.version}, identities={"hello": old.identity}))
    clock.advance(STALE_S + 1)
    pool.expire()
    gevent.sleep(0)
    assert ends(tally) == {}
    pool.prepare(Plan(versions={"hello": HELLO.version}, identities={"hello": new.identity}))
    pool.expire()
    gevent.sleep(0)
    assert ends(tally) == {"hello new_secret": 1}
    assert use(pool, new).start is Start.COLD


def test_max_uses_ends_a_sandbox(pool, factory, tally):
    """A sandbox serves at most max_uses attempts."""
    for _ in range(3):
        use(pool, reuse=Reuse(max_uses=2))
    assert [s.terminated for s in factory.created] == [True, False]
    assert ends(tally) == {"hello max_uses": 1}


def test_single_use_gives_every_attempt_a_sandbox_of_its_own(pool, factory, tally):
    """Nothing of one call can be there in the next one."""
    seats = [use(pool, reuse=Reuse(single_use=True)) for _ in range(3)]
    assert [seat.nth_use for seat in seats] == [1, 1, 1]
    assert [s.terminated for s in factory.created] == [True, True, True]
    assert ends(tally) == {"hello single_use": 3}


def test_max_lifetime_ends_a_sandbox_after_its_call_or_while_idle(pool, factory, clock, tally):
    """Up to a tenth earlier than written, so that those which began together do not end together; never in a call."""
    reuse = Reuse(max_lifetime_s=5)
    use(pool, reuse=reuse)
    left = pool.expire()
    assert 4.5 <= left < 5
    clock.advance(left)
    pool.expire()
    busy = pool.acquire(profile(), HELLO, reuse)
    pool.bind(busy, HELLO, 1.0, lambda _: None)
    clock.advance(6)
    pool.expire()
    assert busy.sandbox.is_alive
    pool.release(busy, reusable=True)
    gevent.sleep(0)
    assert [s.terminated for s in factory.created] == [True, True]
    assert ends(tally) == {"hello max_lifetime": 2}


def test_lifetimes_are_spread(pool, clock):
    """Two sandboxes of the same moment do not end in the same one."""
    seats = [pool.acquire(profile(), HELLO, Reuse(max_lifetime_s=100)) for _ in range(2)]
    for seat in seats:
        pool.bind(seat, HELLO, 1.0, lambda _: None)
    slots = [seat.slot for seat in seats]
    assert slots[0].ends_at_s != slots[1].ends_at_s
    assert all(90 <= slot.ends_at_s <= 100 for slot in slots)


def test_destroy_then_release_is_harmless(pool, factory):
    """A sandbox destroyed for a timeout is not put back by the same attempt's end."""
    seat = pool.acquire(profile(), HELLO)
    pool.destroy(seat, EndReason.FAILED_TIMEOUT)
    pool.release(seat, reusable=True)
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


@pytest.mark.parametrize("change", [{"concurrency": 3}, {"idle_timeout_ms": 20_000}, {"min_warm": 0}])
def test_settings_that_shape_no_sandbox_end_none(pool, factory, change):
    """More places, or another weight, costs nobody a cold start."""
    use(pool)
    pool.reconfigure(replace_spec(**change))
    assert use(pool).start == "warm"


def test_fewer_places_end_what_is_too_much(pool, tally):
    """A lowered concurrency holds at once for idle ones."""
    use(pool)
    use(pool, OTHER)
    pool.reconfigure(replace_spec(concurrency=1))
    assert pool.states()["idle"] == 1
    gevent.sleep(0)
    assert ends(tally) == {"hello capacity": 1}


def test_changed_settings_end_idle_sandboxes_now_and_busy_ones_after_their_call(pool, factory):
    """A pool's new settings hold for every call that begins after them."""
    busy = pool.acquire(profile(), HELLO)
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
        pool.acquire(profile(), HELLO)
    assert pool.free == 2
    assert sum(pool.states().values()) == 0


def test_a_failed_load_reaches_the_caller(pool):
    """Code that cannot be loaded is the function's error, not the pool's."""
    seat = pool.acquire(profile(), replace(HELLO, handler="missing.handle"))
    with pytest.raises(HandlerLoadError):
        pool.bind(seat, replace(HELLO, handler="missing.handle"), 1, lambda _: None)


def test_close_ends_idle_and_interrupts_busy(pool, factory):
    """At shutdown no sandbox survives."""
    pool.acquire(profile(), HELLO)
    use(pool, OTHER)
    pool.close(1.0)
    assert factory.created[0].interrupted
    assert factory.created[1].terminated


def test_a_spare_stem_serves_a_first_call_and_another_is_made(pool, factory, tally):
    """A first call finds a started sandbox; the refill comes after it."""
    stocked(pool)
    assert pool.states()["stem"] == SPEC.stems
    seat = pool.acquire(profile(), HELLO)
    assert (seat.start, seat.reason, seat.sandbox) == ("stem", "none_idle", factory.created[1])
    assert factory.created[1].binding is None
    assert pool.states()["stem"] == SPEC.stems - 1
    stocked(pool)
    assert pool.states()["stem"] == SPEC.stems
    assert starts(tally) == {" spare ": 3, "hello stem none_idle": 1}


def test_a_stem_is_never_of_another_profile(pool, factory):
    """Settings and image of a sandbox are those of the job's pool, or it is not used."""
    stocked(pool)
    other = replace(profile(), image_id="sha256:2")
    seat = pool.acquire(other, HELLO)
    assert seat.start == "cold"
    assert seat.sandbox.profile == other


def test_a_dead_stem_is_not_handed_out(pool, factory, tally):
    """A stem that died while it waited costs no call a try."""
    stocked(pool)
    factory.created[1].interrupted = True
    assert pool.acquire(profile(), HELLO).sandbox is factory.created[0]
    gevent.sleep(0)
    assert ends(tally) == {" died": 1}


def test_changed_settings_replace_the_stems(pool, factory):
    """No stem of old settings is kept."""
    stocked(pool)
    pool.reconfigure(replace_spec(memory_mb=512))
    gevent.sleep(0)
    assert [s.terminated for s in factory.created] == [True, True]
    pool.prepare(Plan(stems=(profile(pool.spec),)))
    pool.refill()
    settle()
    assert {s.profile.memory_mb for s in factory.created if not s.terminated} == {512}


def test_no_stems_are_kept_when_the_pool_wants_none(pool, factory):
    """stems: 0 leaves the first call to a container of its own, and the record says so."""
    pool.reconfigure(replace_spec(stems=0))
    stocked(pool)
    assert factory.created == []
    seat = pool.acquire(profile(), HELLO)
    assert (seat.start, seat.reason) == ("cold", "stems_off")


def test_all_busy_is_told_apart_from_none_there(pool):
    """A second call at the same moment says that the first one's sandbox was at work."""
    stocked(pool)
    pool.acquire(profile(), HELLO)
    assert pool.acquire(profile(), HELLO).reason == "all_busy"


def test_min_warm_is_bound_before_any_call_and_outlives_the_idle_timeout(pool, factory, clock):
    """The first call of such a function is a warm one, however late it comes."""
    wished(pool, 1)
    assert factory.created[0].binding == HELLO
    clock.advance(1000)
    assert pool.expire() is None
    seat = use(pool)
    assert (seat.start, seat.nth_use) == ("warm", 1)


def test_more_than_min_warm_expires(pool, factory, clock):
    """Only as many stay as min_warm says: the latest used ones."""
    wished(pool, 1)
    a, b = (pool.acquire(profile(), HELLO) for _ in range(2))
    pool.bind(b, HELLO, 1, lambda _: None)
    pool.release(a, reusable=True)
    clock.advance(1)
    pool.release(b, reusable=True)
    clock.advance(10)
    pool.expire()
    assert pool.states()["idle"] == 1
    assert pool.acquire(profile(), HELLO).slot is b.slot


def test_what_min_warm_lost_is_made_again(pool, factory, clock):
    """After its sandbox was ended for another function's work, a new one comes as soon as there is a place."""
    pool.reconfigure(replace_spec(concurrency=1))
    wished(pool, 1)
    other = pool.acquire(profile(pool.spec), OTHER)
    assert factory.created[0].binding == HELLO
    pool.refill()
    settle()
    assert len(factory.created) == 2, "it takes no place from work"
    pool.release(other, reusable=False)
    pool.refill()
    settle()
    assert factory.created[2].binding == HELLO


def test_a_new_version_replaces_what_min_warm_kept(pool, factory, tally):
    """At once where the place is needed, and the new one is bound before a call comes."""
    pool.reconfigure(replace_spec(concurrency=1))
    wished(pool, 1)
    wished(pool, 1, replace(HELLO, version="v2"))
    assert [s.terminated for s in factory.created] == [True, False]
    assert factory.created[1].binding.version == "v2"
    assert ends(tally) == {"hello new_version": 1}


def test_idle_sandboxes_of_an_old_version_go_soon(pool, clock, tally):
    """Jobs that were queued before the deploy may still use them for some seconds."""
    use(pool)
    pool.prepare(Plan(versions={"hello": "v2"}))
    assert pool.expire() == pytest.approx(5)
    clock.advance(5)
    pool.expire()
    gevent.sleep(0)
    assert ends(tally) == {"hello new_version": 1}


def test_code_that_does_not_load_is_not_tried_for_ever(pool, factory, clock, tally):
    """min_warm of broken code waits longer after each failure, and leaves nothing behind."""
    broken = replace(HELLO, handler="missing.handle")
    wished(pool, 1, broken)
    assert pool.refill() == pytest.approx(1)
    assert [s.terminated for s in factory.created] == [True]
    clock.advance(1)
    pool.refill()
    settle()
    assert len(factory.created) == 2
    assert pool.refill() == pytest.approx(5)
    assert ends(tally) == {"hello failed_load": 2}
    assert sum(pool.states().values()) == 0


def test_a_spare_that_cannot_be_made_is_tried_again_later(pool, factory, clock):
    """Trouble with the engine makes no loop."""
    factory.fail_next = 2
    stocked(pool)
    assert factory.created == []
    assert pool.refill() == pytest.approx(5)
    clock.advance(5)
    pool.refill()
    settle()
    assert pool.states()["stem"] == 2


class SlowFactory(FakeSandboxFactory):
    """Each create waits to be allowed; ``most`` is how many ever waited at once."""

    def __init__(self) -> None:
        super().__init__({"handler.handle": lambda event, context: event})
        self.allowed = Semaphore(0)
        self.waiting = self.most = 0

    def create(self, profile: SandboxProfile) -> FakeSandbox:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            self.allowed.acquire()
        finally:
            self.waiting -= 1
        return super().create(profile)

    def allow(self, creates: int) -> None:
        """So many may go on."""
        for _ in range(creates):
            self.allowed.release()


@pytest.fixture
def slow() -> SlowFactory:
    return SlowFactory()


def test_a_burst_creates_no_more_at_once_than_the_gate_lets(slow, clock):
    """Fifty attempts of a function that was never called before: all served, two creates at any moment."""
    pool = SandboxPool("default", replace_spec(concurrency=50), slow, Gate(2), clock)
    greenlets = [gevent.spawn(pool.acquire, profile(pool.spec), HELLO) for _ in range(50)]
    settle()
    assert slow.waiting == 2
    slow.allow(100)
    gevent.joinall(greenlets, timeout=5, raise_error=True)
    assert len({greenlet.value.sandbox.id for greenlet in greenlets}) == 50
    assert slow.most == 2


def test_who_waits_for_a_container_takes_a_warm_one_that_comes_free(slow, clock):
    """A burst of short calls is served by few sandboxes, and what was being made is not thrown away."""
    pool = SandboxPool("default", replace_spec(concurrency=3), slow, Gate(1), clock)
    stocked(pool)
    first = gevent.spawn(pool.acquire, profile(), HELLO)
    second = gevent.spawn(pool.acquire, profile(), HELLO)
    settle()
    slow.allowed.release()
    settle()
    seat = first.get(timeout=1)
    pool.bind(seat, HELLO, 1, lambda _: None)
    assert not second.ready()
    pool.release(seat, reusable=True)
    assert seat.start == "cold", "whoever gives it back still tells how it got it"
    freed = second.get(timeout=1)
    assert freed.slot is seat.slot
    assert (freed.start, freed.reason) == ("warm", "freed")
    assert pool.free == 2
    slow.allow(3)
    settle()
    assert pool.states()["stem"] == 2


def test_waiting_work_goes_before_spares(slow, clock):
    """An attempt's container is made before any that nobody waits for."""
    gate = Gate(1)
    pool = SandboxPool("default", SPEC, slow, gate, clock)
    stocked(pool)
    assert slow.waiting == 1
    other = replace(profile(), image_id="sha256:2")
    attempt = gevent.spawn(pool.acquire, other, HELLO)
    settle()
    slow.allow(2)
    settle()
    assert attempt.ready()
    assert pool.states()["stem"] == 1


def test_spares_leave_a_place_at_the_gate(slow, clock):
    """Work never waits behind two spares."""
    pool = SandboxPool("default", SPEC, slow, Gate(2), clock)
    stocked(pool)
    assert slow.waiting == 1


def test_an_error_of_a_create_reaches_one_attempt_and_the_others_go_on(slow, clock):
    """Each failure costs one start; who waits longest hears of it."""
    pool = SandboxPool("default", SPEC, slow, Gate(2), clock)
    slow.fail_next = 1
    a, b = (gevent.spawn(pool.acquire, profile(), HELLO) for _ in range(2))
    settle()
    slow.allow(5)
    gevent.joinall([a, b], timeout=5)
    assert isinstance(a.exception, SandboxStartError)
    assert b.value.sandbox is not None
    assert pool.free == 1


def test_memory_evicts_the_longest_idle_one_of_any_pool(factory, clock, tally):
    """Idle sandboxes stay within the budget of the runner; stems go last, and work is never refused."""
    ledger, gate = Ledger(3 * 256), Gate(2)
    pools = [SandboxPool(name, SPEC, factory, gate, clock, ledger=ledger, tally=tally) for name in ("a", "b")]
    stocked(pools[0], stems=1)
    for number, pool in enumerate(pools):
        use(pool, replace(HELLO, function=f"f{number}"))
        clock.advance(1)
    assert ledger.used_mb == 2 * 256
    stocked(pools[0], stems=1)
    assert ledger.used_mb == 3 * 256
    busy = pools[1].acquire(profile(), OTHER)
    gevent.sleep(0)
    assert ends(tally) == {"f0 memory": 1}
    pools[1].bind(busy, OTHER, 1, lambda _: None)
    more = [pools[0].acquire(replace(profile(), image_id="sha256:9"), HELLO) for _ in range(2)]
    gevent.sleep(0)
    assert ends(tally) == {"f1 memory": 1, " memory": 1}
    assert ledger.used_mb == 3 * 256
    more.append(pools[1].acquire(profile(), HELLO))
    assert ledger.used_mb == 4 * 256, "work goes ahead"
    for slot in more:
        pools[more.index(slot) // 2].destroy(slot, EndReason.FAILED_CRASH)
    assert ledger.used_mb == 256


def test_no_spares_beyond_the_memory_budget(factory, clock):
    """What is kept ahead of need never goes over it."""
    pool = SandboxPool("default", SPEC, factory, Gate(2), clock, ledger=Ledger(300))
    wished(pool, 2)
    stocked(pool)
    assert len(factory.created) == 1


def test_the_helper_of_a_contract_counts_as_memory(factory, clock):
    """A sandbox of contract http is two containers; what both may take is taken, and given back."""
    ledger = Ledger(1000)
    pool = SandboxPool("default", SPEC, factory, Gate(2), clock, ledger=ledger)
    seat = pool.acquire(replace(profile(), shim="http"), HELLO)
    assert ledger.used_mb == 256 + 64
    pool.destroy(seat, EndReason.FAILED_CRASH)
    assert ledger.used_mb == 0


def test_close_waits_for_what_is_being_made(slow, clock):
    """A container that is created during the shutdown is ended too."""
    pool = SandboxPool("default", SPEC, slow, Gate(2), clock)
    stocked(pool)
    gevent.spawn_later(0.01, slow.allowed.release)
    pool.close(5.0)
    assert [s.terminated for s in slow.created] == [True]
    assert sum(pool.states().values()) == 0


def test_reasons_are_counted_by_function_and_pool(pool, tally):
    """What /metrics shows; taking empties it, what could not be told is kept."""
    use(pool)
    use(pool)
    counts = tally.take()
    assert counts == {"start:default:hello:cold:no_stem": 1, "start:default:hello:warm:": 1}
    assert tally.take() == {}
    tally.put_back(counts)
    assert tally.take() == counts


def settle() -> None:
    """Let every greenlet come to its next wait."""
    for _ in range(50):
        gevent.sleep(0)


def stocked(pool: SandboxPool, stems: int = 2) -> None:
    if stems != pool.spec.stems and pool.spec.stems:
        pool.reconfigure(msgspec.structs.replace(pool.spec, stems=stems))
    pool.prepare(Plan(stems=(profile(pool.spec),)))
    pool.refill()
    settle()


def wished(pool: SandboxPool, number: int, binding: Binding = HELLO) -> None:
    wish = Wish(profile(pool.spec), binding, Reuse(), 1.0, number)
    pool.prepare(Plan(wishes=(wish,), versions={binding.function: binding.version}))
    pool.refill()
    settle()


def starts(tally: Tally) -> dict[str, int]:
    found = {}
    for name, number in tally.take().items():
        kind, _, function, *words = name.split(":")
        if kind == "start":
            found[" ".join([function, *words])] = number
    return found


def ends(tally: Tally) -> dict[str, int]:
    found = {}
    for name, number in tally.take().items():
        kind, _, function, reason = name.split(":")[:4]
        if kind == "end":
            found[f"{function} {reason}"] = number
    return found


def replace_spec(**changes: object) -> PoolSpec:
    return PoolSpec(**{"concurrency": 2, "idle_timeout_ms": 10_000, **changes})
