"""Every call of docs/http-api.md that needs no waiting: happy path and problems, over a real Redis."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta, timezone

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from bananas import keys
from bananas.job import Outcome
from bananas.redis_client import Connections
from bananas.settings import LIMITS
from bananas.spec import FunctionSpec, PoolSpec, RetrySpec, RuntimeInfo
from bananas.units import iso
from tests.integration.gateway_player import ABI, CODE, SHA, assert_problem, send

pytestmark = pytest.mark.redis

NO_JOB = "01a20c00-0000-7000-8000-000000000000"


# -- jobs -------------------------------------------------------------------------------------------------------


def test_submit_answers_202_once_the_job_is_in_redis(client, player):
    """Id, status, version and pool come back, and the record says the same."""
    answer = send(client, "POST", "/jobs", {"name": "hello", "payload": {"n": 1}, "priority": "high"})
    body = answer.get_json()
    assert (answer.status_code, set(body)) == (202, {"id", "status", "name", "version", "pool", "duplicate"})
    assert (body["status"], body["name"], body["pool"]) == ("pending", "hello", "default")
    assert answer.headers["Location"] == f"/jobs/{body['id']}"
    record = client.get(answer.headers["Location"]).get_json()
    assert (record["version"], record["priority"], record["status"]) == (body["version"], "high", "pending")
    assert player.claim().payload == b'{"n": 1}'


def test_a_delayed_job_is_scheduled(client):
    """The record tells for when."""
    tomorrow = datetime.now(timezone(timedelta(hours=1))) + timedelta(days=1)
    job = send(client, "POST", "/jobs", {"name": "hello", "run_at": tomorrow.isoformat()}).get_json()
    assert job["status"] == "scheduled"
    assert client.get(f"/jobs/{job['id']}").get_json()["scheduled_for"] == iso(round(tomorrow.timestamp() * 1000))


def test_options_may_only_lower_what_the_function_allows(client, player):
    """retries and timeout end up as the smaller of the two."""
    lower = send(client, "POST", "/jobs", {"name": "hello", "retries": 1, "timeout": "1s"}).get_json()["id"]
    higher = send(client, "POST", "/jobs", {"name": "hello", "retries": 20, "timeout": "1h"}).get_json()["id"]
    shown = [client.get(f"/jobs/{job}").get_json() for job in (lower, higher)]
    assert [(r["max_retries"], r["timeout_ms"]) for r in shown] == [(1, 1000), (3, 30_000)]


def test_an_unknown_function_comes_with_a_hint(client, player):
    """The nearest name, or the ones there are."""
    body = assert_problem(send(client, "POST", "/jobs", {"name": "helo"}), 404, "unknown-function", "mean 'hello'")
    assert (body["function"], body["did_you_mean"]) == ("helo", "hello")
    assert_problem(send(client, "POST", "/jobs", {"name": "zzz"}), 404, "unknown-function", "deployed are hello")
    player.registry.remove("hello")
    assert_problem(send(client, "POST", "/jobs", {"name": "hello"}), 404, "unknown-function", "bananas deploy")


def test_bad_bodies_are_422_with_every_problem(client):
    """The texts are tested with the bodies; here: that they arrive."""
    answer = send(client, "POST", "/jobs", {"name": "hello", "priority": "hihg", "tiemout": 1})
    assert_problem(
        answer, 422, "invalid-request", "unknown key 'tiemout'; did you mean 'timeout'.*priority must be high"
    )
    assert_problem(send(client, "POST", "/jobs", b"{"), 422, "invalid-request", "not valid JSON")
    assert_problem(send(client, "POST", "/jobs", {"name": "hello", "pool": "gpu"}), 422, "unknown-pool", "'gpu'")


def test_a_payload_of_2_mb_is_413_with_size_and_limit(client):
    """Both ways in have the same limit."""
    large = json.dumps("x" * 2_000_000).encode()
    for path, body in (("/jobs", b'{"name":"hello","payload":' + large + b"}"), ("/functions/hello/invoke", large)):
        found = assert_problem(send(client, "POST", path, body), 413, "too-large", "20000.. bytes; the limit is 10")
        assert found["size_bytes"] == len(body)


def test_a_web_page_cannot_drive_the_gateway(client, app_client, connections):
    """Foreign host names are 403, other media types 415; beyond loopback the operator's names are served."""
    foreign = {"Host": "rebound.example.com"}
    assert_problem(client.get("/functions", headers=foreign), 403, "host-not-allowed", "rebound.example.com")
    for media in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/jobs", data=b'{"name":"hello"}', content_type=media)
        assert_problem(answer, 415, "unsupported-media-type", "application/json")
        assert_problem(client.post("/functions/hello/invoke", content_type=media), 415, "unsupported-media-type")
    assert client.options("/jobs", headers={"Origin": "http://x"}).headers.get("Access-Control-Allow-Origin") is None
    public = app_client(connections, host="0.0.0.0", auth="none")
    assert public.get("/functions", headers=foreign).status_code == 200
    named = app_client(connections, host="0.0.0.0", auth="none", hosts=("api.example.org",))
    assert_problem(named.get("/functions", headers=foreign), 403, "host-not-allowed", "api.example.org")
    assert named.get("/functions", headers={"Host": "API.example.org:8080"}).status_code == 200
    assert named.get("/functions", headers={"Host": "localhost:8080"}).status_code == 200


