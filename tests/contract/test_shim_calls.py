"""What a handler gets and what comes back for it, spoken over a real socket with the real shim."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from runner import framing
from tests.contract.shim_host import START_S, ShimHost

ECHO = "def handle(event, context):\n    return event\n"


def failing(body: str) -> str:
    return "def handle(event, context):\n    " + body.replace("\n", "\n    ") + "\n"


@pytest.fixture(scope="module")
def evaluating() -> Any:
    """A sandbox whose handler returns what its event, an expression, evaluates to."""
    source = "import ctypes, math, os, sys, time\ndef handle(event, context):\n    return eval(event)\n"
    with ShimHost(source) as host:
        yield host.ready(result_bytes=1000)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, "", "zażółć 🍌 \x00 \u2028", [], [1, [2, {}]], {"a": {"b": None}}, "x" * 300_000],
    ids=lambda v: repr(v)[:20],
)
def test_a_json_value_comes_back_as_it_went_in(value: Any) -> None:
    """Payload in, result out, nothing lost on the way, also when it does not fit one read."""
    with ShimHost(ECHO) as host:
        answer = host.ready().call(value)
        assert answer.json() == value
        assert answer.meta.keys() == {"run_ms"}
        assert answer.logs == b""


def test_a_result_is_compact_utf8_json(evaluating: ShimHost) -> None:
    """Bytes are not wasted on spaces and escapes."""
    assert evaluating.call("{'ü': [1, 2], 3: None}").frame.body == '{"ü":[1,2],"3":null}'.encode()


def test_ready_says_which_python_it_is_and_how_long_loading_took() -> None:
    """The runner learns what answers."""
    with ShimHost("import time\ntime.sleep(0.05)\n" + ECHO) as host:
        answer = host.init()
    assert answer.frame.kind == framing.READY
    assert answer.meta["python"].startswith("3.")
    assert 50 <= answer.meta["init_ms"] < START_S * 1000


def test_the_context_describes_the_call() -> None:
    """What the handler may know about the job, and how long it still has."""
    source = failing(
        "return [context.job_id, context.attempt, context.function, context.version,\n"
        "        context.remaining_s(), str(context)]"
    )
    with ShimHost(source) as host:
        host.ready()
        job, attempt, function, version, remaining_s, text = host.call(timeout_s=7).json()
        assert (job, attempt, function, version) == ("job-1", 1, "hello", "v1")
        assert 6 < remaining_s <= 7
        assert text == "<Context of hello@v1, job job-1, attempt 1>"


def test_init_sets_environment_folder_and_path() -> None:
    """env reaches the handler, the working directory is the code, and requirements can be imported after it."""
    source = (
        "import os, sys, time, inner.part, needed, both\n"
        "def handle(event, context):\n"
        "    return [os.environ['GREETING'], os.getcwd(), needed.NAME, both.NAME, sys.path[:2], time.tzname[0],\n"
        "            sys.stdin.read()]\n"
    )
    files = {
        "code/inner/part.py": "",
        "code/both.py": "NAME = 'code'",
        "deps/both.py": "NAME = 'deps'",
        "deps/needed.py": "NAME = 'deps'",
    }
    with ShimHost(source, files=files) as host:
        host.ready(env={"GREETING": "héllo", "TZ": "XYZ-3"}, deps=True)
        code, deps = str(host.root / "code"), str(host.root / "deps")
        assert host.call().json() == ["héllo", code, "deps", "code", [code, deps], "XYZ", ""]


def test_modules_of_a_function_may_have_the_names_of_the_shims_own() -> None:
    """User code cannot collide with ours."""
    files = {f"code/{name}.py": f"NAME = '{name}'" for name in ("worker", "logs", "wire", "loop", "report", "keeper")}
    names = sorted(path.removeprefix("code/").removesuffix(".py") for path in files)
    source = f"import {', '.join(names)}\ndef handle(e, c):\n    return [m.NAME for m in [{', '.join(names)}]]\n"
    with ShimHost(source, files=files) as host:
        assert host.ready().call().json() == names


def test_a_handler_may_live_in_a_package() -> None:
    """package.module.function works as a handler name."""
    with ShimHost(files={"code/pkg/__init__.py": "", "code/pkg/mod.py": ECHO}) as host:
        assert host.ready(handler="pkg.mod.handle").call("x").json() == "x"


def test_the_module_is_imported_once_and_the_second_call_is_faster() -> None:
    """A warm sandbox keeps what the first call made."""
    source = (
        "import time\n"
        "print('imported')\n"
        "cache = {}\n"
        "def handle(event, context):\n"
        "    if not cache:\n"
        "        time.sleep(0.05)\n"
        "        cache['n'] = 0\n"
        "    cache['n'] += 1\n"
        "    return cache['n']\n"
    )
    with ShimHost(source) as host:
        assert host.init().logs == b"imported\n"
        first, second = host.call(), host.call()
    assert (first.json(), second.json()) == (1, 2)
    assert first.logs == second.logs == b""
    assert second.meta["run_ms"] < 50 <= first.meta["run_ms"]


def test_an_exception_names_the_users_file_and_line() -> None:
    """The traceback starts in user code and shows nothing of the shim."""
    with ShimHost("import helper\ndef handle(event, context):\n    return helper.divide(1, event)\n") as host:
        host.write("code/helper.py", "def divide(a, b):\n    return a / b\n")
        answer = host.ready().call(0)
        lines = answer.meta["traceback"].splitlines()
        assert lines[:2] == [
            "Traceback (most recent call last):",
            f'  File "{host.root}/code/handler.py", line 3, in handle',
        ]
        assert f'  File "{host.root}/code/helper.py", line 2, in divide' in lines
        assert lines[-1] == "ZeroDivisionError: division by zero"
        assert "shim" not in answer.meta["traceback"]
        assert answer.frame.kind == framing.ERROR
        assert answer.meta["kind"] == "handler"
        assert (answer.meta["type"], answer.meta["message"]) == ("ZeroDivisionError", "division by zero")
        assert answer.meta["run_ms"] >= 0
        assert answer.meta.keys() == {"kind", "type", "message", "traceback", "run_ms"}
        assert host.call(2).json() == 0.5


SLY = "type('F', (float,), {'__float__': lambda s: 'x', '__ge__': None})(2)"


def having(name: str, value: str) -> str:
    return f"e = ValueError('no'); e.{name} = {value}; raise e"


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        (having("permanent", "True"), {"permanent": True}),
        (having("permanent", "0"), {}),
        (having("retry_after_s", "3"), {"retry_after_s": 3.0}),
        (having("retry_after_s", "0"), {"retry_after_s": 0.0}),
        (having("retry_after_s", "1e300"), {"retry_after_s": 1e300}),
        (having("retry_after_s", "float('nan')"), {}),
        (having("retry_after_s", "float('inf')"), {}),
        (having("retry_after_s", "float('-inf')"), {}),
        (having("retry_after_s", "10 ** 400"), {}),
        (having("retry_after_s", "-1"), {}),
        (having("retry_after_s", "True"), {}),
        (having("retry_after_s", "'5'"), {}),
        (having("retry_after_s", "[5]"), {}),
        (
            having("retry_after_s", SLY),
            {"retry_after_s": 2.0},
        ),
        ("from bananas_sdk import Permanent\nraise Permanent('no')", {"permanent": True}),
        ("from bananas_sdk import Retry\nraise Retry(after_s=5, message='no')", {"retry_after_s": 5.0}),
        ("from bananas_sdk import Retry\nraise Retry(message='no')", {}),
        (
            "from bananas_sdk import Retry\nclass Mine(Retry): pass\nraise Mine(2, 'no')",
            {"retry_after_s": 2.0},
        ),
    ],
)
def test_an_exception_may_say_what_a_retry_is_worth(body: str, extra: dict[str, Any]) -> None:
    """permanent and retry_after_s are attributes of any exception, the SDK's classes have them, nonsense is ignored."""
    with ShimHost(failing(body)) as host:
        meta = host.ready().call().meta
    assert {k: meta[k] for k in ("permanent", "retry_after_s") if k in meta} == extra
    assert meta["message"] == "no"
    assert meta["traceback"].rstrip().endswith("no")


