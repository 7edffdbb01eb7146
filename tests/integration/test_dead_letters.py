"""Dead letters against a real server: found by filter and page, replayed once and paced, purged, kept and capped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bananas import errors, keys
from bananas.dead_letters import DeadFilter, DeadLetters
from bananas.job import DeadReason, JobState, NewJob, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.spec import PoolSpec, RetrySpec
from tests.integration.jobs import LEASE_MS, end, enqueue, ids, let_expire, make_past, settlement
from tests.integration.test_queue import REPLY, claim, deploy, expire_lease, settle

pytestmark = pytest.mark.redis

ANY = DeadFilter()
DEAD_MS = LIMITS.dead_ttl_s * 1000


@pytest.fixture
def letters(connections: Connections) -> DeadLetters:
    return DeadLetters(connections)


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    registry.put_pool("gpu", PoolSpec())
    deploy(registry, "f")
    deploy(registry, "g")
    return registry


def die(queue: Queue, n: int = 1, function: str = "f", **kw: object) -> list[str]:
    """Jobs that fail for good; all died at once, so their order is that of their ids."""
    jobs = enqueue(queue, n, function, **kw)
    end(queue, claim(queue, n), Outcome.PERMANENT)
    return sorted(jobs)


def died_at(connections: Connections, times: dict[str, int]) -> None:
    connections.commands.zadd(keys.DEAD, times, xx=True)


def all_pages(letters: DeadLetters, wanted: DeadFilter, limit: int) -> list[list[str]]:
    """Ids of each page."""
    pages, cursor = [], None
    while True:
        page = letters.page(wanted, cursor, limit)
        pages.append([letter.id for letter in page.letters])
        cursor = page.cursor
        if cursor is None:
            return pages


def found(pages: list[list[str]]) -> list[str]:
    return [job_id for page in pages for job_id in page]


# -- reasons and listing ------------------------------------------------------------------------------------------


def test_each_way_to_die_has_its_reason(queue, letters, registry, connections):
    """What a letter says of itself, and the counters by reason."""
    deploy(registry, "never", retries=RetrySpec(max=0))
    [exhausted] = enqueue(queue, 1, "never")
    settle(queue, claim(queue)[0], Outcome.ERROR)
    [permanent] = die(queue)
    [poisoned] = enqueue(queue, 1, "f")
    for _ in range(3):
        claim(queue)
        expire_lease(connections, poisoned)
        queue.reap()
    [start] = enqueue(queue, 1, "f")
    for _ in range(6):
        settle(queue, claim(queue)[0], Outcome.START)
        connections.commands.zadd(keys.SCHEDULE, {start: 1}, xx=True)
        queue.promote()
    [late] = enqueue(queue, 1, "f", expires_after_ms=60_000)
    let_expire(connections, [late])
    queue.expire()
    told = {letter.id: letter for letter in letters.page(ANY).letters}
    assert {job_id: letter.reason for job_id, letter in told.items()} == {
        exhausted: "retries_exhausted",
        permanent: "permanent",
        poisoned: "poisoned",
        start: "start_failed",
        late: "expired",
    }
    assert {job_id: letter.attempts for job_id, letter in told.items()} == {
        exhausted: 1, permanent: 1, poisoned: 3, start: 6, late: 0,
    }  # fmt: skip
    assert all(letter.error and b'"type"' in letter.error for letter in told.values())
    counters = queue.counts().counters
    assert all(counters[f"dead:{reason}"] == 1 for reason in DeadReason)
    assert ids(letters.page(DeadFilter(reason=DeadReason.POISONED)).letters) == [poisoned]


def test_filters_by_function_and_time(queue, letters, registry, connections):
    """At or after one time, before another; oldest first."""
    old, new = die(queue), die(queue)
    other = die(queue, function="g")
    died_at(connections, {old[0]: 1000, other[0]: 2000, new[0]: 3000})
    assert ids(letters.page(ANY).letters) == [*old, *other, *new]
    assert ids(letters.page(DeadFilter(function="f")).letters) == [*old, *new]
    assert ids(letters.page(DeadFilter(after_ms=2000)).letters) == [*other, *new]
    assert ids(letters.page(DeadFilter(before_ms=3000)).letters) == [*old, *other]
    assert ids(letters.page(DeadFilter("f", after_ms=1001, before_ms=3000)).letters) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_have_every_letter_once(queue, letters, registry, connections, limit):
    """Also when many died in the same millisecond."""
    jobs = die(queue, 7)
    assert found(all_pages(letters, ANY, limit)) == jobs
    assert all(len(page) <= limit for page in all_pages(letters, ANY, limit))
    assert found(all_pages(letters, DeadFilter(before_ms=1), limit)) == []


def test_a_page_looks_at_a_bounded_number_of_letters(queue, letters, registry):
    """A filter that matches little goes on by cursor, and finds what there is."""
    die(queue, 1500)
    [rare] = die(queue, function="g")
    first = letters.page(DeadFilter(function="g"))
    assert (first.letters, first.cursor is None) == ([], False)
    assert found(all_pages(letters, DeadFilter(function="g"), 10)) == [rare]


def test_a_cursor_that_is_none_is_refused(letters):
    """Named, with what would be right."""
    with pytest.raises(errors.InvalidRequest, match="not a cursor"):
        letters.page(ANY, "yesterday")


# -- replay -------------------------------------------------------------------------------------------------------


def test_a_replayed_job_is_the_same_job_with_a_full_set_of_tries(queue, letters, registry, connections):
    """Its id, token, history and logs stay; failures start anew; an old attempt's report is still refused."""
    [job] = enqueue(queue, 1, "f", max_retries=0)
    [old] = claim(queue)
    settle(queue, old, Outcome.ERROR, logs=b"tried")
    assert letters.replay([job]) == [JobState.PENDING]
    record = queue.show(job)
    assert (record.state, record.token, record.failures, record.reason, record.error) == ("pending", 1, 0, None, None)
    assert record.finished_at_ms is None
    assert connections.commands.pttl(keys.job(job)) == -1
    assert letters.page(ANY).letters == []
    assert settle(queue, old, Outcome.OK, b'"old"').settled == [False]
    [new] = claim(queue)
    assert (new.id, new.token, new.retries.max, new.failures) == (job, 2, 3, 0)
    settle(queue, new, Outcome.OK, b'"new"', logs=b"again")
    record = queue.show(job)
    assert (record.state, record.result, len(record.history)) == (JobState.COMPLETED, b'"new"', 2)
    assert queue.logs(job) == {1: b"tried", 2: b"again"}
    assert queue.counts().counters["replayed"] == 1