def test_a_full_queue_is_429(client, player, connections, monkeypatch):
    """With the time after which to try again."""
    monkeypatch.setattr("bananas.queue.LIMITS", LIMITS.__class__(queued_jobs=1))
    assert send(client, "POST", "/jobs", {"name": "hello"}).status_code == 202
    answer = send(client, "POST", "/jobs", {"name": "hello"})
    assert_problem(answer, 429, "queue-full", "the limit is 1")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_record_tells_the_whole_story(client, player):
    """A failed attempt, a retry, a success: result, history with timings and logs, in the documented shape."""
    job = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    claim = player.claim()
    player.settle(claim, Outcome.START, error={"type": "ImageMissing", "message": "no image"})
    waiting = client.get(f"/jobs/{job}").get_json()
    assert (waiting["status"], waiting["attempts"], waiting["error"]["type"]) == ("scheduled", 1, "ImageMissing")
    player.queue.cancel(job)
    job = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    player.settle(player.claim(), Outcome.OK, b'{"n":1.0}', logs=b"printed\xff")
    record = client.get(f"/jobs/{job}").get_json()
    assert (record["status"], record["result"], record["error"]) == ("completed", {"n": 1.0}, None)
    assert None not in (record["started_at"], record["finished_at"], record["created_at"])
    assert record["history"] == [
        {
            "attempt": 1,
            "outcome": "ok",
            "start": "warm",
            "start_reason": None,
            "runner": "player",
            "sandbox": "box",
            "nth_use": 2,
            "timings": {"queued_ms": 0.5, "wait_sandbox_ms": 0.0, "init_ms": 0.0, "run_ms": 3.25, "total_ms": 4.0},
            "error": None,
            "logs": "printed�",
            "log_bytes": 8,
            "log_truncated": False,
        }
    ]
    logs = client.get(f"/jobs/{job}/logs")
    assert (logs.data, logs.content_type) == (b"printed\xff\n", "text/plain; charset=utf-8")


def test_cancel_and_its_refusals(client, player):
    """A waiting job is cancelled; one that is over is not."""
    job = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    assert client.delete(f"/jobs/{job}").get_json() == {"id": job, "status": "cancelled"}
    assert client.get(f"/jobs/{job}").get_json()["status"] == "cancelled"
    again = client.delete(f"/jobs/{job}")  # as by a client that did not get the first answer
    assert (again.status_code, again.get_json()) == (200, {"id": job, "status": "cancelled"})


def test_ids_that_are_no_jobs(client, connections):
    """404 for what never was, 410 for a while for what was."""
    for path in (NO_JOB, "nonsense", "%0A", NO_JOB.upper()):
        for answer in (client.get(f"/jobs/{path}"), client.delete(f"/jobs/{path}"), client.get(f"/jobs/{path}/logs")):
            assert_problem(answer, 404, "unknown-job")
    connections.commands.set(f"{{bananas}}:tomb:{NO_JOB}", "1", ex=60)
    assert_problem(client.get(f"/jobs/{NO_JOB}"), 410, "job-expired")


def test_wait_without_a_wait(client, player):
    """Zero looks once; nonsense is refused before anything is looked at."""
    job = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    assert client.get(f"/jobs/{job}?wait=0").get_json()["status"] == "pending"
    assert_problem(client.get(f"/jobs/{job}?wait=soon"), 422, "invalid-request", "wait must be")