def test_error_texts_are_bounded_and_always_sendable() -> None:
    """4 KiB of message and 16 KiB of traceback with the middle left out; half a surrogate pair breaks nothing."""
    with ShimHost(failing("raise ValueError('\\ud800 begin ' + 'x' * 10_000_000 + ' end')")) as host:
        meta = host.ready().call().meta
    assert meta["message"].startswith("\\ud800 begin xxx")
    assert meta["message"].endswith("xxx end")
    assert "characters left out" in meta["message"]
    assert len(meta["message"]) <= 4096 + 10
    assert len(meta["traceback"]) <= 16 * 1024 + 10


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("class E(Exception):\n    def __str__(self): raise KeyError\nraise E", "E", "__str__ raised KeyError"),
        (
            "class E(Exception):\n    @property\n    def permanent(self): raise OSError('x')\nraise E('why')",
            "E",
            "why (describing it failed: OSError)",
        ),
        (
            "class E(Exception):\n    @property\n    def retry_after_s(self): raise SystemExit\nraise E('why')",
            "E",
            "why (describing it failed: SystemExit)",
        ),
        ("class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E", "E", "__str__ raised Keyb"),
        (
            "class S(str):\n    def __len__(self): raise OSError\n"
            "class E(Exception):\n    def __str__(self): return S('sly')\nraise E",
            "E",
            "sly",
        ),
        ("class M(type):\n    __name__ = 5\nclass E(Exception, metaclass=M): pass\nraise E('why')", "E", "why"),
        ("class E(Exception):\n    __slots__ = ()\nraise E from E('cause')", "E", ""),
        ("def f(): f()\nf()", "RecursionError", "maximum recursion depth exceeded"),
        ("raise KeyboardInterrupt('stop')", "KeyboardInterrupt", "stop"),
        ("raise GeneratorExit", "GeneratorExit", ""),
        ("raise ExceptionGroup('two', [ValueError(1), KeyError(2)])", "ExceptionGroup", "two (2 sub-exceptions)"),
        ("import sys; sys.exit(3)", "SystemExit", "sys.exit(3) was called in the handler"),
        ("raise SystemExit", "SystemExit", "sys.exit(None) was called in the handler"),
    ],
)
def test_whatever_a_handler_raises_is_an_error_and_not_the_end(body: str, kind: str, message: str) -> None:
    """Also exceptions that are not Exceptions, and ones that cannot be printed; the sandbox serves on."""
    with ShimHost(failing("if event is None: return 'fine'\n" + body)) as host:
        answer = host.ready().call(1)
        assert answer.frame.kind == framing.ERROR
        assert answer.meta["type"] == kind
        assert message in answer.meta["message"]
        assert answer.meta.get("reusable", True)
        assert host.call().json() == "fine"