def test_replay_in_the_failed_pool_and_priority_with_another_payload(queue, letters, registry, connections):
    """An edited payload replaces the old one; a waiter of the second life hears of its end."""
    deploy(registry, "h", pool="gpu")
    [job] = enqueue(queue, 1, "h", priority="high")
    end(queue, claim(queue, 1, "gpu"), Outcome.PERMANENT)
    letters.replay([job], payload=b'{"fixed":true}')
    assert queue.wait(job, REPLY) is None
    [c] = claim(queue, 1, "gpu")
    assert (c.payload, c.priority) == (b'{"fixed":true}', "high")
    settle(queue, c, Outcome.OK, b"1")
    assert [reply.state for reply in queue.replies(REPLY, 1, 9, ahead=1).pop()] == [JobState.COMPLETED]


def test_a_paced_replay_spreads_its_jobs(queue, letters, registry, connections):
    """The first at once, each further one the interval later; one that is refused leaves no gap."""
    jobs = die(queue, 3)
    assert letters.replay([jobs[0], "nope", *jobs[1:]], interval_ms=60_000)[0] is JobState.PENDING
    due = [int(connections.commands.hget(keys.job(job), "due")) for job in jobs]
    assert [due[1] - due[0], due[2] - due[1]] == [60_000, 60_000]
    assert [queue.show(job).state for job in jobs] == ["pending", "scheduled", "scheduled"]
    assert ids(claim(queue, 9)) == jobs[:1]
    make_past(connections, keys.SCHEDULE, jobs[1:])
    queue.promote()
    assert ids(claim(queue, 9)) == jobs[1:]


def test_replay_runs_the_code_of_now_or_that_which_failed(queue, letters, registry, connections):
    """Current by default; the same on demand, as long as it is kept."""
    now, same, gone = die(queue, 3)
    old = queue.show(now).version
    new = deploy(registry, "f", timeout_ms=1234, retries=RetrySpec(max=7))
    letters.replay([now])
    connections.commands.pexpire(keys.version("f", old), 5000)
    letters.replay([same], version="same")
    assert connections.commands.pttl(keys.version("f", old)) > 5000, "kept for the replayed job"
    assert [(c.version, c.timeout_ms, c.retries.max) for c in claim(queue, 9)] == [(new, 1234, 7), (old, 30_000, 3)]
    connections.commands.delete(keys.version("f", old))
    [refusal] = letters.replay([gone], version="same")
    assert isinstance(refusal, errors.VersionGone)
    assert old in str(refusal)
    assert queue.show(gone).state is JobState.FAILED


def test_what_cannot_be_replayed_says_why_and_stays(queue, letters, registry, connections, monkeypatch):
    """Unknown, not dead, removed function, no room: each by itself, none hinders the others."""
    [live] = enqueue(queue, 1, "g", delay_ms=60_000)
    orphan = die(queue, function="g")
    good = die(queue)
    registry.remove("g")
    answers = letters.replay([live, "nope", *orphan, *good, *good])
    kinds = [answer if isinstance(answer, JobState) else type(answer) for answer in answers]
    dead, unknown = errors.JobNotDead, errors.UnknownJob
    assert kinds == [dead, unknown, errors.UnknownFunction, JobState.PENDING, dead]
    assert ids(letters.page(ANY).letters) == orphan
    more = die_later(queue, 1)
    monkeypatch.setattr("bananas.dead_letters.LIMITS", replace(LIMITS, queued_jobs=1))
    [full] = letters.replay(more)
    assert isinstance(full, errors.QueueFull)
    assert queue.show(more[0]).state is JobState.FAILED
    assert letters.replay([]) == []


