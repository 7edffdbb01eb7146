"""What commands print: ``-o json`` is JSON, tables fit 80 columns, colour and bars are for terminals only."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from bananas.cli import cli
from bananas.cli.bars import Bars
from bananas.cli.output import table_lines
from bananas.client import Client
from tests.tools.stub_gateway import DAY, StubGateway

Cli = Callable[..., SimpleNamespace]

JOB = "019ab1f2-0000-7000-8000-000000000001"
LONG = "a-function-with-a-name-of-the-63-characters-that-it-may-have-ok"
#: What each command with -o is called with; one that is not here is a failure.
CALLS: dict[str, list[str]] = {
    "init": ["shop"],
    "deploy": [],
    "invoke": [LONG],
    "jobs submit": [LONG, "--wait", "30s"],
    "jobs batch": ["jobs.jsonl"],
    "jobs ls": [],
    "jobs show": [JOB],
    "jobs logs": [JOB],
    "jobs cancel": [JOB],
    "explain": [JOB],
    "replay": [JOB],
    "dead ls": [],
    "dead show": [JOB],
    "dead replay": [JOB],
    "dead purge": [JOB],
    "functions ls": [],
    "functions versions": [LONG],
    "functions diff": [LONG],
    "functions rollback": [LONG],
    "functions rm": [LONG],
    "pools": [],
    "runners": [],
    "schedules": [],
    "schedules ls": [],
    "schedules pause": [LONG],
    "schedules resume": [LONG],
    "secret set": ["KEY"],
    "secret ls": [],
    "secret rm": ["KEY"],
    "secret callback-keys": [],
    "token create": ["shop"],
    "token ls": [],
    "token rm": ["t1"],
    "validate": [],
    "top": ["--once", "--interval", "0.2"],
}
#: Those that print tables, or words that are wrapped.
TABLES = (
    *("deploy", "jobs ls", "jobs show", "explain", "dead ls", "dead show", "functions ls", "functions versions"),
    *("functions diff", "pools", "runners", "schedules", "schedules ls", "secret ls", "token ls", "top"),
)
#: Those ask the engine and not the gateway; their own tests read their JSON.
ELSEWHERE = {"images build", "images ls", "images prune", "doctor"}


def commands_with_output(command: click.Command, path: str, context: click.Context) -> Iterator[str]:
    """Every command that has -o."""
    if any("--output" in param.opts for param in command.params):
        yield path.strip()
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands_with_output(below, f"{path} {name}", click.Context(below, parent=context))


def versions() -> list[dict[str, Any]]:
    base = {"deployed_at": DAY, "spec": {"runtime": "python"}, "bundles": {"code": "c" * 64}, "abi": "a"}
    return [base | {"version": "b" * 12, "current": True}, base | {"version": "a" * 12, "current": False}]


@pytest.fixture
def full(gateway: StubGateway, tmp_path: Path) -> StubGateway:
    """A gateway with long names and large numbers of everything, and an app in the current folder."""
    folder = tmp_path / "functions" / LONG
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text("def handle(event, context): pass\n")
    (tmp_path / "bananas.yaml").write_text(f"version: 1\nfunctions: {{{LONG}: }}\n")
    (tmp_path / "jobs.jsonl").write_text('{"name": "hello"}\n')
    gateway.deploy(LONG)
    gateway.functions[LONG] |= {"running": 10_000, "parked": 1_000_000}
    gateway.functions[LONG]["spec"] |= {"max_concurrency": 10_000, "pool": LONG, "timeout_ms": 90_061_001}
    gateway.pools[LONG] = {"concurrency": 512, "max_concurrency": 10_000, "memory_mb": 1_048_576, "cpus": 0.125}
    gateway.pools["default"] = gateway.pools[LONG]
    gateway.schedule(LONG, cron="0,5,10,15 0-23/2 1,15 jan-jun mon-fri", tz="America/Argentina/ComodRivadavia")
    error = {"type": "ValueErrorOfSomeLength", "message": "what went wrong, told at length " * 9}
    failed: dict[str, Any] = {"status": "failed", "reason": "retries_exhausted", "error": error}
    gateway.record(JOB, name=LONG, pool=LONG, **failed)
    gateway.override[f"GET /jobs/{JOB}"] = 200, gateway.jobs[JOB]
    gateway.override["GET /jobs"] = 200, {"jobs": [gateway.jobs[JOB]], "cursor": None}
    gateway.letter(JOB)
    gateway.letters[0] |= {"name": LONG, "reason": "retries_exhausted", "error": error, "attempts": 21}
    gateway.runners.append(
        {
            "id": f"{LONG}-host-49c7044a",
            "host": LONG,
            "pid": 4_194_304,
            "pools": ["default", "email", "gpu", LONG],
            "busy": 512,
            "sandboxes": {"default/idle": 1024},
            "seen_at": DAY,
            "started_at": DAY,
            "gpus": 8,
            "held_up": {},
        }
    )
    change = {"setting": "retries.base_ms", "from": "x" * 50, "to": "y" * 50}
    told = {"name": LONG, "versions": versions(), "diff": {"from": "a", "to": "b", "changes": [change]}}
    gateway.override[f"GET /functions/{LONG}/versions"] = 200, told
    back = {"name": LONG, "version": "a" * 12, "previous": "b" * 12, "changed": True}
    gateway.override[f"POST /functions/{LONG}/rollback"] = 200, back
    secret = {"name": "A_SECRET_WITH_A_NAME_OF_SOME_LENGTH", "version": "1", "updated_at": DAY, "functions": [LONG] * 3}
    gateway.override["GET /secrets"] = 200, {"secrets": [secret]}
    gateway.override["PUT /secrets/KEY"] = 200, {"name": "KEY", "version": "2", "changed": True}
    gateway.override["DELETE /secrets/KEY"] = 204, b""
    gateway.override["GET /callback-keys"] = 200, {"keys": ["whsec_abc"]}
    token = {"id": "bn_0123456789ab", "name": LONG, "scopes": ["invoke", "deploy", "admin"], "functions": [LONG] * 2}
    token |= {"created_at": DAY, "expires_at": DAY, "rate": {"limit": "100/s", "burst": 100}}
    gateway.override["GET /tokens"] = 200, {"tokens": [token]}
    gateway.override["POST /tokens"] = 201, token | {"token": "bn_secret"}
    gateway.override["DELETE /tokens/t1"] = 204, b""
    gateway.override["GET /metrics"] = 200, b""
    gateway.override["POST /jobs"] = 202, gateway.jobs[JOB] | {"duplicate": False}
    return gateway


def test_every_command_with_an_output_option_is_looked_at() -> None:
    """A new one is put into the table above."""
    assert set(commands_with_output(cli, "", click.Context(cli))) == CALLS.keys() | ELSEWHERE


@pytest.mark.parametrize("command", CALLS)
def test_o_json_is_json_and_nothing_else(full: StubGateway, bananas: Cli, command: str) -> None:
    """So that ``| jq`` works, also where a command ends with the failure of a job."""
    done = bananas(*command.split(), *CALLS[command], "-o", "json", stdin=b"value")
    assert done.code in (0, 4), done.err
    json.loads(done.out)
    assert "\x1b" not in done.out + done.err


@pytest.mark.parametrize("command", TABLES)
def test_every_table_fits_80_columns(
    full: StubGateway, bananas: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """On a terminal of that width; ids stay whole."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: SimpleNamespace(columns=80, lines=24))
    done = bananas(*command.split(), *CALLS[command], stdin=b"value")
    assert done.code in (0, 4), done.err
    lines = done.out.splitlines()
    tables = [line for line in lines if not line.startswith(("error ", "result ", "payload ", "function ", "pool "))]
    assert [line for line in tables if len(line) > 80] == []
    if command in ("jobs ls", "dead ls"):
        assert JOB in done.out