def test_too_many_waiters_are_turned_away_and_leave_no_job(app_client, connections, player):
    """A process waits for a bounded number of calls; the refusal comes before anything is queued."""
    client = app_client(connections, waiters_limit=0)
    job = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    assert_problem(client.get(f"/jobs/{job}?wait=5"), 503, "unavailable", "already wait")
    assert_problem(send(client, "POST", "/functions/hello/invoke", {}), 503, "unavailable", "already wait")
    assert player.queue.counts().counters == {"enqueued:hello": 1}


# -- functions and bundles --------------------------------------------------------------------------------------


def test_deploy_and_look(client):
    """Upload, deploy, the same again, another version, list, remove."""
    data = b"another archive"
    sha = hashlib.sha256(data).hexdigest()
    spec = {"spec": {"timeout_ms": 1000}, "bundles": {"code": sha}, "abi": ABI}
    assert_problem(send(client, "PUT", "/functions/fresh", spec), 422, "unknown-bundle", sha)
    assert client.head(f"/bundles/{sha}").status_code == 404
    assert client.put(f"/bundles/{sha}", data=data, content_type="application/octet-stream").status_code == 201
    assert client.head(f"/bundles/{sha}").status_code == 200
    first = send(client, "PUT", "/functions/fresh", spec).get_json()
    assert (first["name"], first["changed"]) == ("fresh", True)
    assert send(client, "PUT", "/functions/fresh", spec).get_json() == {**first, "changed": False}
    shown = client.get("/functions/fresh").get_json()
    assert (shown["version"], shown["spec"]["timeout_ms"], shown["bundles"]["code"]) == (first["version"], 1000, sha)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["deployed_at"])
    assert [f["name"] for f in client.get("/functions").get_json()["functions"]] == ["fresh", "hello"]
    removed = client.delete("/functions/fresh")
    assert (removed.status_code, removed.data, removed.content_type) == (204, b"", None)
    assert_problem(client.get("/functions/fresh"), 404, "unknown-function", "deployed are hello")
    assert_problem(client.delete("/functions/fresh"), 404, "unknown-function")


def test_bad_deployments_are_told(client):
    """Names, specs, pools and digests are checked; the old version still serves."""
    good = {"spec": {}, "bundles": {"code": SHA}, "abi": ABI}
    assert_problem(send(client, "PUT", "/functions/No", good), 422, "invalid-request", "'No' is not a name")
    for wrong in ({**good, "extra": 1}, {**good, "spec": {"timeout_ms": 1}}, {**good, "abi": "a b"}, []):
        assert_problem(send(client, "PUT", "/functions/hello", wrong), 422, "invalid-request", "Deployment")
    lost = {**good, "spec": {"pool": "nowhere"}}
    assert_problem(send(client, "PUT", "/functions/hello", lost), 422, "unknown-pool", "nowhere")
    before = client.get("/functions/hello").get_json()["spec"]
    assert before["pool"] == FunctionSpec().pool


def test_bad_bundles_are_told(client):
    """The digest is checked, in the address and over the bytes; so is the type, and the size before it is read."""
    url = f"/bundles/{SHA}"
    octets = "application/octet-stream"
    assert_problem(client.put(url, data=b"other", content_type=octets), 422, "invalid-request", "SHA-256 is")
    assert_problem(
        client.put("/bundles/abc", data=b"x", content_type=octets), 422, "invalid-request", "64 lower-case hex"
    )
    assert_problem(client.put(url, data=CODE, content_type="application/json"), 415, "unsupported-media-type", octets)
    announced = {"CONTENT_LENGTH": str(LIMITS.bundle_bytes + 1)}
    answer = client.put(url, data=b"x", content_type=octets, environ_overrides=announced)
    assert_problem(answer, 413, "too-large", f"limit is {LIMITS.bundle_bytes} bytes")


def test_a_synchronous_call_checks_before_it_queues(client, player):
    """Nothing reaches the queue of a call that cannot be."""
    assert_problem(send(client, "POST", "/functions/helo/invoke", {}), 404, "unknown-function", "mean 'hello'")
    assert_problem(
        send(client, "POST", "/functions/hello/invoke", b"{"), 422, "invalid-request", "payload is not valid JSON"
    )
    assert player.queue.counts().counters == {}


# -- operation --------------------------------------------------------------------------------------------------


