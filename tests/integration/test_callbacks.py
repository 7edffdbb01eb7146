"""callback_url: each end of a job is told to a real HTTP server, signed, again until it was taken, nowhere private."""

from __future__ import annotations

import json
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from bananas import callbacks as module
from bananas import keys, webhooks
from bananas.callbacks import Callbacks
from bananas.dead_letters import DeadLetters
from bananas.job import NewJob, Outcome
from bananas.redis_client import Connections
from bananas.secrets import SecretBox, new_key
from bananas.settings import LIMITS, Settings
from bananas.spec import RetrySpec
from tests.integration.gateway_player import Player, assert_problem, send
from tests.integration.jobs import let_expire, make_past, repairs
from tests.platform import Process, until
from tests.tools.receiver import Got, Receiver
from tests.tools.redis_servers import make_certificates, tls_in_front

pytestmark = pytest.mark.redis

KEY = new_key()
LEASE_MS = 30_000


@pytest.fixture(scope="module")
def place() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(place: Receiver) -> Iterator[Receiver]:
    yield place
    place.reset()


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes that tell callbacks; they end with the test."""
    started: list[Process] = []

    def start(allow: str, lease_ms: int = LEASE_MS, **env: str) -> Process:
        args = [sys.executable, "-m", "tests.tools.callback_process", str(lease_ms)]
        given = {"BANANAS_REDIS_URL": redis_url, "BANANAS_SECRET_KEY": KEY, "BANANAS_CALLBACK_ALLOW": allow, **env}
        started.append(Process(f"teller{len(started)}", args, given, tmp_path, "callbacks ready"))
        return started[-1]

    yield start
    for process in started:
        process.kill9()


@pytest.fixture
def teller(start: Callable[..., Process], receiver: Receiver) -> Process:
    return start(receiver.place)


@pytest.fixture
def client(app_client: Callable[..., FlaskClient], connections: Connections, player: Player, place: Receiver):
    player.deploy("hello", retries=RetrySpec(max=0))
    return app_client(connections, secret_key=KEY, callback_allow=(place.place,))


@pytest.fixture
def secret(client: FlaskClient) -> str:
    return client.get("/callback-keys").get_json()["keys"][0]


def submit(client: FlaskClient, url: str, **more: Any) -> str:
    answer = send(client, "POST", "/jobs", {"name": "hello", "callback_url": url, **more})
    assert answer.status_code == 202, answer.data
    return answer.get_json()["id"]


def told(client: FlaskClient, job: str, status: str) -> dict[str, Any]:
    """The callback in the job's record, once it is so."""

    def look() -> Any:
        found = client.get(f"/jobs/{job}").get_json()["callback"]
        return found if found["status"] == status else None

    return until(look, 30, f"callback of {job} to be {status}")


def again(connections: Connections, job: str) -> str:
    """What went wrong with a try, once it did; and the wait for the next one is over."""
    error: bytes = until(lambda: connections.commands.hget(keys.job(job), "cberr"), 30, "a try to fail")
    connections.commands.hset(keys.job(job), "cberr", "")
    make_past(connections, keys.CALLBACKS, [job])
    connections.commands.zadd(keys.CALLBACKS_BELL, {"ring": 0})
    return error.decode()


def data(got: Got) -> dict[str, Any]:
    return json.loads(got.body)["data"]


