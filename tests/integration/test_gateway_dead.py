"""The calls on dead letters: list, replay one or many, paced, purge; over a real Redis."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from bananas import keys
from bananas.job import NewJob, Outcome
from bananas.settings import LIMITS
from bananas.spec import RetrySpec
from tests.integration.gateway_player import Player, assert_problem, send
from tests.platform import until

pytestmark = pytest.mark.redis

NO_JOB = "01a20c00-0000-7000-8000-000000000000"


def die(player: Player, n: int = 1, name: str = "hello", outcome: Outcome = Outcome.PERMANENT) -> list[str]:
    """Jobs that failed for good, in the order in which they are listed."""
    ids = [player.queue.enqueue(NewJob(name, b'{"n":1}', max_retries=0)).id for _ in range(n)]
    for _ in range(n):
        player.settle(player.claim(), outcome, error={"type": "ValueError", "message": "boom", "traceback": "tb"})
    listed = player.queue._connections.commands.zrange(keys.DEAD, 0, -1)
    return [raw.decode() for raw in listed if raw.decode() in ids]


def age(connections, job_id: str, died_at: datetime) -> None:
    """Let a letter have died at another time."""
    connections.commands.zadd(keys.DEAD, {job_id: round(died_at.timestamp() * 1000)})


def test_letters_are_listed_oldest_first_and_paged(client, player):
    """In short: what it was, why it failed, when; a page says where the next one begins."""
    ids = die(player, 5)
    found = client.get("/dead").get_json()
    assert [letter["id"] for letter in found["letters"]] == ids
    assert found["cursor"] is None
    letter = found["letters"][0]
    died_at = letter.pop("died_at")
    assert datetime.now(UTC) - datetime.fromisoformat(died_at) < timedelta(minutes=1)
    assert letter == {
        "id": ids[0],
        "name": "hello",
        "version": player.registry.current("hello").version,
        "pool": "default",
        "reason": "permanent",
        "error": {"type": "ValueError", "message": "boom"},
        "attempts": 1,
    }
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get("/dead", query_string={"limit": 2, "cursor": cursor}).get_json()
        seen.append([letter["id"] for letter in page["letters"]])
        cursor = page["cursor"]
    assert seen == [ids[:2], ids[2:4], ids[4:]]


def test_filters_choose_by_function_reason_and_time(client, player, connections):
    """All that are given must match; a time counts from itself on, or up to itself."""
    player.deploy("other", retries=RetrySpec(max=0))
    [permanent], [exhausted], [other] = die(player), die(player, outcome=Outcome.ERROR), die(player, 1, "other")
    for hour, job_id in ((1, permanent), (2, exhausted), (3, other)):
        age(connections, job_id, datetime(2026, 11, 24, hour, tzinfo=UTC))

    def ids(**query: str) -> list[str]:
        return [letter["id"] for letter in client.get("/dead", query_string=query).get_json()["letters"]]

    assert ids(function="other") == [other]
    assert ids(reason="retries_exhausted") == [exhausted]
    assert ids(function="hello", reason="permanent") == [permanent]
    assert ids(function="nobody") == []
    assert ids(after="2026-11-24T02:00:00Z") == [exhausted, other]
    assert ids(before="2026-11-24T03:00:00+01:00") == [permanent]
    assert ids(after="2026-11-24T01:30:00Z", before="2026-11-24T02:30:00Z") == [exhausted]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("functoin=hello", "unknown key 'functoin'; did you mean 'function'?"),
        ("reason=tired", 'reason must be retries_exhausted, permanent, .* or expired, not "tired"'),
        ("after=2026-11-24T06:00:00", "after must be an RFC 3339 time with a zone"),
        ("before=1795500000", "before must be an RFC 3339 time with a zone"),
        ("limit=0", "limit must be a whole number from 1 to 1000, not 0"),
        ("limit=many", 'limit must be a whole number from 1 to 1000, not "many"'),
        ("cursor=x", "'x' is not a cursor"),
    ],
)
def test_a_wrong_query_is_told_and_never_ignored(client, query, said):
    """A filter with a typing error must not match everything."""
    assert_problem(client.get(f"/dead?{query}"), 422, "invalid-request", said)


def test_a_letter_is_replayed_with_its_history(client, player):
    """202: same id, a full set of tries, what was is still told; with the payload that was sent now, if any."""
    [job] = die(player)
    answer = send(client, "POST", f"/jobs/{job}/replay", b"")
    assert (answer.status_code, answer.get_json()) == (202, {"id": job, "status": "pending"})
    assert answer.headers["Location"] == f"/jobs/{job}"
    claim = player.claim()
    assert (claim.id, claim.payload, claim.token) == (job, b'{"n":1}', 2)
    player.settle(claim, Outcome.PERMANENT, error={"type": "E", "message": "again"})
    assert client.get(f"/jobs/{job}/payload").data == b'{"n":1}'
    answer = send(client, "POST", f"/jobs/{job}/replay", b'{"payload": {"n":  2.0}, "version": "same"}')
    assert answer.status_code == 202
    assert client.get(f"/jobs/{job}/payload").data == b'{"n":  2.0}'
    player.settle(player.claim(), result=b'"done"')
    record = client.get(f"/jobs/{job}").get_json()
    assert (record["status"], record["result"], record["reason"]) == ("completed", "done", None)
    assert [attempt["outcome"] for attempt in record["history"]] == ["permanent", "permanent", "ok"]


def test_a_null_payload_is_a_payload(client, player):
    """Not the same as none."""
    [job] = die(player)
    send(client, "POST", f"/jobs/{job}/replay", {"payload": None})
    assert player.claim().payload == b"null"


def test_replays_that_cannot_be_say_why(client, player, connections):
    """No such job, one that is gone, one that is not dead, a version that is not kept, a payload that is too large."""
    job = player.queue.enqueue(NewJob("hello", b"1")).id
    assert_problem(send(client, "POST", f"/jobs/{job}/replay", {}), 409, "job-not-dead", "is pending; only failed")
    assert_problem(send(client, "POST", f"/jobs/{NO_JOB}/replay", {}), 404, "unknown-job")
    assert_problem(send(client, "POST", "/jobs/x/replay", {}), 404, "unknown-job")
    connections.commands.set(keys.tomb(NO_JOB), "1", ex=60)
    assert_problem(send(client, "POST", f"/jobs/{NO_JOB}/replay", {}), 410, "job-expired")
    assert_problem(client.get(f"/jobs/{NO_JOB}/payload"), 410, "job-expired")
    player.queue.cancel(job)
    [job] = die(player)
    large = b'{"payload": "' + b"x" * LIMITS.payload_bytes + b'"}'
    assert_problem(send(client, "POST", f"/jobs/{job}/replay", large), 413, "too-large", "payload has")
    bad = {"version": "old", "payloda": 1}
    assert_problem(
        send(client, "POST", f"/jobs/{job}/replay", bad), 422, "invalid-request", "mean 'payload'.*version must be"
    )
    connections.commands.delete(keys.version("hello", player.registry.current("hello").version))
    same = send(client, "POST", f"/jobs/{job}/replay", {"version": "same"})
    assert_problem(same, 409, "version-gone", "replay with the current one")


def test_many_are_replayed_by_id(client, player):
    """Each is moved or refused by itself; one named twice is one."""
    ids = die(player, 2)
    answer = send(client, "POST", "/dead/replay", {"ids": [ids[1], NO_JOB, ids[0], ids[1]]})
    assert answer.status_code == 200
    body = answer.get_json()
    assert (body["moved"], body["cursor"]) == ([ids[1], ids[0]], None)
    assert body["refused"] == [{"id": NO_JOB, "code": "unknown-job", "detail": f"no job has the id {NO_JOB}"}]
    assert [player.claim().id for _ in range(2)] == [ids[1], ids[0]]


def replay_all(client, **body: object) -> list[list[str]]:
    """Follow the cursor; the ids moved by each call."""
    moved, cursor = [], None
    while True:
        answer = send(client, "POST", "/dead/replay", {**body, "cursor": cursor}).get_json()
        assert answer["refused"] == []
        moved.append(answer["moved"])
        cursor = answer["cursor"]
        if cursor is None:
            return moved


def test_a_replay_by_filter_goes_over_pages_and_keeps_its_pace(client, player):
    """Over all calls of one loop, each job is due one interval after the one before."""
    player.deploy("other")
    other = die(player, 1, "other")
    ids = die(player, 5)
    assert replay_all(client, function="hello", limit=2, per_second=0.1) == [ids[:2], ids[2:4], ids[4:]]
    records = [client.get(f"/jobs/{job}").get_json() for job in ids]
    assert [record["status"] for record in records] == ["pending", *["scheduled"] * 4]
    due = [datetime.fromisoformat(record["scheduled_for"]).timestamp() for record in records[1:]]
    gaps = [after - before for before, after in pairwise(due)]
    assert gaps == pytest.approx([10, 10, 10], abs=0.5)
    assert [letter["id"] for letter in client.get("/dead").get_json()["letters"]] == other


def test_a_loop_does_not_meet_letters_that_died_after_it_began(client, player):
    """Jobs that fail again at once would make it endless."""
    ids = die(player, 4)
    first = send(client, "POST", "/dead/replay", {"all": True, "limit": 2}).get_json()
    assert first["moved"] == ids[:2]
    began_ms = player.registry.now_ms()
    until(lambda: player.registry.now_ms() > began_ms + 1, 5.0, "the next moment")
    for _ in range(2):
        player.settle(player.claim(), Outcome.PERMANENT, error={"type": "E", "message": "again"})
    second = send(client, "POST", "/dead/replay", {"all": True, "limit": 50, "cursor": first["cursor"]}).get_json()
    assert (second["moved"], second["cursor"]) == (ids[2:], None)
    assert len(client.get("/dead").get_json()["letters"]) == 2


def test_a_purge_drops_the_chosen_and_nothing_else(client, player):
    """The ids answer 410 afterwards; an id that is no letter is not counted."""
    player.deploy("other")
    hello, other = die(player, 3), die(player, 1, "other")
    answer = send(client, "POST", "/dead/purge", {"ids": [hello[0], NO_JOB]})
    assert (answer.status_code, answer.get_json()) == (200, {"purged": 1, "cursor": None})
    assert_problem(client.get(f"/jobs/{hello[0]}"), 410, "job-expired")
    first = send(client, "POST", "/dead/purge", {"function": "hello", "limit": 1}).get_json()
    assert first["purged"] == 1
    rest = send(client, "POST", "/dead/purge", {"function": "hello", "cursor": first["cursor"]}).get_json()
    assert rest == {"purged": 1, "cursor": None}
    assert [letter["id"] for letter in client.get("/dead").get_json()["letters"]] == other
    assert send(client, "POST", "/dead/purge", {"all": True}).get_json()["purged"] == 1


@pytest.mark.parametrize("verb", ["replay", "purge"])
def test_all_letters_are_meant_only_when_it_is_said(client, player, verb):
    """A call whose filter was forgotten moves or drops nothing."""
    ids = die(player, 2)
    for body, said in [
        ({}, f'which letters to {verb}; give ids, .* or {{"all": true}}'),
        ({"limit": 5}, f"which letters to {verb}"),
        ({"ids": ids, "reason": "permanent"}, "ids exclude function"),
        ({"ids": ids, "all": True}, "ids exclude function"),
        ({"all": True, "function": "hello"}, "all excludes function"),
        ({"ids": []}, "ids must be a list of 1 to 1000 ids"),
        ({"ids": "x"}, "ids must be a list of 1 to 1000 ids"),
        ({"all": True, "cursor": "x"}, "'x' is not a cursor of this call"),
        ({"function": "hello", "before": "2026-11-24T06:00:00"}, "before must be an RFC 3339 time with a zone"),
    ]:
        assert_problem(send(client, "POST", f"/dead/{verb}", body), 422, "invalid-request", said)
    assert_problem(send(client, "POST", "/dead/purge", {"per_second": 1}), 422, "invalid-request", "unknown key")
    assert_problem(send(client, "POST", "/dead/replay", {"all": True, "per_second": 0}), 422, "invalid-request", "per_")
    assert len(client.get("/dead").get_json()["letters"]) == 2


def test_a_replay_that_is_sent_again_with_its_key_is_told_what_became_of_the_first(client, player):
    """Wherever the job is meanwhile, also dead again; another key, or none, means another replay."""
    [letter, other] = die(player, 2)
    key = {"Idempotency-Key": "replay-1"}

    def again(path: str, body: dict[str, object], **headers: str):
        return client.post(path, json=body, headers=headers)

    path = f"/jobs/{letter}/replay"
    assert again(path, {}, **key).get_json() == {"id": letter, "status": "pending"}
    for _ in range(2):
        assert (again(path, {}, **key).status_code, again(path, {}, **key).get_json()["status"]) == (202, "pending")
    assert_problem(again(path, {}), 409, "job-not-dead")
    assert_problem(again(path, {}, **{"Idempotency-Key": "replay-2"}), 409, "job-not-dead")
    assert player.queue.counts().counters["replayed"] == 1
    player.settle(player.claim(), Outcome.PERMANENT, error={"type": "ValueError", "message": "boom"})
    assert again(path, {}, **key).get_json()["status"] == "failed"
    both = {"ids": [letter, other]}
    many = {"Idempotency-Key": "many"}
    for _ in range(2):
        assert again("/dead/replay", both, **many).get_json() == {"moved": both["ids"], "refused": [], "cursor": None}
    assert player.queue.counts().counters["replayed"] == 3
    refused = again("/dead/replay", {"all": True}, **many)
    assert_problem(refused, 422, "invalid-request", "is for a replay by ids")
    assert_problem(again(path, {}, **{"Idempotency-Key": "é"}), 422, "invalid-request")
