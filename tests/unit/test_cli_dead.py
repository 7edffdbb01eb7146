"""The command line's part in dead letters, batches, unique keys, and in telling what a job waits for."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bananas.cli import patience
from tests.tools.stub_gateway import Answer, StubGateway, problem, serving

Cli = Callable[..., SimpleNamespace]


def sent(gateway: StubGateway, path: str) -> list[dict[str, object]]:
    """The bodies of every POST to the path."""
    return [
        json.loads(body) for call, body in zip(gateway.calls, gateway.bodies, strict=True) if call == f"POST {path}"
    ]


# -- bananas dead -----------------------------------------------------------------------------------------------------


def test_letters_are_listed_over_pages_with_filters(gateway: StubGateway, bananas: Cli) -> None:
    """A line each; the filters travel as they are; a limit says that there is more."""
    for n in range(5):
        gateway.letter(f"j{n}")
    filters = ["--function", "hello", "--reason", "permanent", "--after", "2026-11-24T02:00:00+01:00"]
    done = bananas("dead", "ls", *filters)
    lines = done.out.splitlines()
    assert lines[0].split() == ["ID", "FUNCTION", "REASON", "FAILED", "ERROR"]
    assert [line.split()[:3] for line in lines[1:]] == [[f"j{n}", "hello", "permanent"] for n in range(5)]
    assert lines[1].endswith("ago  ValueError: boom")
    assert done.err == ""
    assert gateway.calls[0].startswith(
        "GET /dead?function=hello&reason=permanent&after=2026-11-24T02%3A00%3A00%2B01%3A00&limit="
    )
    assert len(gateway.calls) == 3
    done = bananas("dead", "ls", "--limit", "2", "-o", "json")
    assert [letter["id"] for letter in json.loads(done.out)] == ["j0", "j1"]
    assert done.err == "there are more than 2; see them with --limit\n"


def test_a_letter_is_shown_with_traceback_and_payload(gateway: StubGateway, bananas: Cli) -> None:
    """Enough to see what happened, and the payload alone to edit it."""
    error = {"type": "ValueError", "message": "boom", "traceback": "Traceback …\nValueError: boom\n"}
    gateway.record("j1", status="failed", reason="permanent", error=error)
    out = bananas("dead", "show", "j1").out
    assert "status    failed (permanent)\n" in out
    assert out.endswith('Traceback …\nValueError: boom\n\npayload   {"n":  1}\n')
    assert bananas("dead", "show", "j1", "--payload").out == '{"n":  1}\n'
    shown = json.loads(bananas("dead", "show", "j1", "-o", "json").out)
    assert (shown["id"], shown["payload"]) == ("j1", {"n": 1})


def test_replay_by_id_tells_what_moved_and_what_not(gateway: StubGateway, bananas: Cli) -> None:
    """Exit code 1 when one stayed where it was."""
    gateway.letter("j1")
    done = bananas("dead", "replay", "j1", "nope")
    assert (done.code, done.out) == (1, "j1\n")
    assert done.err == "nope: no such job\n1 replayed, 1 refused\n"
    assert sent(gateway, "/dead/replay") == [{"ids": ["j1", "nope"], "version": "current"}]
    gateway.letter("j2")
    done = bananas("dead", "replay", "j2", "--same-version", "-o", "json")
    assert (done.code, json.loads(done.out)) == (0, {"moved": ["j2"], "refused": []})
    assert sent(gateway, "/dead/replay")[-1]["version"] == "same"


def test_replay_with_another_payload(gateway: StubGateway, bananas: Cli, tmp_path: Path) -> None:
    """From a file or the command line, as the text is written; for one job only."""
    (tmp_path / "event.json").write_text('{"n": 2.50}')
    done = bananas("dead", "replay", "j1", "--payload", "@event.json")
    assert (done.code, done.out, done.err) == (0, "j1\n", "1 replayed\n")
    assert gateway.bodies[-1] == b'{"version":"current","payload":{"n": 2.50}}'
    assert bananas("dead", "replay", "j1", "j2", "--payload", "{}").code == 2
    assert bananas("dead", "replay", "--function", "hello", "--payload", "{}").code == 2
    assert bananas("dead", "replay", "j1", "--payload", "{x}").code == 2


def test_replay_by_filter_follows_the_cursor_at_its_rate(gateway: StubGateway, bananas: Cli) -> None:
    """Every page is asked for with the same filter and rate."""
    for n in range(5):
        gateway.letter(f"j{n}")
    done = bananas("dead", "replay", "--function", "hello", "--rate", "30/m")
    assert (done.code, done.out.split(), done.err) == (0, [f"j{n}" for n in range(5)], "5 replayed\n")
    bodies = sent(gateway, "/dead/replay")
    assert [body.get("cursor") for body in bodies] == [None, "next", "next"]
    assert {(body["function"], body["per_second"]) for body in bodies} == {("hello", 0.5)}
    assert "all" not in bodies[0]


@pytest.mark.parametrize(
    "args",
    [
        ("replay",),
        ("purge",),
        ("replay", "j1", "--all"),
        ("purge", "--function", "hello", "--all"),
        ("replay", "--function", "hello", "--rate", "fast"),
        ("replay", "--function", "hello", "--rate", "0/s"),
        ("replay", "--function", "hello", "--reason", "tired"),
        ("replay", "--all"),
        ("purge", "--all"),
        ("purge", "--function", "hello"),
    ],
)
def test_what_is_not_said_clearly_is_wrong_usage(gateway: StubGateway, bananas: Cli, args: tuple[str, ...]) -> None:
    """Nothing is moved or dropped; where nobody can be asked, --yes must say so."""
    gateway.letter("j1")
    done = bananas("dead", *args)
    assert (done.code, gateway.calls) == (2, [])


def test_everything_is_moved_or_dropped_with_yes(gateway: StubGateway, bananas: Cli) -> None:
    """The API is told explicitly that all are meant."""
    for n in range(3):
        gateway.letter(f"j{n}")
    assert bananas("dead", "replay", "--all", "--yes").code == 0
    assert sent(gateway, "/dead/replay")[0] == {"all": True, "limit": 100, "version": "current"}
    for n in range(3):
        gateway.letter(f"j{n}")
    assert bananas("dead", "purge", "--all", "--yes").out == "3 purged\n"
    gateway.letter("j1")
    assert json.loads(bananas("dead", "purge", "--before", "2026-11-24T06:00:00Z", "--yes", "-o", "json").out) == {
        "purged": 1
    }
    gateway.letter("j1")
    assert bananas("dead", "purge", "j1", "j2").out == "1 purged\n"


def test_a_person_at_a_terminal_is_asked(gateway: StubGateway, bananas: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ends it with nothing done."""
    gateway.letter("j1")
    monkeypatch.setattr("bananas.cli.dead.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    done = bananas("dead", "purge", "--function", "hello", stdin=b"n\n")
    assert (done.code, gateway.calls) == (130, [])
    assert "Drop every failed job with function hello for good?" in done.err
    assert bananas("dead", "purge", "--function", "hello", stdin=b"y\n").out.endswith("1 purged\n")


# -- batches and unique keys ------------------------------------------------------------------------------------------


def test_a_batch_is_a_file_of_lines(gateway: StubGateway, bananas: Cli, tmp_path: Path) -> None:
    """Payloads are sent as they are written; a wrong line is told with its number and stops nothing."""
    lines = [b'{"name": "hello", "payload": {"n": 1.50}, "delay": "10s"}', b"", b"{x}", b'{"name": "helo"}', b"[]"]
    lines += [b'{"name": "hello", "payload": "\xff"}', b'{"name": "hello"}']
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(lines))
    done = bananas("jobs", "batch", "jobs.jsonl")
    assert (done.code, done.out.split()) == (1, ["job-1", "job-3"])
    told = done.err.splitlines()
    assert [line.split(":")[0] for line in told] == ["line 3", "line 5", "line 6", "line 4", "2 queued, 4 refused"]
    assert told[3] == "line 4: no function helo"
    assert gateway.bodies[-1].startswith(b'{"jobs":[{"name":"hello","payload":{"n": 1.50},"delay":"10s"},')
    done = bananas("jobs", "batch", "-", "-o", "json", stdin=b'{"name": "hello"}\n')
    assert (done.code, done.err) == (0, "1 queued\n")
    assert json.loads(done.out)[0] == {
        "line": 1,
        "id": "job-1",
        "status": "pending",
        "name": "hello",
        "version": "103c89f0cdda",
        "pool": "default",
        "duplicate": False,
    }


