"""The command line: arguments, output, exit codes, and that it starts fast."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click as plain_click
import pytest
from click.testing import CliRunner

from bananas.cli import COMMANDS, cli
from tests.tools.stub_gateway import DAY, StubGateway, problem

Cli = Callable[..., SimpleNamespace]


def all_commands(group: plain_click.Command = cli, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command and group below the root, with its path."""
    found: list[tuple[tuple[str, ...], Any]] = [(path, group)]
    if isinstance(group, plain_click.Group):
        context = plain_click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found += all_commands(command, (*path, name))
    return found


# -- invoke and jobs --------------------------------------------------------------------------------------------------


def test_invoke_prints_the_result_and_nothing_else(gateway: StubGateway, bananas: Cli, tmp_path: Path) -> None:
    """From an argument, a file, stdin, or an empty event; the JSON text is not rewritten."""
    gateway.deploy("hello")
    (tmp_path / "event.json").write_text('{"n": 1.50}')
    assert bananas("invoke", "hello", '{"a":  1}') == SimpleNamespace(code=0, out='{"a":  1}\n', err="")
    assert bananas("invoke", "hello", "@event.json").out == '{"n": 1.50}\n'
    assert bananas("invoke", "hello", "-", stdin=b"[1]").out == "[1]\n"
    assert bananas("invoke", "hello").out == "{}\n"


@pytest.mark.parametrize("payload", ["{a: 1}", "NaN", "", "@nowhere.json"])
def test_a_payload_that_is_not_json_is_wrong_usage(gateway: StubGateway, bananas: Cli, payload: str) -> None:
    """Nothing is sent, and the message shows how to write one."""
    done = bananas("invoke", "hello", payload)
    assert done.code == 2
    assert re.search(
        r"the payload is not JSON: .*'\{\"name\": \"Ada\"\}'|payload @nowhere.json cannot be read", done.err
    )
    assert gateway.calls == []


def test_a_payload_over_the_limit_is_refused_here(gateway: StubGateway, bananas: Cli) -> None:
    """Not after uploading it."""
    done = bananas("invoke", "hello", "-", stdin=b'"' + b"x" * (1024 * 1024) + b'"')
    assert (done.code, done.err) == (1, "error: the payload is larger than 1024 KiB\n")
    assert gateway.calls == []


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (500, "handler-error", 4),
        (502, "sandbox-died", 4),
        (504, "timeout", 4),
        (404, "unknown-function", 1),
        (503, "no-live-runner", 1),
        (429, "queue-full", 1),
    ],
)
def test_the_exit_code_tells_a_failed_job_from_a_refused_call(
    gateway: StubGateway, bananas: Cli, status: int, code: str, exit_code: int
) -> None:
    """4 means that the function ran and failed."""
    gateway.deploy("hello")
    gateway.override["POST /functions/hello/invoke"] = problem(status, code, "it went wrong")
    done = bananas("invoke", "hello")
    assert (done.code, done.out, done.err) == (exit_code, "", "error: it went wrong\n")


def test_a_handlers_traceback_and_job_are_shown(gateway: StubGateway, bananas: Cli) -> None:
    """The last line is the error; above it what the handler said."""
    gateway.deploy("hello")
    facts = {"job": "j1", "error": {"type": "KeyError", "message": "'x'", "traceback": "Traceback …\nKeyError: 'x'\n"}}
    gateway.override["POST /functions/hello/invoke"] = problem(500, "handler-error", "KeyError: 'x'", **facts)
    assert bananas("invoke", "hello").err == (
        "Traceback …\nKeyError: 'x'\nerror: KeyError: 'x' (see `bananas jobs show j1`)\n"
    )


def test_no_gateway_is_exit_code_3(bananas: Cli, free_port: int) -> None:
    """--url wins over BANANAS_URL."""
    done = bananas("--url", f"http://127.0.0.1:{free_port}", "runners")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(
        f"error: no gateway answers at http://127.0.0.1:{free_port}; start one with `bananas up`"
    )


