"""Following a job's output: live from a real sandbox, to 200 at once, and whole whatever was missed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bananas import cli, keys
from bananas.client import Client
from bananas.errors import ApiError, GatewayUnreachable
from bananas.secrets import ensure_key_file
from bananas.spec import RuntimeInfo
from tests.integration.gateway_player import call
from tests.platform import Platform, until

pytestmark = [pytest.mark.redis, pytest.mark.docker]

SLOW = """
import time

def handle(event, context):
    for n in range(event["lines"]):
        print(f"line {n} é", flush=True)
        time.sleep(event["pause_s"])
    if event.get("fail") and context.attempt == 1:
        raise ValueError("boom")
    print(context.traceparent)
"""
TELLS_SECRETS = """
import sys, time

def handle(event, context):
    value = open("/run/secrets/TOKEN").read()
    for part in ("first ", value[:9], value[9:], " then ", value, " end"):
        sys.stdout.write(part)
        sys.stdout.flush()
        time.sleep(0.7)
"""
SECRET = "planted-secret-of-some-length"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def platform(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """One gateway process, one runner."""
    with Platform(empty_redis) as platform:
        platform.env["BANANAS_SECRET_KEY_FILE"] = str(ensure_key_file(platform.folder / "secret.key"))
        platform.gateway()
        platform.runner()
        platform.client.put_secret("TOKEN", SECRET.encode())
        platform.deploy({"slow": SLOW}, settings="    retries: {max: 1, base: 100ms}\n    timeout: 60s")
        platform.deploy({"tells": TELLS_SECRETS}, settings="    secrets: [TOKEN]")
        yield platform


def test_lines_come_while_the_job_runs_and_then_its_end(platform):
    """Long before the end; all of them, once and in order; the trace context reached the handler."""
    job_id = platform.client.submit("slow", {"lines": 20, "pause_s": 0.2}, traceparent=TRACE)["id"]
    pieces, last = [], {}
    for event in platform.client.follow_logs(job_id):
        pieces.append(event.get("text", ""))
        last = event
    text = "".join(pieces)
    assert last == {"event": "end", "id": job_id, "status": "completed"}
    assert text == platform.client.logs(job_id) == "".join(f"line {n} é\n" for n in range(20)) + TRACE + "\n"
    assert sum(map(bool, pieces)) > 2, "all came at once"
    assert "line 19" not in pieces[0]


def test_every_attempt_is_followed_and_a_job_that_is_over_too(platform):
    """Each piece says which attempt printed it; whoever comes late gets the same."""
    job_id = platform.client.submit("slow", {"lines": 3, "pause_s": 0.1, "fail": True})["id"]
    for _ in range(2):
        texts = {1: "", 2: ""}
        events = list(platform.client.follow_logs(job_id))
        for event in events[:-1]:
            texts[event["attempt"]] += event["text"]
        lines = "".join(f"line {n} é\n" for n in range(3))
        assert texts == {1: lines, 2: lines + "None\n"}
        assert events[-1]["status"] == "completed"


def test_200_follow_at_once_in_one_gateway_process(platform):
    """All of them get all of it; afterwards nothing of it is left but a stream that ends by itself."""
    job_id = platform.client.submit("slow", {"lines": 40, "pause_s": 0.25})["id"]

    def follow(_: int) -> tuple[str, str]:
        with Client(platform.url, patience_s=0) as client:
            events = list(client.follow_logs(job_id))
        return "".join(event.get("text", "") for event in events), events[-1]["event"]

    with ThreadPoolExecutor(200) as pool:
        got = list(pool.map(follow, range(200)))
    assert set(got) == {(platform.client.logs(job_id), "end")}
    assert 0 < platform.connections.commands.pttl(keys.tail(job_id)) <= 60_000


def test_nothing_is_told_while_nobody_follows(platform):
    """No stream, no follower's cost; an unknown job and a wrong flag are problems."""
    job_id = platform.client.submit("slow", {"lines": 3, "pause_s": 0.1})["id"]
    platform.finished(job_id)
    assert not platform.connections.commands.exists(keys.tail(job_id))
    with pytest.raises(ApiError, match="no job has the id"):
        list(platform.client.follow_logs("01a20c00-0000-7000-8000-000000000000"))
    assert call(platform.port, "GET", f"/jobs/{job_id}/logs?follow=yes").status == 422


def test_secrets_are_masked_while_it_runs(platform):
    """Also one that is printed in two halves, with a look in between; what comes live is what the record keeps."""
    job_id = platform.client.submit("tells")["id"]
    texts = [event["text"] for event in platform.client.follow_logs(job_id) if event["event"] == "log"]
    assert len(texts) > 1, "nothing came while it ran"
    assert "".join(texts) == platform.client.logs(job_id).rstrip("\n") == "first *** then *** end"
    entries = platform.connections.commands.xrange(keys.tail(job_id))
    assert entries
    assert SECRET[:9].encode() not in b"".join(fields[b"data"] for _, fields in entries)


def test_the_command_prints_it_and_exits_by_the_jobs_end(platform, capfd, monkeypatch):
    """0 when it is completed, 4 when not; with -o json an object a line."""
    monkeypatch.setenv("BANANAS_URL", platform.url)
    good = platform.client.submit("slow", {"lines": 2, "pause_s": 0})["id"]
    assert cli.main(["jobs", "logs", "-f", good]) == 0
    assert capfd.readouterr().out == "line 0 é\nline 1 é\nNone\n"
    bad = platform.client.submit("slow", {"lines": 0, "pause_s": 0, "fail": True}, retries=0)["id"]
    assert cli.main(["jobs", "logs", "--follow", "-o", "json", bad]) == 4
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last == {"event": "end", "id": bad, "status": "failed"}


def test_a_gateway_that_stops_lets_followers_go(redis_server, platform):
    """At once, without an end event, which the client tells; the job goes on and can be followed elsewhere."""
    with Platform(redis_server) as other:
        gateway = other.gateway()
        job_id = platform.client.submit("slow", {"lines": 20, "pause_s": 0.25})["id"]
        events = other.client.follow_logs(job_id)
        next(events)
        gateway.popen.terminate()
        with pytest.raises(GatewayUnreachable):
            list(events)
        until(lambda: gateway.popen.poll() is not None, 10, "the gateway to end")
        assert platform.client.job(job_id)["status"] == "processing"
    assert list(platform.client.follow_logs(job_id))[-1]["status"] == "completed"
