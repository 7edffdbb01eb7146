"""What keeps a runner from taking jobs for now: an engine that does not answer, GPUs that others have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from bananas.errors import EngineUnavailable
from bananas.spec import PoolSpec
from runner.enginewatch import EngineWatch
from runner.gpus import Gpus, Lease
from runner.holdups import HoldUps


def no_crash(role: str, error: BaseException) -> None:
    raise AssertionError(f"{role}: {error}")


class Engine:
    """Answers as told."""

    def __init__(self) -> None:
        self.is_there = True
        self.pings = 0
        self.back = Event()
        #: Set: a ping waits for it.
        self.hangs: Event | None = None

    def ping(self) -> None:
        self.pings += 1
        if self.hangs is not None:
            self.hangs.wait(20)
        if not self.is_there:
            raise EngineUnavailable("the Docker Engine does not answer")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def watch(engine: Engine) -> Iterator[EngineWatch]:
    watch = EngineWatch(no_crash, engine.ping, engine.back.set)
    yield watch
    watch.stop(5)


def test_an_engine_that_goes_is_noticed_at_once_by_who_fails_and_its_return_by_itself(
    engine: Engine, watch: EngineWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is said once, however many ask."""
    watch.start()
    assert watch.doubt()
    engine.is_there = False
    assert not watch.doubt()
    assert not watch.answers
    asked = engine.pings
    assert not any(watch.doubt() for _ in range(5))
    assert engine.pings == asked  # it is known already; the role itself looks for its return
    engine.is_there = True
    assert engine.back.wait(20)
    assert watch.answers
    said = [record.message for record in caplog.records if record.name == "bananas.engine"]
    assert [text.partition(",")[0].partition(":")[0] for text in said] == [
        "no job is taken until the engine answers again",
        "the engine answers again",
    ]


def test_many_who_doubt_at_a_time_cost_one_ping(engine: Engine, watch: EngineWatch) -> None:
    """An engine that hangs is not asked by every attempt that waits for it."""
    engine.hangs, engine.is_there = Event(), False
    first = gevent.spawn(watch.doubt)
    gevent.sleep(0)
    asking = [gevent.spawn(watch.doubt) for _ in range(20)]
    gevent.sleep(0)
    engine.hangs.set()
    gevent.joinall([first, *asking], timeout=20, raise_error=True)
    assert {greenlet.value for greenlet in (first, *asking)} == {False}
    assert engine.pings <= 2


class Pool:
    """As much of a pool as is asked."""

    def __init__(self, name: str, at_work: int = 0, idle: int = 0, **spec: Any) -> None:
        self.name = name
        self.spec = PoolSpec(**spec)
        self.free = self.spec.concurrency - at_work
        self._idle = idle

    def states(self) -> Counter[str]:
        return Counter(idle=self._idle)


def hold_ups(gpus: Gpus, *pools: Pool, engine_answers: bool = True) -> HoldUps:
    return HoldUps({pool.name: pool for pool in pools}, gpus, lambda: engine_answers)  # type: ignore[misc]


def free(gpus: Gpus, asked: Pool, *others: Pool) -> int:
    return hold_ups(gpus, asked, *others).free(asked)  # type: ignore[arg-type]


def test_without_its_engine_a_runner_takes_nothing(tmp_path: Path) -> None:
    """In no pool, and it says why for each."""
    pools = [Pool("a", concurrency=4), Pool("b", concurrency=4, at_work=4)]
    found = hold_ups(Gpus((), tmp_path), *pools, engine_answers=False)
    assert found.free(pools[0]) == 0  # type: ignore[arg-type]
    assert found.reasons() == {"a": "engine", "b": "engine"}
    found = hold_ups(Gpus((), tmp_path), *pools)
    assert (found.free(pools[0]), found.free(pools[1]), found.reasons()) == (4, 0, {})  # type: ignore[arg-type]


def test_a_pool_takes_as_many_jobs_as_it_can_have_devices_for(tmp_path: Path) -> None:
    """Those of other runners and of busy pools are not there; its own, and those of idle sandboxes, are."""
    mine, other = Gpus(["0", "1"], tmp_path / "gpus"), Gpus(["0", "1"], tmp_path / "gpus")
    both = Pool("both", concurrency=1, gpus="all")
    assert free(mine, Pool("gpu", concurrency=2, gpus=1)) == 2
    taken = other.lease(1, "elsewhere")
    assert free(mine, Pool("gpu", concurrency=2, gpus=1)) == 1
    assert free(mine, both) == 0
    assert hold_ups(mine, both).reasons() == {"both": "gpus"}
    own = mine.lease(1, "gpu")
    assert free(mine, Pool("gpu", concurrency=2, gpus=1, at_work=1)) == 0
    assert free(mine, Pool("gpu", concurrency=2, gpus=1, idle=1)) == 1
    assert free(mine, Pool("third", concurrency=2, gpus=1), Pool("gpu", gpus=1, at_work=1)) == 0
    assert free(mine, Pool("third", concurrency=2, gpus=1), Pool("gpu", gpus=1, idle=1)) == 1
    taken.close()
    own.close()
    assert free(mine, both) == 1


def test_a_pool_without_enough_devices_is_not_held_up(tmp_path: Path) -> None:
    """Its jobs are to fail with the reason, instead of waiting for what never comes."""
    for gpus, wanted in ((Gpus((), tmp_path), 1), (Gpus((), tmp_path), "all"), (Gpus(["0"], tmp_path), 2)):
        pool = Pool("gpu", concurrency=3, gpus=wanted)
        assert (free(gpus, pool), hold_ups(gpus, pool).reasons()) == (3, {})


def test_devices_that_come_back_are_told_of(tmp_path: Path) -> None:
    """So that jobs which wait for them begin at once."""
    gpus, told = Gpus(["0"], tmp_path / "gpus"), []
    gpus.on_freed = lambda: told.append(1)
    lease: Lease = gpus.lease(1, "gpu")
    assert not told
    lease.close()
    lease.close()
    assert told == [1]