def test_running_out_of_memory_is_an_error_and_ends_the_reuse(evaluating: ShimHost) -> None:
    """A process that could not allocate may be in any state."""
    with ShimHost(failing("raise MemoryError")) as host:
        meta = host.ready().call().meta
    assert (meta["type"], meta["reusable"], meta["why_not"]) == ("MemoryError", False, "ran out of memory")


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("{1, 2}", "hello returned a set, which is not JSON; return dict, list, str, number, bool or None"),
        ("b'x'", "hello returned a bytes, which is not JSON; return"),
        ("{'a': [object()]}", "returned a dict, which is not JSON (Object of type object is not JSON serializable)"),
        ("math.nan", "returned a float, which is not JSON (Out of range float values are not JSON compliant"),
        ("[math.inf]", "returned a list, which is not JSON (Out of range"),
        ("{(1, 2): 3}", "returned a dict, which is not JSON (keys must be str"),
        ("(x := [], x.append(x))[0]", "returned a list, which is not JSON (Circular reference"),
        ("'\\ud800'", "returned a str, which is not JSON ('utf-8' codec can't encode"),
        ("(i for i in [])", "returned a generator, which is not JSON;"),
        ("type('D', (dict,), {'items': lambda s: 1 / 0})(a=1)", "returned a D, which is not JSON ("),
        ("OSError('x')", "returned an OSError, which is not JSON;"),
    ],
)
def test_a_result_that_is_not_json_is_an_error_that_says_so(evaluating: ShimHost, expression: str, why: str) -> None:
    """The message names the function, what it returned and what it may return."""
    answer = evaluating.call(expression)
    assert answer.frame.kind == framing.ERROR
    assert (answer.meta["kind"], answer.meta["type"]) == ("handler", "ResultNotJson")
    assert why in answer.meta["message"]
    assert "traceback" not in answer.meta
    assert answer.meta.get("reusable", True)