def test_invoke_async_and_submit_print_the_id(gateway: StubGateway, bananas: Cli) -> None:
    """Options travel as the API takes them."""
    assert bananas("invoke", "hello", '{"a": 1}', "--async").out == "job-1\n"
    assert json.loads(gateway.bodies[-1]) == {"name": "hello", "payload": {"a": 1}}
    options = [
        "--priority",
        "high",
        "--pool",
        "gpu",
        "--delay",
        "10s",
        "--retries",
        "1",
        "--timeout",
        "5s",
        "--expires-after",
        "1h",
    ]
    assert json.loads(bananas("jobs", "submit", "hello", *options, "-o", "json").out)["id"] == "job-1"
    assert json.loads(gateway.bodies[-1]) == {
        "name": "hello",
        "payload": {},
        "priority": "high",
        "pool": "gpu",
        "delay": "10s",
        "retries": 1,
        "timeout": "5s",
        "expires_after": "1h",
    }


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--delay", "10"], "'10' is not a time; write a number and ms, s, m, h or d, such as 30s"),
        (["--delay", "1s", "--run-at", "2026-11-24T06:00:00Z"], "exclude each other"),
        (["--retries", "21"], "21 is not in the range"),
        (["--priority", "urgent"], "'urgent' is not one of"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_options_are_exit_code_2(gateway: StubGateway, bananas: Cli, args: list[str], problem: str) -> None:
    """Found here, not by the gateway."""
    done = bananas("jobs", "submit", "hello", *args)
    assert (done.code, gateway.calls) == (2, [])
    assert problem in " ".join(done.err.split())


def test_a_wait_and_followed_output_outlive_a_gateway_that_goes(gateway: StubGateway, bananas: Cli) -> None:
    """Once it is known that there is one, and such a job; who calls nobody hears it at once."""
    gateway.record("j1", status="processing")
    end = b'event: end\ndata: {"id": "j1", "status": "completed"}\n\n'
    gateway.faults.extend([(200, gateway.jobs["j1"], {}), "lost", "lost", (200, gateway.jobs["j1"], {})])
    gateway.record("j1")
    assert bananas("jobs", "show", "j1", "--wait", "60s").code == 0
    assert len(gateway.calls) >= 5
    gateway.faults.extend([(200, gateway.jobs["j1"], {}), "lost", (200, end, {})])
    assert bananas("jobs", "logs", "-f", "j1").code == 0
    gateway.faults.append("lost")
    assert bananas("jobs", "show", "j1", "--wait", "60s").code == 3


def test_submit_with_wait_ends_with_the_job(gateway: StubGateway, bananas: Cli) -> None:
    """0 when it completed, 4 when it failed, 1 when it is not over."""
    done = bananas("jobs", "submit", "hello", "--wait", "30s")
    assert (done.code, gateway.calls[-1].split("=")[0]) == (0, "GET /jobs/job-1?wait")
    gateway.override["GET /jobs/job-1"] = (
        200,
        gateway.jobs["job-1"]
        | {
            "status": "failed",
            "reason": "retries_exhausted",
            "attempts": 4,
        },
    )
    done = bananas("jobs", "submit", "hello", "--wait", "30s", "-o", "json")
    assert (done.code, json.loads(done.out)["status"]) == (4, "failed")
    assert done.err == "error: job job-1 failed (retries_exhausted) after 4 attempts\n"
    gateway.override["GET /jobs/job-1"] = 200, gateway.jobs["job-1"] | {"status": "pending"}
    done = bananas("jobs", "submit", "hello", "--wait", "50ms")
    assert done.code == 1
    assert "error: job job-1 is still pending after 0.05 s" in done.err


def test_show_tells_a_jobs_story(gateway: StubGateway, bananas: Cli) -> None:
    """What it is, each attempt, and what came out; control characters cannot reach the terminal."""
    attempts = [
        {
            "attempt": 1,
            "outcome": "error",
            "start": "cold",
            "timings": {"queued_ms": 1.5, "run_ms": 3},
            "sandbox": "c0ffee" * 5,
        },
        {"attempt": 2, "outcome": "ok", "start": "warm", "timings": {}, "sandbox": None},
    ]
    gateway.record("j1", history=attempts, error={"type": "E", "message": "bad \x1b[31m"}, attempts=2)
    out = bananas("jobs", "show", "j1").out
    assert out.splitlines()[:3] == ["id        j1", "function  hello @ 103c89f0cdda", "status    completed"]
    assert re.search(r"1 +error +cold +1.5 +3 +- +c0ffeec0ffee\n2 +ok +warm", out)
    assert "error     E: bad ?[31m" in out
    assert out.endswith('result    {"n": 1}\n')
    assert json.loads(bananas("jobs", "show", "j1", "-o", "json").out)["history"] == attempts
    assert bananas("jobs", "show", "nope").code == 1


def test_logs_and_cancel(gateway: StubGateway, bananas: Cli) -> None:
    """Logs come as they were printed."""
    assert bananas("jobs", "logs", "j1").out == "printed by j1\n"
    assert json.loads(bananas("jobs", "logs", "j1", "-o", "json").out) == {"id": "j1", "logs": "printed by j1\n"}
    assert bananas("jobs", "cancel", "j1").out == "j1 cancelled\n"
    gateway.override["DELETE /jobs/j1"] = problem(409, "job-finished", "job j1 is over", job="j1")
    assert bananas("jobs", "cancel", "j1").code == 1


# -- functions, pools, runners ----------------------------------------------------------------------------------------


def test_functions_are_listed_and_removed(gateway: StubGateway, bananas: Cli) -> None:
    """A line each, and JSON for programs."""
    gateway.deploy("hello")
    lines = bananas("functions", "ls").out.splitlines()
    assert lines[0].split() == [*("NAME", "VERSION", "RUNTIME", "POOL", "TIMEOUT", "RUNNING", "PARKED", "DEPLOYED")]
    assert lines[1].split()[:5] == ["hello", gateway.functions["hello"]["version"], "python", "default", "30s"]
    gateway.functions["hello"] |= {"running": 2, "parked": 7}
    gateway.functions["hello"]["spec"] |= {"max_concurrency": 2}
    assert re.search(r" 30s +2 of 2 +7 ", bananas("functions", "ls").out)
    assert json.loads(bananas("functions", "ls", "-o", "json").out)[0]["name"] == "hello"
    assert bananas("functions", "rm", "hello").out == "hello removed\n"
    assert bananas("functions", "rm", "hello").code == 1


def test_schedules_are_listed_paused_and_resumed(gateway: StubGateway, bananas: Cli) -> None:
    """With and without ls; a paused one says so where its next slot would be; a problem is told beside the list."""
    gateway.schedule("report", last_job="j1")
    gateway.schedule("alien", problem="'Mars/Base' is not a time zone")
    done = bananas("schedules")
    assert re.search(r"report +0 2 \* \* \* +Europe/Berlin +2026-11-25 01:00 +7 +1/2/0", done.out)
    assert done.err == "alien does not fire: 'Mars/Base' is not a time zone\n"
    assert bananas("schedules", "ls").out == done.out
    as_json = [
        json.loads(bananas(*words).out) for words in (("schedules", "-o", "json"), ("schedules", "ls", "-ojson"))
    ]
    assert as_json == [gateway.schedules, gateway.schedules]
    assert bananas("schedules", "pause", "report").out == "report paused\n"
    assert gateway.bodies[-1] == b"{}"
    assert re.search(r"report .* Europe/Berlin +paused +7 +1/2/0", bananas("schedules").out)
    assert bananas("schedules", "pause", "report").out == "report already paused\n"
    told = json.loads(bananas("schedules", "resume", "report", "-o", "json").out)
    assert told == [{"function": "report", "paused": False, "changed": True}]
    missing = bananas("schedules", "pause", "nope")
    assert (missing.code, missing.err) == (1, "error: function 'nope' has no schedule\n")


def test_pools_and_runners_are_listed(gateway: StubGateway, bananas: Cli) -> None:
    """ps is another name for runners; a row fits 80 columns."""
    gateway.pools["default"] = {"concurrency": 8, "memory_mb": 256, "cpus": 1.0}
    gateway.runners.append(
        {
            "id": "019ab1f2-r",
            "host": "box",
            "pid": 7,
            "pools": [],
            "seen_at": DAY,
            "busy": 1,
            "sandboxes": {"default/idle": 3},
        }
    )
    assert bananas("pools").out.splitlines()[1].split() == ["default", "8", "-", "256M", "1.0", "1/20/300", "2", "1"]
    out = bananas("ps").out
    assert out.splitlines()[1].split()[:6] == ["019ab1f2-r", "box", "7", "all", "1", "3"]
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads(bananas("runners", "-o", "json").out) == gateway.runners


def test_an_empty_list_is_a_heading(bananas: Cli) -> None:
    """And not an error."""
    assert bananas("runners").out == "ID  HOST  PID  POOLS  BUSY  SANDBOXES  SEEN\n"


# -- the manifest -----------------------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with one function."""
    (tmp_path / "functions" / "hello").mkdir(parents=True)
    (tmp_path / "functions" / "hello" / "handler.py").write_text("def handle(event, context): ...\n")
    (tmp_path / "bananas.yaml").write_text("version: 1\nfunctions: {hello: }\n")
    return tmp_path


def test_deploy_reports_on_stderr_and_prints_the_result(app: Path, gateway: StubGateway, bananas: Cli) -> None:
    """So that the output can be piped."""
    done = bananas("deploy")
    version = gateway.functions["hello"]["version"]
    assert done.code == 0
    assert done.err.endswith(f"hello: deployed {version}\n")
    assert done.out.splitlines()[1].split() == ["hello", version, "deployed", f"{gateway.url}/functions/hello/invoke"]
    again = bananas("deploy", "hello", "-f", "bananas.yaml", "-o", "json")
    assert json.loads(again.out) == [
        {"name": "hello", "version": version, "changed": False, "calls": f"{gateway.url}/functions/hello/invoke"}
    ]
    done = bananas("deploy", "other")
    assert (done.code, done.err) == (1, "error: bananas.yaml has no function other; it has hello\n")


def test_validate_prints_every_problem_and_the_count(app: Path, gateway: StubGateway, bananas: Cli) -> None:
    """Without asking a gateway."""
    assert bananas("validate").out == "bananas.yaml is valid: 1 function, 0 pools\n"
    (app / "bananas.yaml").write_text("version: 1\nfunctions: {hello: {timout: 3s, timeout: 3}}\n")
    done = bananas("validate")
    assert done.code == 1
    assert done.err == (
        "bananas.yaml:2:21: functions.hello.timout: unknown key; did you mean 'timeout'?\n"
        "bananas.yaml:2:42: functions.hello.timeout: 3 has no unit; write 3s\n"
        "error: 2 problems in the file\n"
    )
    assert bananas("deploy").code == 1
    assert gateway.calls == []


def test_schema_prints_the_json_schema(bananas: Cli) -> None:
    """For editors."""
    assert json.loads(bananas("schema").out)["properties"].keys() == {"version", "pools", "functions"}


# -- the program itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "command"), all_commands(), ids=lambda value: "-".join(value) if type(value) is tuple else ""
)
def test_every_help_page_has_an_example(path: tuple[str, ...], command: Any) -> None:
    """And says in one line what the command does."""
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert re.search(rf"^ *([A-Z_]+=\S+ )?{' '.join(['bananas', *path])}", done.output, re.MULTILINE)
    assert command.get_short_help_str(limit=65).endswith(".")
    assert "..." not in command.get_short_help_str(limit=65)
    assert max(map(len, done.output.splitlines())) <= 80