def test_pools_show_settings_and_what_happens_in_them(client, player):
    """Spec, jobs by priority, attempts running, runners serving."""
    assert send(client, "PUT", "/pools/gpu", {"concurrency": 1}).get_json() == {"name": "gpu", "changed": True}
    assert send(client, "PUT", "/pools/gpu", {"concurrency": 1}).get_json() == {"name": "gpu", "changed": False}
    assert_problem(send(client, "PUT", "/pools/gpu", {"concurrency": 0}), 422, "invalid-request", "PoolSpec")
    assert_problem(send(client, "PUT", "/pools/G P", {}), 422, "invalid-request", "not a name for a pool")
    send(client, "POST", "/jobs", {"name": "hello", "priority": "low"})
    player.announce("default", default_busy=2, default_idle=1)
    default, gpu = client.get("/pools").get_json()["pools"]
    assert (default["name"], default["queued"]) == ("default", {"high": 0, "normal": 0, "low": 1})
    assert (default["processing"], default["runners"]) == (2, 1)
    assert (gpu["spec"]["concurrency"], gpu["spec"]["memory_mb"], gpu["runners"]) == (1, PoolSpec().memory_mb, 0)


def test_runtimes_and_runners(client, player):
    """What deploys install for, and who is there."""
    info = RuntimeInfo(image="i", image_id="sha256:1", python="3.11", machine="x86_64", libc="glibc2.36")
    player.registry.publish_runtimes({"python": info})
    assert client.get("/runtimes").get_json()["runtimes"]["python"]["abi"] == ABI
    assert client.get("/runners").get_json() == {"runners": []}
    player.announce("gpu", gpu_idle=1)
    [runner] = client.get("/runners").get_json()["runners"]
    assert (runner["id"], runner["pools"], runner["busy"], runner["sandboxes"]) == (
        "player",
        ["gpu"],
        1,
        {"gpu/idle": 1},
    )
    assert runner["seen_at"] == runner["started_at"] != ""


def checks(answer: TestResponse) -> dict[str, str]:
    return {check["name"]: check["status"] for check in json.loads(answer.data)["checks"]}


def test_ready_means_that_jobs_can_be_taken_and_kept(client, player, connections):
    """An evicting Redis is refused; no persistence and no runner are warnings."""
    assert client.get("/healthz").get_json() == {"status": "ok"}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "ready")
    assert checks(answer) == {"redis": "ok", "eviction": "ok", "persistence": "warning", "runners": "warning"}
    player.announce()
    assert "runners" not in checks(client.get("/readyz"))
    redis = connections.commands
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        answer = client.get("/readyz")
        assert_problem(answer, 503, "not-ready", "maxmemory-policy is allkeys-lru")
        assert checks(answer)["eviction"] == "failed"
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("min-replicas-to-write", 1)
    try:
        assert_problem(client.get("/readyz"), 503, "not-ready", "takes no writes")
        assert_problem(send(client, "POST", "/jobs", {"name": "hello"}), 503, "redis-unavailable", "takes no writes")
    finally:
        redis.config_set("min-replicas-to-write", 0)
    assert client.get("/readyz").status_code == 200


def metrics(client: FlaskClient) -> dict[tuple[str, ...], float]:
    """(sample name, label values in the order of the labels' names) → value, as Prometheus' own parser reads it."""
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.get_data(as_text=True))
        for sample in family.samples
    }


def test_metrics_tell_what_happened(client, player):
    """Depths, ages, outcomes, durations and sandboxes, in correct exposition."""
    player.deploy("bad", retries=RetrySpec(max=0))
    player.announce(default_idle=3)
    for name in ("hello", "hello", "bad", "hello"):
        send(client, "POST", "/jobs", {"name": name})
    send(client, "POST", "/jobs", {"name": "hello", "delay": 60})
    player.settle(player.claim())
    player.settle(player.claim(), Outcome.ERROR, error={"type": "E", "message": "m"})
    player.settle(player.claim(), Outcome.ERROR, error={"type": "E", "message": "m"})
    found = metrics(client)
    assert found["bananas_up",] == 1
    assert found["bananas_queue_depth", "default", "normal"] == 1
    assert found["bananas_queue_oldest_seconds", "default", "normal"] >= 0
    assert found["bananas_scheduled_jobs",] == 2
    assert found["bananas_processing_jobs",] == 0
    assert found["bananas_jobs_total", "hello", "ok"] == 1
    assert found["bananas_jobs_total", "hello", "error"] == 1
    assert found["bananas_jobs_accepted_total", "hello"] == 4
    assert found["bananas_retries_total",] == 1
    assert found["bananas_dead_letters_total", "retries_exhausted"] == 1
    assert found["bananas_dead_letters_kept",] == 1
    assert found["bananas_runners",] == 1
    assert found["bananas_sandboxes", "default", "player", "idle"] == 3
    assert (found["bananas_pool_runners", "default"], found["bananas_pool_slots", "default"]) == (1, 8)
    assert found["bananas_http_requests_total", "jobs.submit", "202"] == 5
    assert found["bananas_http_request_seconds_count", "jobs.submit"] == 5
    assert found["bananas_redis_evicting",] == 0
    assert [found["bananas_job_duration_seconds_bucket", "hello", le] for le in ("0.002", "0.005", "+Inf")] == [0, 2, 2]
    assert found["bananas_job_duration_seconds_count", "hello"] == 2
    assert found["bananas_job_duration_seconds_sum", "hello"] == pytest.approx(0.0065)