def test_every_kind_of_end_is_told_once_and_signed(client, player, connections, receiver, teller, secret):
    """Completed, failed, cancelled and expired; the signature is checked as a receiver would."""
    jobs = {end: submit(client, receiver.url + f"?end={end}") for end in ("completed", "failed")}
    for outcome, result in ((Outcome.OK, b'{"sum": 42}'), (Outcome.ERROR, b"")):
        error = {"type": "ValueError", "message": "no"} if outcome is Outcome.ERROR else None
        player.settle(player.claim(), outcome, result, error)
    jobs["cancelled"] = submit(client, receiver.url, delay=60)
    assert client.delete(f"/jobs/{jobs['cancelled']}").status_code == 200
    jobs["expired"] = submit(client, receiver.url, expires_after=60)
    let_expire(connections, [jobs["expired"]])
    assert player.queue.expire() == 1
    got = {data(one)["id"]: one for one in receiver.wait(4)}
    assert got.keys() == set(jobs.values())
    for end, job in jobs.items():
        one = got[job]
        assert webhooks.verify(secret, one.headers, one.body) == f"{job}.1"
        assert data(one)["status"] == ("failed" if end == "expired" else end)
        assert json.loads(one.body)["type"] == f"job.{data(one)['status']}"
        shown = told(client, job, "delivered")
        assert (shown["tries"], shown["last_error"]) == (1, None)
    assert data(got[jobs["completed"]])["result"] == {"sum": 42}
    assert data(got[jobs["failed"]])["error"]["type"] == "ValueError"
    assert data(got[jobs["expired"]])["reason"] == "expired"
    assert got[jobs["completed"]].path == "/hook?end=completed"
    assert told(client, jobs["completed"], "delivered")["url"] == receiver.url + "?…"
    assert len(receiver.got) == 4
    assert repairs(player.queue) == {}


def test_whatever_is_not_2xx_is_tried_again_with_the_same_id(client, player, connections, receiver, teller, secret):
    """A redirect is no success and is not followed either."""
    receiver.answers.extend([500, 302, b"nonsense\r\n\r\n"])
    job = submit(client, receiver.url)
    client.delete(f"/jobs/{job}")
    for why in ("answered 500", "redirects are not followed", "nonsense"):
        assert why in again(connections, job)
    got = receiver.wait(4)
    assert told(client, job, "delivered")["tries"] == 4
    assert {webhooks.verify(secret, one.headers, one.body) for one in got} == {f"{job}.1"}
    assert {one.path for one in got} == {"/hook"}
    counters = player.queue.counts().counters
    assert (counters["callback:hello:again"], counters["callback:hello:delivered"]) == (3, 1)
    text = client.get("/metrics").get_data(as_text=True)
    assert 'bananas_callbacks_total{function="hello",verdict="delivered"} 1.0' in text
    assert "bananas_callbacks_untold 0.0" in text


def test_a_receiver_that_is_gone_is_not_asked_again(client, player, receiver, teller):
    """410 Gone: the receiver wants no more of this."""
    receiver.answers.append(410)
    job = submit(client, receiver.url)
    client.delete(f"/jobs/{job}")
    shown = told(client, job, "failed")
    assert (shown["tries"], shown["last_error"]) == (1, f"{receiver.place} answered 410")


def test_a_teller_that_is_killed_in_the_middle_leaves_it_to_the_next(client, connections, receiver, start, secret):
    """Its lease passes, and another process sends the same delivery again: at least once, with one id."""
    receiver.is_awake.clear()
    job = submit(client, receiver.url)
    first = start(receiver.place, 1000)
    client.delete(f"/jobs/{job}")
    receiver.wait(1)
    first.kill9()
    receiver.is_awake.set()
    start(receiver.place, 1000)
    told(client, job, "delivered")
    assert {webhooks.verify(secret, one.headers, one.body) for one in receiver.wait(2)} == {f"{job}.1"}