def die_later(queue: Queue, n: int) -> list[str]:
    """Dead letters while another job waits in front of them."""
    jobs = enqueue(queue, n, "f", priority="high")
    claims = claim(queue, n)
    assert ids(claims) == jobs
    end(queue, claims, Outcome.PERMANENT)
    return jobs


def test_replay_by_filter_reaches_every_letter_once(queue, letters, registry, connections):
    """Page by page, also when replayed ones die again meanwhile; what is refused is told and passed."""
    orphans = die(queue, 3, "g")
    jobs = die(queue, 7)
    for age, job in enumerate(sorted([*orphans, *jobs])):
        died_at(connections, {job: 1000 + age})
    registry.remove("g")
    before = DeadFilter(before_ms=5000)
    moved, refused, cursor = [], {}, None
    while True:
        done = letters.replay_matching(before, cursor=cursor, limit=3)
        moved += done.moved
        refused |= done.refused
        cursor = done.cursor
        end(queue, claim(queue, 9), Outcome.PERMANENT)
        if cursor is None:
            break
    assert sorted(moved) == sorted(jobs)
    assert len(moved) == len(set(moved))
    assert sorted(refused) == sorted(orphans)
    assert all(isinstance(e, errors.UnknownFunction) for e in refused.values())
    assert {queue.show(job).token for job in jobs} == {2}


def test_a_full_function_sets_replayed_jobs_aside(queue, letters, registry):
    """A replay respects max_concurrency like everything else."""
    deploy(registry, "one", max_concurrency=1)
    jobs = enqueue(queue, 3, "one")
    for _ in jobs:
        end(queue, claim(queue, 1), Outcome.PERMANENT)
    letters.replay(jobs)
    assert ids(claim(queue, 9)) == jobs[:1]


# -- keeping and purging ------------------------------------------------------------------------------------------


def test_a_purged_letter_is_gone_for_good(queue, letters, registry):
    """Only dead ones; a tombstone tells gone from unknown."""
    first, second = die(queue, 2)
    [live] = enqueue(queue, 1, "f")
    assert letters.purge([first, live, "nope"]) == 1
    with pytest.raises(errors.JobExpired):
        queue.show(first)
    assert queue.show(live).state is JobState.PENDING
    assert ids(letters.page(ANY).letters) == [second]
    assert letters.purge([]) == 0
    assert queue.counts().counters["purged"] == 1


def test_purge_by_filter_takes_what_matches(queue, letters, registry):
    """Page by page, and nothing else."""
    jobs, others = die(queue, 5), die(queue, 2, "g")
    first = letters.purge_matching(DeadFilter(function="f"), limit=3)
    rest = letters.purge_matching(DeadFilter(function="f"), cursor=first.cursor)
    assert [first.moved, rest.moved, rest.cursor] == [jobs[:3], jobs[3:], None]
    assert ids(letters.page(ANY).letters) == others


def test_letters_are_kept_for_14_days(queue, letters, registry, connections):
    """Their record as long as their place in the list; then gone, not unknown."""
    old, young = die(queue, 2)
    assert DEAD_MS + 55_000 < connections.commands.pttl(keys.job(old)) <= DEAD_MS + 60_000, "until it is swept"
    connections.commands.zincrby(keys.DEAD, -DEAD_MS, old)
    assert queue.sweep() == 1
    with pytest.raises(errors.JobExpired):
        queue.show(old)
    assert queue.show(young).state is JobState.FAILED


def test_depth_and_oldest_age_are_told(queue, letters, registry, connections):
    """For /metrics: how many, and since when the oldest waits for somebody to look."""
    counts = queue.counts()
    assert (counts.dead, counts.oldest_dead_ms) == (0, counts.now_ms)
    jobs = die(queue, 2)
    died_at(connections, {jobs[0]: 12_345})
    counts = queue.counts()
    assert (counts.dead, counts.oldest_dead_ms) == (2, 12_345)


def test_a_dead_letter_takes_no_place(queue, letters, registry, connections):
    """Neither of its function nor of its pool."""
    registry.put_pool("default", PoolSpec(max_concurrency=1))
    deploy(registry, "one", max_concurrency=1)
    for _ in range(3):
        queue.enqueue(NewJob("one", b"1"))
        [c] = claim(queue)
        assert queue.step("runner", LEASE_MS, [settlement(c, Outcome.PERMANENT)], []).settled == [True]
    assert not connections.commands.exists(keys.running("one"), keys.busy("default"), keys.LEASES)