def test_metrics_tell_of_dead_letters_repairs_and_functions(client, player, connections):
    """Age of the oldest letter, what was replayed and purged, what the janitor put right, who runs and is set aside."""
    player.deploy("one", max_concurrency=1)
    assert metrics(client)["bananas_dead_letters_oldest_seconds",] == 0
    for _ in range(3):
        send(client, "POST", "/jobs", {"name": "hello"})
        player.settle(player.claim(), Outcome.PERMANENT, error={"type": "E", "message": "m"})
    ids = [letter["id"] for letter in client.get("/dead").get_json()["letters"]]
    connections.commands.zadd(keys.DEAD, {ids[0]: player.registry.now_ms() - 90_000})
    assert metrics(client)["bananas_dead_letters_oldest_seconds",] == pytest.approx(90, abs=10)
    assert send(client, "POST", f"/jobs/{ids[0]}/replay", {}).status_code == 202
    send(client, "POST", "/dead/purge", {"all": True})
    player.claim()
    for _ in range(3):
        send(client, "POST", "/jobs", {"name": "one"})
    player.claim()
    assert player.queue.step("player", 30_000, [], [("default", 3)]).claims == []
    connections.commands.hset(keys.COUNTERS, "repaired:stray_lease", 2)
    found = metrics(client)
    assert (found["bananas_dead_letters_replayed_total",], found["bananas_dead_letters_purged_total",]) == (1, 2)
    assert found["bananas_queue_repairs_total", "stray_lease"] == 2
    assert (found["bananas_running_jobs", "one"], found["bananas_parked_jobs", "one"]) == (1, 2)
    assert (found["bananas_running_jobs", "hello"], found["bananas_parked_jobs", "hello"]) == (1, 0)


def test_everything_is_503_without_redis_and_nothing_hangs(app_client, free_port):
    """Each call that needs Redis says so, with the time after which to try again; the process itself is well."""
    connections = Connections(f"redis://:hunter2@127.0.0.1:{free_port}/0")
    client = app_client(connections)
    calls = [
        *(("GET", path) for path in (f"/jobs/{NO_JOB}", "/functions", "/functions/hello", "/pools", "/runtimes")),
        *(("GET", path) for path in ("/runners", f"/jobs/{NO_JOB}/logs", f"/bundles/{SHA}")),
        *(("GET", path) for path in ("/dead", f"/jobs/{NO_JOB}/payload")),
        *(("DELETE", path) for path in (f"/jobs/{NO_JOB}", "/functions/hello")),
    ]
    answers = [client.open(path, method=method) for method, path in calls]
    answers.append(send(client, "POST", "/jobs", {"name": "hello"}))
    answers.append(send(client, "PUT", "/pools/gpu", {}))
    answers.append(send(client, "POST", "/jobs/batch", {"jobs": [{"name": "hello"}] * 2}))
    for path in ("/dead/replay", "/dead/purge"):
        answers += [send(client, "POST", path, {"ids": [NO_JOB]}), send(client, "POST", path, {"all": True})]
    answers.append(send(client, "POST", f"/jobs/{NO_JOB}/replay", {}))
    assert metrics(client)["bananas_up",] == 0
    for answer in answers:
        assert "hunter2" not in answer.text
        assert_problem(answer, 503, "redis-unavailable", "does not answer")
        assert answer.headers["Retry-After"] == "1"
    assert_problem(client.get("/readyz"), 503, "not-ready", "does not answer")
    assert client.get("/healthz").status_code == 200
    connections.close()