def test_a_result_over_the_limit_is_an_error_with_size_and_limit(evaluating: ShimHost) -> None:
    """The limit counts the bytes of the JSON text, and exactly at the limit is fine."""
    assert len(evaluating.call("'x' * 998").frame.body) == 1000
    answer = evaluating.call("'x' * 999")
    assert answer.meta["type"] == "ResultTooLarge"
    assert answer.meta["message"].startswith("hello returned 1001 bytes of JSON, the limit is 1000;")


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("import nonsuch_module\n", "ModuleNotFoundError", "No module named 'nonsuch_module'"),
        ("def handle(:\n", "SyntaxError", "invalid syntax (handler.py, line 1)"),
        ("x = 1\n", "AttributeError", "the handler is handler.handle, but module handler has no handle"),
        ("handle = 5\n", "TypeError", "the handler handler.handle is of type int, not a function"),
        ("1 / 0\n", "ZeroDivisionError", "division by zero"),
        ("import sys\nsys.exit('no')\n", "SystemExit", "sys.exit('no') was called while it was loaded"),
    ],
)
def test_code_that_cannot_be_loaded_is_an_init_error(source: str, kind: str, message: str) -> None:
    """The error names what is wrong with the user's code, and what it printed before is there."""
    with ShimHost("print('before')\n" + source if "def" not in source else source) as host:
        answer = host.init()
        assert answer.frame.kind == framing.ERROR
        assert answer.frame.call_id == 0
        assert (answer.meta["kind"], answer.meta["type"]) == ("init", kind)
        assert message in answer.meta["message"]
        assert answer.logs == (b"" if "def" in source else b"before\n")
        trace = answer.meta["traceback"]
        assert "shim" not in trace
        assert "importlib" not in trace
        if kind in ("ModuleNotFoundError", "ZeroDivisionError"):
            assert f'File "{host.root}/code/handler.py", line 2, in <module>' in trace


def test_a_missing_handler_module_is_an_init_error() -> None:
    """The handler names a file that is not there."""
    with ShimHost(ECHO) as host:
        answer = host.init(handler="other.handle")
    assert (answer.meta["type"], answer.meta["message"]) == ("ModuleNotFoundError", "No module named 'other'")


def test_a_runner_of_another_protocol_is_told() -> None:
    """Versions that do not match end in a clear error, not in garbage."""
    with ShimHost(ECHO) as host:
        answer = host.init(protocol=2)
    assert answer.frame.kind == framing.ERROR
    assert answer.meta["message"] == "the runner speaks protocol 2, the sandbox 1"


@pytest.mark.parametrize("first", ["good", "bad"])
def test_a_sandbox_is_bound_once(first: str) -> None:
    """A second init, also after a failed one, is refused and ends the sandbox."""
    with ShimHost(ECHO) as host:
        host.init(handler="handler.handle" if first == "good" else "nope.handle")
        answer = host.init()
        assert answer.frame.kind == framing.ERROR
        assert answer.meta["kind"] == "protocol"
        assert "a second init" in answer.meta["message"]
        last = host.answer()
        assert last.frame == framing.Frame(framing.EXIT, 0, {"status": 76, "signal": None}, b"")
        assert host.process is not None
        assert host.process.wait(5) == 76


