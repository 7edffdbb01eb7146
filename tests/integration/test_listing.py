"""Lists of jobs: every question over every index, page by page, and the lists' own upkeep."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bananas import errors, keys
from bananas.job import JobState, NewJob, Outcome
from bananas.leftovers import Leftovers
from bananas.listing import SCAN, JobLists, Question
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.spec import PoolSpec
from tests.integration.gateway_player import Player
from tests.integration.jobs import enqueue, repairs

pytestmark = pytest.mark.redis


@pytest.fixture
def lists(connections: Connections) -> JobLists:
    return JobLists(connections)


@pytest.fixture
def queue(player: Player) -> Queue:
    player.deploy("other", allow_pools=())
    return player.queue


def every(lists: JobLists, limit: int, **wanted: object) -> list[str]:
    """All pages of a question."""
    found: list[str] = []
    cursor = None
    while True:
        page = lists.page(Question(**wanted), cursor, limit)
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        cursor = page.cursor
        if cursor is None:
            return found


def newest_first(lists: JobLists, ids: Sequence[str]) -> list[str]:
    jobs = {job.id: job for job in lists.page(Question(), None, 1000).jobs}
    return sorted(ids, key=lambda i: (jobs[i].created_at_ms, i), reverse=True)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_all_jobs_come_once_newest_first_over_pages(lists, queue, limit):
    """Of one function and of all together."""
    ids = {name: [] for name in ("hello", "other")}
    for name in ["hello", "other", "other", "hello", "hello", "other", "hello"]:
        ids[name] += enqueue(queue, 2, name)
    assert every(lists, limit) == newest_first(lists, ids["hello"] + ids["other"])
    assert every(lists, limit, function="other") == newest_first(lists, ids["other"])
    assert every(lists, limit, may_see=lambda name: name == "hello") == newest_first(lists, ids["hello"])
    assert every(lists, limit, function="nobody") == []


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_each_state_is_found_where_it_is_kept(lists, queue, player, limit):
    """A job in every state, of two functions; a list by state has those and no others."""
    player.registry.put_pool("gpu", PoolSpec())
    player.deploy("hello", max_concurrency=1, allow_pools=("gpu",))
    ids: dict[str, list[str]] = {}
    for name in ("other", "hello"):
        completed, failed, cancelled, processing = enqueue(queue, 4, name)
        for job_id, outcome in ((completed, Outcome.OK), (failed, Outcome.PERMANENT)):
            claim = player.claim()
            assert claim.id == job_id
            player.settle(claim, outcome, error=None if outcome is Outcome.OK else {"type": "E", "message": "m"})
        queue.cancel(cancelled)
        assert player.claim().id == processing
        scheduled = enqueue(queue, 2, name, delay_ms=60_000)
        waiting = enqueue(queue, 2, name) + enqueue(queue, 1, name, priority="high")
        queue.step("player", 30_000, [], [("default", 0)])
        states = {"completed": [completed], "failed": [failed], "cancelled": [cancelled], "processing": [processing]}
        for state, found in {**states, "scheduled": scheduled, "pending": waiting}.items():
            ids.setdefault(state, []).extend(found)
        if name == "other":
            for _ in waiting:
                queue.cancel(ids["pending"].pop())
            ids["cancelled"] += waiting
    in_gpu = enqueue(queue, 1, "hello", pool="gpu")
    ids["pending"] += in_gpu
    assert not queue.step("player", 30_000, [], [("default", 3)]).claims, "all of hello wait for its max_concurrency"
    for state in JobState:
        found = every(lists, limit, state=state)
        assert sorted(found) == sorted(ids[state.value]), state
        shown = lists.page(Question(state=state), None, 100).jobs
        assert {job.state for job in shown} == {state}
        mine = every(lists, limit, state=state, function="hello")
        assert mine == [job.id for job in shown if job.function == "hello"]


def test_a_page_goes_on_where_it_ended_whatever_happened_meanwhile(lists, queue, player):
    """What stays is seen once, though jobs come and go between two pages, also the one at which a page ended."""
    ids = enqueue(queue, 9, "hello")
    for state in (None, JobState.PENDING):
        first = lists.page(Question(state=state), None, 3)
        left = [job.id for job in first.jobs]
        more = enqueue(queue, 4, "hello")
        queue.cancel(more[0])
        rest = lists.page(Question(state=state), first.cursor, 100)
        assert not {job.id for job in rest.jobs} & {*left, *more}
        assert len(rest.jobs) >= 6
    first = lists.page(Question(state=JobState.PENDING), None, 2)
    queue.cancel(first.jobs[-1].id)
    seen = {job.id for job in lists.page(Question(state=JobState.PENDING), first.cursor, 100).jobs}
    assert set(ids) - {first.jobs[-1].id} <= seen | {job.id for job in first.jobs}


def test_a_rare_state_costs_a_bounded_page(lists, queue, connections):
    """A page without a match still has a cursor, and its end is reached."""
    ids = enqueue(queue, SCAN + 50, "hello")
    queue.cancel(ids[0])
    connections.commands.zadd(keys.jobs("hello"), {ids[0]: 1})  # the oldest by far
    page = lists.page(Question(state=JobState.CANCELLED), None, 10)
    assert page.jobs == []
    assert page.cursor is not None
    assert every(lists, 10, state=JobState.CANCELLED) == [ids[0]]


def test_cursors_of_other_lists_are_refused(lists, queue):
    """With what would be right."""
    enqueue(queue, 2, "hello")
    cursor = lists.page(Question(), None, 1).cursor
    assert cursor is not None
    for wanted, wrong in ((Question(JobState.FAILED), cursor), (Question(), "x"), (Question(), cursor + "\n")):
        with pytest.raises(errors.InvalidRequest, match="not a cursor of this list"):
            lists.page(wanted, wrong, 1)


def test_lists_forget_records_that_are_gone(lists, queue, player, connections):
    """With the sweep and the purge; a record that ended unswept goes in the janitor's walk."""
    swept, purged, lost, stays = enqueue(queue, 4, "hello")
    for job_id, outcome in ((swept, Outcome.OK), (purged, Outcome.PERMANENT), (lost, Outcome.OK)):
        claim = player.claim()
        assert claim.id == job_id
        player.settle(claim, outcome, error=None if outcome is Outcome.OK else {"type": "E", "message": "m"})
    connections.commands.zadd(keys.DONE, {swept: 1})
    assert queue.sweep() == 1
    from bananas.dead_letters import DeadLetters

    assert DeadLetters(connections).purge([purged]) == 1
    connections.commands.delete(keys.job(lost))
    assert {raw.decode() for raw in connections.commands.zrange(keys.jobs("hello"), 0, -1)} == {lost, stays}
    assert every(lists, 100) == [stays]
    leftovers = Leftovers(connections)
    for _ in range(3):
        leftovers.forget()
    assert [raw.decode() for raw in connections.commands.zrange(keys.jobs("hello"), 0, -1)] == [stays]