def test_a_large_batch_is_sent_in_parts(gateway: StubGateway, bananas: Cli) -> None:
    """As many jobs as one call takes; lines that are too long are refused here."""
    data = b'{"name": "hello"}\n' * 1500 + b'"' + b"x" * (3 * 1024 * 1024) + b'"\n' + b'{"name": "hello"}\n'
    done = bananas("jobs", "batch", "-", stdin=data)
    assert [len(body["jobs"]) for body in sent(gateway, "/jobs/batch")] == [1000, 501]  # type: ignore[arg-type]
    assert (done.code, len(done.out.split())) == (1, 1501)
    assert done.err == "line 1501: a job has at most 1040 KiB\n1501 queued, 1 refused\n"


def test_unique_keys_travel_in_the_body_and_the_header(gateway: StubGateway, bananas: Cli) -> None:
    """Jobs and calls alike."""
    gateway.deploy("hello")
    bananas("jobs", "submit", "hello", "--unique-key", "order-7")
    assert sent(gateway, "/jobs")[-1]["unique_key"] == "order-7"
    bananas("invoke", "hello", "--async", "--unique-key", "order-8")
    assert sent(gateway, "/jobs")[-1]["unique_key"] == "order-8"
    assert bananas("invoke", "hello", "--unique-key", "order-9").out == "{}\n"


