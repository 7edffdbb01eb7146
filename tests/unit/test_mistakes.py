"""The mistakes of the first day, and what each of them is told: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bananas.cli.hints import hint
from bananas.errors import DeployError
from bananas.pack import pack
from bananas.syntax import check
from tests.tools.stub_gateway import StubGateway, problem

Cli = Callable[..., SimpleNamespace]

GOOD = "def handle(event, context):\n    return 1\n"
MANIFEST = "version: 1\nfunctions:\n  hello:\n"


def app(folder: Path, manifest: str = MANIFEST, handler: str = GOOD) -> None:
    """An app with one function in the folder."""
    (folder / "functions/hello").mkdir(parents=True)
    (folder / "functions/hello/handler.py").write_text(handler)
    (folder / "bananas.yaml").write_text(manifest)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["invok", "hello"], 2, "No such command 'invok'; did you mean invoke?"),
        (["job", "ls"], 2, "No such command 'job'; did you mean jobs?"),
        (["invoke", "--asinc", "hello"], 2, "No such option '--asinc'"),
        (["invoke", "hello", "{'name': 'Ada'}"], 2, """write it like '{"name": "Ada"}'"""),
        (["invoke", "hello", "@event.json"], 2, "the payload @event.json cannot be read: No such file or directory"),
        (["invoke", "helo"], 1, "no function 'helo' is deployed; did you mean 'hello'?"),
        (["jobs", "submit", "hello", "--delay", "10"], 2, "'10' is not a time; write a number and ms, s, m, h or d"),
        (["deploy"], 1, "bananas.yaml: no such file or directory; run this beside bananas.yaml, or name the file"),
        (["--url", "localhost:8080", "pools"], 1, "is not the address of a gateway; write one such as http://"),
        (["--url", "http://127.0.0.1:9", "pools"], 3, "start one with `bananas up`, or set BANANAS_URL"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_wrong_command_is_told_what_is_right(
    gateway: StubGateway, bananas: Cli, args: list[str], code: int, told: str
) -> None:
    """On stderr, in one line, with an exit code that tells wrong usage from a refusal."""
    said = "no function 'helo' is deployed; did you mean 'hello'?"
    gateway.override["GET /functions/helo"] = problem(404, "unknown-function", said)
    done = bananas(*args)
    assert done.code == code
    assert told in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ("    timout: 5s", "bananas.yaml:4:5: functions.hello.timout: unknown key; did you mean 'timeout'?"),
        ("    timeout: 5", "bananas.yaml:4:14: functions.hello.timeout: 5 has no unit; write 5s"),
        ("    pool: gpu", "functions.hello.pool: there is no pool 'gpu' under pools; define it there"),
        ("    handler: handle", "'handle' is not valid; write module.function, such as handler.handle"),
        ("    handler: main.run", "functions.hello.handler: "),
        ("    env: {N: 3}", 'the environment holds only text; write it in quotes: "3"'),
        ("    env: {N: '${NOPE}'}", "the environment variable NOPE is not set; set it, or write ${NOPE:-default}"),
        ("    requirements: requirements.txt", "there is no file requirements.txt in functions/hello; create it"),
        ("    runtime: python3.9", "bananas.yaml:4:14: functions.hello.runtime: runtime 'python3.9' is too old"),
        ("    memory: 1G", "belongs to a pool; write pools: {name: {memory: …}} and pool: name here"),
        ("\ttimeout: 5s", "bananas.yaml:4:1: a tab; YAML allows only spaces for indentation"),
    ],
)
def test_a_wrong_manifest_is_told_with_its_place(
    gateway: StubGateway, bananas: Cli, tmp_path: Path, manifest: str, told: str
) -> None:
    """Nothing is sent."""
    app(tmp_path, MANIFEST + manifest + "\n")
    done = bananas("deploy")
    assert done.code == 1
    assert told in done.err
    assert gateway.calls == []


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        ("def handle(event, context)\n    pass\n", "handler.py:1:27: SyntaxError: expected ':'"),
        ("def handler(event, context):\n    pass\n", "handler handler.handle is not there; the file has handler, so"),
        ("x = 1\n", "the file has no function, so write def handle(event, context)"),
        ("def handle(event):\n    pass\n", "handler.py:1:1: handle() cannot be called with (event, context)"),
        ("def handle(event, context, *, log):\n    pass\n", "cannot be called with (event, context)"),
    ],
)
def test_a_handler_that_cannot_work_is_not_deployed(
    gateway: StubGateway, bananas: Cli, tmp_path: Path, handler: str, told: str
) -> None:
    """What served before still serves."""
    app(tmp_path, handler=handler)
    done = bananas("deploy")
    assert done.code == 1
    assert told in done.err
    assert "nothing was deployed" in done.err
    assert gateway.functions == {}


@pytest.mark.parametrize(
    "handler",
    [
        GOOD,
        "async def handle(*args):\n    pass\n",
        "def handle(event, context, log=None):\n    pass\n",
        "from lib import handle\n",
        "from lib import *\n",
        "import lib\nhandle = lib.make()\n",
        "import functools\n@functools.cache\ndef handle(): pass\n",
        "try:\n    from fast import handle\nexcept ImportError:\n    def handle(e, c): pass\n",
        "for handle in (print,): pass\n",
        "globals()['handle'] = print\n",
        "def __getattr__(name): return print\n",
        "class handle:\n    def __init__(self, event, context): pass\n",
    ],
)
def test_a_handler_that_may_work_is_left_to_the_sandbox(tmp_path: Path, handler: str) -> None:
    """Reading code does not tell all; whatever binds the name is let through."""
    app(tmp_path, handler=handler)
    folder = tmp_path / "functions/hello"
    check(pack(folder), folder, "3.11", "handler.handle")


def test_only_the_handlers_own_module_is_searched_for_it(tmp_path: Path) -> None:
    """Other files may have whatever they like; a package's handler is in its __init__."""
    folder = tmp_path / "f"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/__init__.py").write_text("x = 1\n")
    (folder / "other.py").write_text("def run(): pass\n")
    with pytest.raises(DeployError, match=r"pkg/__init__.py:1:1: handler pkg.run is not there"):
        check(pack(folder), folder, "3.11", "pkg.run")
    check(pack(folder), folder, "3.99", "pkg.run")