def test_a_wrong_setting_is_told_by_name(bananas: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked of a gateway."""
    monkeypatch.delenv("BANANAS_URL")
    monkeypatch.setenv("BANANAS_PORT", "http")
    done = bananas("pools")
    assert done.code == 1
    assert done.err.startswith("error: BANANAS_PORT='http' is not valid")


def test_an_unknown_command_is_exit_code_2(bananas: Cli) -> None:
    """And the line names it."""
    done = bananas("deplo")
    assert done.code == 2
    assert "No such command 'deplo'" in done.err


def run_python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A real process with the packages of this checkout."""
    # Without coverage in it: it imports modules of its own.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("BANANAS_", "COVERAGE_"))}
    return subprocess.run(
        [sys.executable, *args], env={**environ, **env}, capture_output=True, text=True, timeout=60, check=False
    )


def test_starting_imports_nothing_heavy() -> None:
    """--help stays fast because clients, services and schemas are imported by the commands that need them."""
    code = "import sys; from bananas.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = run_python("-c", code)
    assert done.returncode == 0
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    assert not loaded & {
        "docker",
        "redis",
        "flask",
        "requests",
        "pydantic",
        "yaml",
        "gevent",
        "urllib3",
        "prometheus_client",
    }


def test_python_dash_m_is_the_command() -> None:
    """And exit codes arrive."""
    assert run_python("-m", "bananas", "--version").stdout.startswith("bananas, version ")
    assert run_python("-m", "bananas", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("args", "module", "argv", "settings"),
    [
        (["gateway"], "gateway", [], {}),
        (
            ["gateway", "--host", "0.0.0.0", "--port", "81", "--workers", "2"],
            "gateway",
            [],
            {"BANANAS_HOST": "0.0.0.0", "BANANAS_PORT": "81", "BANANAS_GATEWAY_WORKERS": "2"},
        ),
        (["runner", "--pools", "gpu,mail"], "runner", [], {"BANANAS_POOLS": "gpu,mail"}),
        (["runner", "--only", "maintenance"], "runner", ["--only", "maintenance"], {}),
        (["images", "ls", "-o", "json"], "runner", ["images", "ls", "-o", "json"], {}),
        (
            ["images", "build", "--python", "/p", "--force", "--tag", "t"],
            "runner",
            ["images", "build", "--python", "/p", "--tag", "t", "--output", "table", "--force"],
            {},
        ),
    ],
)
def test_services_are_started_with_their_settings(
    tmp_path: Path, args: list[str], module: str, argv: list[str], settings: dict[str, str]
) -> None:
    """The command becomes python -m gateway or runner; a stand-in found first on the path says how it was started."""
    package = tmp_path / "stand-in" / module
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    say = "import json, os, sys\nenv = {k: v for k, v in os.environ.items() if k.startswith('BANANAS_')}\n"
    (package / "__main__.py").write_text(say + "print(json.dumps([sys.argv[1:], env]))\nsys.exit(7)\n")
    done = run_python("-m", "bananas", *args, PYTHONPATH=str(tmp_path / "stand-in"))
    assert (done.returncode, json.loads(done.stdout)) == (7, [argv, settings])


def test_a_users_own_folder_called_gateway_is_not_started(tmp_path: Path) -> None:
    """Only installed packages count, not the current folder."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__main__.py").write_text("print('mine')\n")
    code = f"import os, sys; os.chdir({str(tmp_path)!r}); from bananas.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_python("-P", "-c", code, "gateway", "--port", "1", BANANAS_AUTH="nonsense")
    assert "mine" not in done.stdout
    assert done.returncode != 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """``bananas schema | head -1``."""
    command = f"{sys.executable} -m bananas schema | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_up_with_a_missing_manifest_is_refused_before_anything_starts(bananas: Cli) -> None:
    """The file is named."""
    assert bananas("up", "-f", "nope.yaml").err == "error: there is no file nope.yaml\n"


def test_every_command_of_the_table_exists() -> None:
    """The lazy table cannot name what is not there."""
    assert {path[0] for path, _ in all_commands() if path} == set(COMMANDS)