def test_what_is_usual_is_not_cut_at_80_columns(
    gateway: StubGateway, bananas: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state, a cron expression and a rate are what one looks for; names of usual length leave room for them."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: SimpleNamespace(columns=80, lines=24))
    gateway.record(JOB, name="send_email", status="processing")
    gateway.override["GET /jobs"] = 200, {"jobs": [gateway.jobs[JOB]], "cursor": None}
    gateway.schedule("nightly_report", cron="*/15 8-18 * * 1-5", tz="UTC")
    token = {"id": "0123456789ab", "name": "shop", "scopes": ["invoke", "deploy"], "functions": ["send_email"]}
    token |= {"created_at": DAY, "expires_at": DAY, "rate": {"limit": "100/s", "burst": 100}}
    gateway.override["GET /tokens"] = 200, {"tokens": [token]}
    lists = {name: bananas(*name.split()).out for name in ("jobs ls", "schedules", "token ls")}
    assert f"{JOB}  send_email  processing  1 " in lists["jobs ls"]
    assert "nightly_report  */15 8-18 * * 1-5  UTC   2026-11-25 01:00  " in lists["schedules"]
    assert "0123456789ab  shop  invoke,deploy  send_email  100/s  " in lists["token ls"]
    assert [name for name, told in lists.items() if "…" in told] == []


def test_ids_are_cut_last() -> None:
    """And cells are not cut where there is room, or no terminal."""
    rows = [(JOB, "n" * 40, "s" * 40)]
    assert list(table_lines(("ID", "NAME", "STATE"), rows, 80))[1].startswith(f"{JOB}  nnn")
    assert max(map(len, table_lines(("ID", "NAME", "STATE"), rows, 80))) <= 80
    assert max(map(len, table_lines(("ID", "OTHER"), [("i" * 100, "o" * 100)], 80))) <= 80
    assert list(table_lines(("ID", "NAME"), [(JOB, "n" * 90)])) == [f"{'ID':<36}  NAME", f"{JOB}  {'n' * 90}"]


class Terminal(io.StringIO):
    """Stands for stderr where somebody looks."""

    def isatty(self) -> bool:
        return True


def test_long_steps_have_bars_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars are gone at the end, lines stay; a dumb terminal gets no control characters."""
    for term, shows in (("xterm", True), ("dumb", False)):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", term)
        with Bars() as bars, bars.step("hello: uploading [code]", 100) as advance, bars.step("packing"):
            advance(50)
            bars.say("hello: deployed [1]")
        assert "hello: deployed [1]\n" in terminal.getvalue()
        assert ("uploading [code]" in terminal.getvalue()) is shows
        assert ("\x1b" in terminal.getvalue()) is shows
    monkeypatch.setattr("sys.stderr", plain := io.StringIO())
    with Bars() as bars, bars.step("packing") as advance:
        advance(1)
        bars.say("done")
    assert plain.getvalue() == "done\n"


def test_an_upload_tells_how_far_it_is(gateway: StubGateway) -> None:
    """Piece by piece, up to all of it, and what arrives is whole."""
    import hashlib

    data = bytes(range(256)) * 1000
    sha, told = hashlib.sha256(data).hexdigest(), []
    with Client(gateway.url, patience_s=0) as client:
        client.put_bundle(sha, data, told.append)
    assert sum(told) == len(data)
    assert len([count for count in told if count]) > 1
    assert gateway.bundles[sha] == data


def test_help_that_is_piped_has_no_colour() -> None:
    """Nor any other control character."""
    done = subprocess.run(
        [sys.executable, "-m", "bananas", "jobs", "--help"], capture_output=True, timeout=60, check=True
    )
    assert b"\x1b" not in done.stdout
    assert b"Usage" in done.stdout
