"""The command line's part in lists of jobs and in versions of functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

from tests.tools.stub_gateway import DAY, StubGateway, problem

Cli = Callable[..., SimpleNamespace]


def job(n: int, **changed: object) -> dict[str, object]:
    base = {"id": f"j{n}", "name": "hello", "version": "103c89f0cdda", "pool": "default", "priority": "normal"}
    base |= {"status": "completed", "created_at": DAY, "attempts": 1, "reason": None}
    return base | changed


def version(name: str, *, current: bool = False) -> dict[str, object]:
    spec = {"runtime": "python"}
    return {"version": name, "current": current, "deployed_at": DAY, "spec": spec, "bundles": {"code": "c" * 64}}


def test_jobs_are_listed_with_filters(gateway: StubGateway, bananas: Cli) -> None:
    """A line each; the filters travel as they are; a limit says that there is more."""
    page = {"jobs": [job(1), job(2, status="failed", reason="permanent")], "cursor": "c~1~x"}
    gateway.override["GET /jobs"] = (200, page)
    done = bananas("jobs", "ls", "--status", "failed", "--function", "hello", "--limit", "2")
    lines = done.out.splitlines()
    assert lines[0].split() == ["ID", "FUNCTION", "STATUS", "TRIES", "CREATED"]
    assert lines[2].startswith("j2  hello     failed (permanent)  1")
    assert done.err == "there are more than 2; see them with --limit\n"
    assert gateway.calls == ["GET /jobs?status=failed&function=hello&limit=2"]
    done = bananas("jobs", "ls", "--limit", "3", "-o", "json")
    assert [j["id"] for j in json.loads(done.out)] == ["j1", "j2", "j1", "j2"]
    assert gateway.calls[-1] == "GET /jobs?cursor=c~1~x&limit=1"
    assert "'dead' is not one of" in bananas("jobs", "ls", "--status", "dead").err


def test_versions_are_listed(gateway: StubGateway, bananas: Cli) -> None:
    """The current one is marked."""
    kept = [version("b"), version("a", current=True)]
    gateway.override["GET /functions/hello/versions"] = (200, {"name": "hello", "versions": kept, "diff": None})
    lines = bananas("functions", "versions", "hello").out.splitlines()
    assert lines[0].split() == ["VERSION", "RUNTIME", "CODE", "DEPLOYED"]
    assert [line.split()[0] for line in lines[1:]] == ["b", "*"]
    assert json.loads(bananas("functions", "versions", "hello", "-o", "json").out) == kept


def test_diff_is_between_the_current_version_and_the_one_before(gateway: StubGateway, bananas: Cli) -> None:
    """Unless others are named."""
    kept = [version("c"), version("b", current=True), version("a")]
    change = {"setting": "timeout_ms", "from": 1000, "to": None}
    answer = {"name": "hello", "versions": kept, "diff": {"from": "a", "to": "b", "changes": [change]}}
    gateway.override["GET /functions/hello/versions"] = (200, answer)
    lines = bananas("functions", "diff", "hello").out.splitlines()
    assert (lines[0].split(), lines[1].split()) == (["SETTING", "a", "b"], ["timeout_ms", "1000", "-"])
    assert gateway.calls[-1] == "GET /functions/hello/versions?diff=a..b"
    bananas("functions", "diff", "hello", "c")
    assert gateway.calls[-1] == "GET /functions/hello/versions?diff=c..b"
    assert json.loads(bananas("functions", "diff", "hello", "a", "c", "-o", "json").out) == answer["diff"]
    assert gateway.calls[-1] == "GET /functions/hello/versions?diff=a..c"
    answer["versions"] = [version("a", current=True)]
    done = bananas("functions", "diff", "hello")
    assert (done.code, done.err) == (1, "error: no version of hello from before the current one is kept\n")
    answer["diff"] = {"from": "a", "to": "b", "changes": []}
    assert bananas("functions", "diff", "hello", "a", "b").out == "a and b do not differ\n"


def test_rollback_says_where_it_went(gateway: StubGateway, bananas: Cli) -> None:
    """Back, already there, or why not."""
    answer = {"name": "hello", "version": "a", "previous": "b", "changed": True}
    gateway.override["POST /functions/hello/rollback"] = (200, answer)
    assert bananas("functions", "rollback", "hello").out == "hello is back at a (was b)\n"
    assert gateway.bodies[-1] == b"{}"
    answer["changed"] = False
    assert bananas("functions", "rollback", "hello", "a").out == "hello already is at a\n"
    assert gateway.bodies[-1] == b'{"version":"a"}'
    assert json.loads(bananas("functions", "rollback", "hello", "-o", "json").out) == answer
    gateway.override["POST /functions/hello/rollback"] = problem(409, "version-gone", "no version is kept")
    done = bananas("functions", "rollback", "hello")
    assert (done.code, done.err) == (1, "error: no version is kept\n")