# -- what a job waits for ---------------------------------------------------------------------------------------------


def test_a_pool_whose_jobs_wait_for_a_runner_is_told_in_words(gateway: StubGateway, bananas: Cli) -> None:
    """Below the table, on stderr, with the next step."""
    gateway.pools["gpu"] = {"concurrency": 1, "memory_mb": 256, "cpus": 1.0, "max_concurrency": 4}
    assert bananas("pools").err == ""
    gateway.unserved.add("gpu")
    done = bananas("pools")
    assert done.out.splitlines()[1].split()[:3] == ["gpu", "1", "4"]
    assert done.err == "321 jobs wait in pool gpu for a runner; start one with `bananas runner --pools gpu`\n"


def test_a_job_tells_what_it_waits_for(gateway: StubGateway, bananas: Cli) -> None:
    """And how far it is."""
    detail = "no live runner serves pool 'gpu'; start one with `bananas runner --pools gpu`"
    gateway.record("j1", status="pending", waiting_for="runner", waiting_detail=detail, progress={"done": 3})
    out = bananas("jobs", "show", "j1").out
    assert f"waiting   {detail}\n" in out
    assert 'progress  {"done": 3}\n' in out


class Slow(StubGateway):
    """Answers calls only after somebody has asked for the pools."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """As ever, but late."""
        if path.endswith("/invoke"):
            assert self.asked.wait(10)
        if path == "/pools":
            self.asked.set()
        return super().answer(method, path, body)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """A gateway with a full pool; patience ends at once."""
    monkeypatch.setattr(patience, "NOTE_S", 0.01)
    with serving(Slow()) as gateway:
        gateway.deploy("hello")
        gateway.pools["default"] = {"concurrency": 1}
        yield gateway


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"unserved": {"default"}}, "321 jobs wait in pool default for a runner; start one with `bananas runner"),
        ({"parked": 4}, "hello runs 2 jobs, which is its max_concurrency; 4 wait"),
        ({}, "321 wait in pool default, where 2 run on 1 runners"),
    ],
)
def test_invoke_tells_after_a_while_what_the_call_waits_for(
    slow: Slow, bananas: Cli, setting: dict[str, object], said: str
) -> None:
    """Once, on stderr; the answer is printed as ever."""
    slow.unserved = setting.get("unserved", set())  # type: ignore[assignment]
    slow.functions["hello"] |= {"running": 2, "parked": setting.get("parked", 0)}
    done = bananas("--url", slow.url, "invoke", "hello", "[1]")
    assert (done.code, done.out) == (0, "[1]\n")
    assert done.err.startswith(f"no answer yet: {said}")
    assert done.err.count("\n") == 1


def test_a_call_that_runs_is_said_to_run() -> None:
    """With the time that it may take."""
    pool = {"name": "default", "queued": {"high": 0}, "waits_for_runner": False, "processing": 1, "runners": 1}
    function = {"name": "hello", "parked": 0, "spec": {"timeout_ms": 30_000}}
    assert patience.why(function, pool) == "nothing waits in pool default, so it runs; it may for 30s"


def test_cancel_tells_what_became_of_the_job(gateway: StubGateway, bananas: Cli) -> None:
    """Also when it was too late."""
    assert bananas("jobs", "cancel", "j1").out == "j1 cancelled\n"
    gateway.override["DELETE /jobs/j1"] = problem(409, "job-finished", "job j1 is already completed")
    done = bananas("jobs", "cancel", "j1")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: job j1 is already completed\n", done.err)