def test_no_private_address_is_told_anything_unless_it_was_allowed(client, player, receiver, teller):
    """Literal ones are refused at once, names by whoever resolves them; nobody connects."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        port = other.getsockname()[1]
        for host in (f"127.0.0.1:{port}", "10.0.0.1", "169.254.169.254", "[::1]:80", "[::ffff:127.0.0.1]", "0.0.0.0"):
            body = {"name": "hello", "callback_url": f"http://{host}/"}
            refused = send(client, "POST", "/jobs", body)
            assert_problem(refused, 422, "invalid-request", "not a public address; .* BANANAS_CALLBACK_ALLOW=")
        jobs = [submit(client, f"http://{name}:{port}/") for name in ("localhost", "2130706433")]
        for job in jobs:
            client.delete(f"/jobs/{job}")
            shown = told(client, job, "failed")
            assert "127.0.0.1 is not a public address" in shown["last_error"]
            assert shown["tries"] == 1
        with pytest.raises(TimeoutError):
            other.accept()
    assert receiver.got == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.com/", "not the URL of an HTTP server"),
        ("http:///x", "not the URL of an HTTP server"),
        ("http://example.com/#x", "not the URL of an HTTP server"),
        ("http://example.com/ x", "not the URL of an HTTP server"),
        ("http://exa\r\nmple.com/", "not the URL of an HTTP server"),
        ("http://u:p@example.com/", "holds a user or password"),
        ("http://example.com:99999/", "is not a URL"),
        ("http://example.com/" + "x" * 2000, "callback_url must be the URL"),
        (7, "callback_url must be the URL"),
    ],
)
def test_a_url_that_is_none_is_refused_at_once(client, url, said):
    """Not when the job is over."""
    assert_problem(send(client, "POST", "/jobs", {"name": "hello", "callback_url": url}), 422, "invalid-request", said)


def test_each_job_of_a_batch_has_a_callback_of_its_own(client, player, receiver, teller):
    """A wrong one is refused by itself."""
    jobs = [{"name": "hello", "callback_url": url} for url in (receiver.url, "http://10.0.0.1/", receiver.url)]
    answer = send(client, "POST", "/jobs/batch", {"jobs": jobs}).get_json()
    assert (answer["accepted"], answer["refused"]) == (2, 1)
    for _ in range(2):
        player.settle(player.claim())
    assert {data(one)["status"] for one in receiver.wait(2)} == {"completed"}


def test_a_url_of_another_release_stops_nobody(client, player, receiver, teller, queue):
    """What this release would not have let in is given up, and the next end is told."""
    strange = queue.enqueue(NewJob("hello", b"1", callback_url="gopher://example.com/")).id
    job = submit(client, receiver.url)
    for _ in range(2):
        player.settle(player.claim())
    assert "not the URL of an HTTP server" in told(client, strange, "failed")["last_error"]
    told(client, job, "delivered")
    assert teller.popen.poll() is None


def test_without_a_key_no_callback_is_promised(app_client, connections, player):
    """A gateway that could not have them signed says so, and how to change that."""
    client = app_client(connections)
    body = {"name": "hello", "callback_url": "https://example.com/"}
    assert_problem(send(client, "POST", "/jobs", body), 503, "no-secret-key", "bananas secret new-key")
    assert_problem(client.get("/callback-keys"), 503, "no-secret-key")


def test_a_replayed_job_tells_its_new_end(client, player, connections, queue):
    """Under another id; the end that was not told yet is not told any more."""
    job = submit(client, "http://example.com/")
    player.settle(player.claim(), Outcome.ERROR, error={"type": "E", "message": "m"})
    tells = Callbacks(connections)
    [old] = tells.take(10, LEASE_MS).deliveries
    assert send(client, "POST", f"/jobs/{job}/replay", {}).status_code == 202
    assert tells.told(old, "delivered") == "stale"
    assert tells.untold() == 0
    assert told(client, job, "waiting")["tries"] == 0
    player.settle(player.claim())
    [new] = tells.take(10, LEASE_MS).deliveries
    assert (old.id, new.id, new.number) == (f"{job}.1", f"{job}.2", 1)
    assert tells.told(new, "delivered") == "delivered"


def test_a_record_stays_until_its_end_is_told(client, player, connections, queue):
    """However short its time is; then it goes as usual. One that was purged is not told."""
    player.deploy("brief", result_ttl_ms=1000)
    job = queue.enqueue(NewJob("brief", b"1", callback_url="http://example.com/")).id
    player.settle(player.claim())
    until_s = connections.commands.zscore(keys.DONE, job) / 1000 - connections.commands.time()[0]
    assert until_s > 23 * 3600
    tells = Callbacks(connections)
    [delivery] = tells.take(10, LEASE_MS).deliveries
    assert tells.told(delivery, "delivered") == "delivered"
    assert connections.commands.zscore(keys.DONE, job) / 1000 - connections.commands.time()[0] < 60
    lost = submit(client, "http://example.com/")
    player.settle(player.claim(), Outcome.ERROR, error={"type": "E", "message": "m"})
    assert DeadLetters(connections).purge([lost]) == 1
    assert tells.take(10, LEASE_MS).deliveries == []
    assert queue.counts().counters["callbacks_lost"] == 1


def test_tries_end(client, player, connections, queue, monkeypatch):
    """After the last one, or a day, the record says why; one whose turn is over has no say."""
    monkeypatch.setattr(module, "LIMITS", LIMITS.__class__(callback_tries=2))
    job = submit(client, "http://example.com/")
    client.delete(f"/jobs/{job}")
    tells = Callbacks(connections)
    [first] = tells.take(10, LEASE_MS).deliveries
    assert tells.take(10, LEASE_MS).deliveries == []  # on lease
    assert tells.told(first, "again", 0, "down") == "again"
    [second] = tells.take(10, LEASE_MS).deliveries
    assert tells.told(first, "again", 0, "late") == "stale"
    assert tells.told(second, "again", 0, "x" * 1000) == "failed"
    shown = told(client, job, "failed")
    assert (shown["tries"], len(shown["last_error"])) == (2, 301)
    assert queue.counts().counters["callback:hello:failed"] == 1


def test_too_many_untold_ends_push_back(client, connections, queue, player):
    """A receiver that is down for long does not fill Redis: 429, and jobs without a callback go on."""
    connections.commands.zadd(keys.CALLBACKS, {f"j{n}": 1e13 for n in range(LIMITS.callbacks)})
    refused = send(client, "POST", "/jobs", {"name": "hello", "callback_url": "http://example.com/"})
    assert_problem(refused, 429, "queue-full", "callbacks are not told yet")
    assert refused.headers["Retry-After"] == "5"
    assert send(client, "POST", "/jobs", {"name": "hello"}).status_code == 202
    assert queue.counts().counters["refused:hello:callbacks_full"] == 1


def test_a_large_result_does_not_go_along(client, player, connections, receiver, teller):
    """The record has it; the callback says that it was left out."""
    job = submit(client, receiver.url)
    player.settle(player.claim(), result=b'"' + b"x" * LIMITS.callback_value_bytes + b'"')
    [got] = receiver.wait(1)
    assert (data(got)["result"], data(got)["omitted"]) == (None, ["result"])
    assert len(client.get(f"/jobs/{job}").get_json()["result"]) == LIMITS.callback_value_bytes


def test_two_tellers_share_the_ends(client, connections, player, queue, receiver, teller, start):
    """Many ends at once: each comes once, whoever tells it."""
    start(receiver.place)
    jobs = [NewJob("hello", b"1", callback_url=receiver.url) for _ in range(100)]
    queue.enqueue_many(jobs)
    for _ in jobs:
        player.settle(player.claim())
    until(lambda: not Callbacks(connections).untold(), 30, "all ends to be told")
    assert Counter(data(one)["id"] for one in receiver.got) == {job.id: 1 for job in jobs}


def test_tls_is_checked(client, connections, receiver, start, tmp_path: Path):
    """A certificate of an authority that the system knows, for that very name; else nothing is told."""
    ca = make_certificates(tmp_path)
    with tls_in_front(tmp_path, receiver.port) as front:
        connections.commands.delete(keys.CALLBACKS)
        url = f"https://localhost:{front.port}/hook"
        wary = start(f"localhost:{front.port}")
        job = submit(client, url)
        client.delete(f"/jobs/{job}")
        assert "certificate verify failed" in until(
            lambda: client.get(f"/jobs/{job}").get_json()["callback"]["last_error"], 30, "a try to fail"
        )
        assert receiver.got == []
        wary.kill9()
        start(f"localhost:{front.port}", SSL_CERT_FILE=str(ca))
        again(connections, job)
        told(client, job, "delivered")


def test_while_a_key_is_replaced_both_sign(client, player, connections, receiver, start):
    """A receiver that knows the old or the new one can check; the key list shows both."""
    old, new = new_key(), new_key()
    box = SecretBox.from_settings(Settings(secret_key=f"{new},{old}"))
    assert box is not None
    body, headers = b"{}", webhooks.sign(box.callback_keys, "1", b"{}", 1000)
    for key in (old, new):
        only = SecretBox.from_settings(Settings(secret_key=key))
        assert only is not None
        [secret] = map(webhooks.secret_text, only.callback_keys)
        assert webhooks.verify(secret, headers, body, now_s=1000) == "1"