@pytest.mark.parametrize(("kind", "what"), [(framing.INVOKE, "a call before init"), (framing.RESULT, "nonsense")])
def test_frames_out_of_turn_end_the_sandbox(kind: int, what: str) -> None:
    """No handler, no call; and a runner that sends results is no runner."""
    with ShimHost(ECHO) as host:
        host.send(kind, 9, {"job": "j", "attempt": 1, "timeout_ms": 1000}, b"1")
        answer = host.answer()
        assert (answer.frame.kind, answer.frame.call_id) == (framing.ERROR, 9)
        assert what in answer.meta["message"]
        assert host.answer().meta["status"] == 76


def test_a_child_that_returns_from_the_handler_does_not_answer() -> None:
    """os.fork() in a handler gives two processes; only the parent's answer counts."""
    source = failing("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nreturn 'child' if pid == 0 else 'parent'")
    with ShimHost(source) as host:
        host.ready()
        for _ in range(3):
            answer = host.call()
            assert answer.json() == "parent"
            assert answer.meta.get("reusable", True)


@pytest.mark.parametrize(
    ("body", "why_not"),
    [
        ("subprocess.Popen(['sleep', '60'])", "left child processes running"),
        ("subprocess.Popen(['true']).wait()\nsubprocess.Popen(['sleep', '60'])", "left child processes running"),
        # One has ended and was not waited for, one runs: the kernel shows the ended one first.
        (
            "done = subprocess.Popen(['true'])\nos.waitid(os.P_PID, done.pid, os.WEXITED | os.WNOWAIT)\n"
            "subprocess.Popen(['sleep', '60'])",
            "left child processes running",
        ),
        ("subprocess.run(['true'])", None),
        ("os.system('true')", None),
        # Ended but not waited for, for later: the status must still be there.
        ("keep.append(subprocess.Popen(['sh', '-c', 'exit 7']))\nkeep[0].stdin = os.waitid(os.P_ALL, 0, PEEK)", None),
        ("[os.posix_spawn('/bin/true', ['true'], {}) for _ in range(20)]\nwait_all(20)", "left 20 ended child"),
    ],
)
def test_only_processes_that_still_run_end_the_reuse(body: str, why_not: str | None) -> None:
    """They could reach into the next call. Ended ones cannot, unless they pile up."""
    source = (
        "import os, subprocess, time\n"
        "keep = []\n"
        "PEEK = os.WEXITED | os.WNOWAIT\n"
        "def wait_all(count):\n"
        "    pids = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "    assert len(pids) == count\n"
        "    for pid in pids: os.waitid(os.P_PID, int(pid), PEEK)\n"
    ) + failing("if event: return keep[0].wait()\n" + body)
    with ShimHost(source) as host:
        host.ready()
        meta = host.call().meta
        assert meta.get("reusable", True) is (why_not is None)
        assert meta.get("why_not", "").startswith(why_not or "")
        if "keep" in body:
            assert host.call(1).json() == 7


def test_children_left_by_a_failed_call_end_the_reuse_too() -> None:
    """An error is an answer like any other."""
    with ShimHost(failing("import subprocess\nsubprocess.Popen(['sleep', '60'])\nraise ValueError")) as host:
        meta = host.ready().call().meta
    assert (meta["type"], meta["reusable"], meta["why_not"]) == ("ValueError", False, "left child processes running")


def test_a_warm_call_takes_well_under_a_millisecond() -> None:
    """The protocol must not be what a call costs; the goal is 150 µs, the bound here leaves room for a busy machine."""
    with ShimHost(ECHO) as host:
        host.ready()
        best_s = math.inf
        for _ in range(300):
            began_s = time.perf_counter()
            host.call()
            best_s = min(best_s, time.perf_counter() - began_s)
    assert best_s < 0.001