def test_jobs_of_a_removed_function_stay_listed_until_they_are_gone(lists, queue, player, connections):
    """It is neither forgotten too early nor kept for ever."""
    [job] = enqueue(queue, 1, "hello")
    assert player.registry.remove("hello")
    assert every(lists, 100) == [job]
    queue.cancel(job)
    connections.commands.zadd(keys.DONE, {job: 1})
    queue.sweep()
    leftovers = Leftovers(connections)
    for _ in range(3):
        leftovers.forget()
    assert lists.functions() == ["other"]


def test_records_from_before_there_were_lists_are_added(lists, queue, connections):
    """The audit finds them."""
    ids = enqueue(queue, 3, "hello")
    connections.commands.delete(keys.jobs("hello"))
    assert every(lists, 100) == []
    assert repairs(queue) == {"listed": 3}
    assert sorted(every(lists, 100)) == sorted(ids)


def test_a_job_sent_twice_is_listed_once(lists, queue):
    """By its id and by its unique key."""
    job = NewJob("hello", b"1", unique_key="k")
    queue.enqueue(job)
    queue.enqueue(job)
    queue.enqueue(NewJob("hello", b"1", unique_key="k"))
    assert every(lists, 100) == [job.id]


@pytest.mark.parametrize("state", [None, JobState.PENDING, JobState.COMPLETED])
def test_a_page_of_all_functions_costs_few_round_trips(player, connections, state):
    """However many functions there are; also the pages after the first."""
    names = [f"f{n}" for n in range(60)]
    for name in names:
        player.deploy(name)
        enqueue(player.queue, 1, name)
    lists, trips = JobLists(connections), []
    send = connections.commands.connection_pool.get_connection

    def counted(*args: object, **kwargs: object) -> object:
        trips.append(args)
        return send(*args, **kwargs)

    connections.commands.connection_pool.get_connection = counted
    try:
        first = lists.page(Question(state), None, 20)
        again = lists.page(Question(state), first.cursor, 20) if first.cursor else first
    finally:
        connections.commands.connection_pool.get_connection = send
    if state is not JobState.COMPLETED:
        assert (len(first.jobs), len(again.jobs)) == (20, 20)
    assert 1 <= len(trips) <= 16