def test_a_missing_secret_stops_a_deploy_before_anything_is_switched(
    gateway: StubGateway, bananas: Cli, tmp_path: Path
) -> None:
    """Where the token may list secrets; else the gateway refuses, and what was deployed before is told."""
    app(tmp_path, MANIFEST + "  mail: {path: functions/hello, secrets: [API_KEY]}\n")
    gateway.override["GET /secrets"] = 200, {"secrets": [{"name": "OTHER"}]}
    done = bananas("deploy")
    assert "mail: secret 'API_KEY' is not set; `bananas secret set API_KEY` first" in done.err
    assert gateway.functions == {}
    gateway.override["GET /secrets"] = problem(403, "forbidden", "needs a token with scope admin")
    gateway.override["PUT /functions/mail"] = problem(422, "unknown-secret", "function 'mail' needs secret 'API_KEY'")
    done = bananas("deploy")
    assert (done.code, list(gateway.functions)) == (1, ["hello"])
    assert "mail: function 'mail' needs secret 'API_KEY'\ndeployed before it: hello; not deployed: mail" in done.err


@pytest.mark.parametrize(
    ("type_", "message", "told"),
    [
        ("ModuleNotFoundError", "No module named 'requests'", "put requests into the function's requirements"),
        ("Error", "Cannot find package 'left-pad' imported from /run/bananas/code/handler.mjs", "put left-pad into"),
        ("URLError", "<urlopen error [Errno -3] Temporary failure in name resolution>", "egress: [host:port]"),
        ("OSError", "[Errno 101] Network is unreachable", "egress: [host:port]"),
        ("Error", "getaddrinfo EAI_AGAIN example.com", "egress: [host:port]"),
        ("OSError", "[Errno 30] Read-only file system: 'out.txt'", "only /tmp can be written to"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'data.csv'", "Path(__file__).parent"),
        ("TypeError", "handle() takes 1 positional argument but 2 were given", "a handler takes (event, context)"),
        ("Timeout", "the attempt took longer than its timeout (5000 ms)", "raise the function's timeout"),
        ("OutOfMemory", "killed", "raise the memory of the function's pool"),
    ],
)
def test_what_a_sandbox_forbids_is_told_with_the_way_to_it(
    gateway: StubGateway, bananas: Cli, type_: str, message: str, told: str
) -> None:
    """Below the error, wherever a command ends with one."""
    error = {"type": type_, "message": message}
    gateway.deploy("hello")
    gateway.override["POST /functions/hello/invoke"] = problem(500, "handler-error", message, error=error, job="j1")
    done = bananas("invoke", "hello")
    assert done.code == 4
    assert done.err.splitlines()[-1].startswith("hint: ")
    assert told in done.err.splitlines()[-1]
    gateway.record("job-1", status="failed", error=error, reason="retries_exhausted")
    gateway.override["POST /jobs"] = 202, gateway.jobs["job-1"] | {"duplicate": False}
    assert told in bananas("jobs", "submit", "hello", "--wait", "30s").err


def test_an_error_of_the_handlers_own_has_no_hint() -> None:
    """Nothing is guessed."""
    assert hint({"type": "ValueError", "message": "boom"}) is None
    assert hint({"type": "FileNotFoundError", "message": "[Errno 2] No such file or directory: '/etc/x'"}) is None
    assert hint(None) is None
