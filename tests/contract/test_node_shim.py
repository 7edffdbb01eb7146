"""The Node shim keeps the protocol: calls, errors, output, progress and the end, as a process of this host."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from runner import framing
from tests.contract.node_host import NodeHost

ECHO = "exports.handle = async (event, context) => event;"


def handler(body: str) -> str:
    return f"exports.handle = async (event, context) => {{ {body} }};"


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "grüße 🍌", [], {"a": [1, {"b": None}]}, "x" * 300_000])
def test_a_json_value_comes_back_as_it_went_in(node: Path, value: Any) -> None:
    """Payload in, result out; larger ones than the kernel takes at once, too."""
    with NodeHost(node, ECHO) as host:
        assert host.ready().call(value).json() == value


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("handler.js", "exports.handle = async (e) => e + 1"),
        ("handler.js", "exports.handle = (e) => e + 1"),
        ("handler.js", "module.exports = {handle: async (e) => e + 1}"),
        ("handler.js", "const o = {}; o['han' + 'dle'] = (e) => e + 1; module.exports = o"),
        ("handler.js", "export async function handle(e) { return e + 1 }"),
        ("handler.mjs", "const one = await Promise.resolve(1); export const handle = (e) => e + one"),
        ("handler.mjs", "export default {handle: (e) => e + 1}"),
        ("handler.cjs", "exports.handle = async (e) => e + 1"),
    ],
)
def test_a_handler_is_an_export_of_either_module_system(node: Path, name: str, source: str) -> None:
    """Async or not, by name or in the default export."""
    with NodeHost(node, files={f"code/{name}": source}) as host:
        assert host.ready().call(1).json() == 2


def test_a_handler_may_live_in_a_folder_and_use_packages(node: Path) -> None:
    """node_modules in the folder, and those that a deploy installed, one folder above."""
    files = {
        "code/src/main.mjs": """
            import own from "own"
            import { createRequire } from "node:module"
            const installed = createRequire(import.meta.url)("installed")
            export const run = () => [own, installed, process.cwd()]
            """,
        "code/node_modules/own/index.js": "module.exports = 'own'",
        "node_modules/installed/index.js": "module.exports = 'installed'",
    }
    with NodeHost(node, files=files) as host:
        found = host.ready(handler="src.main.run").call().json()
        assert found == ["own", "installed", os.path.realpath(host.root / "code")]


def test_ready_says_which_node_it_is(node: Path) -> None:
    """For those who look at the log of a runner."""
    with NodeHost(node, ECHO) as host:
        answer = host.init()
        assert answer.meta["node"].startswith("22.")
        assert 0 < answer.meta["init_ms"] < 10_000


def test_the_context_describes_the_call(node: Path) -> None:
    """Job, attempt, function, version and what time is left; the environment is the function's."""
    body = """
        const { jobId, attempt, version } = context;
        return [jobId, attempt, context.function, version, context.remainingMs(), process.env.GREETING];
        """
    with NodeHost(node, handler(body)) as host:
        *facts, left_ms, greeting = host.ready(env={"GREETING": "hi"}).call(timeout_s=5).json()
        assert facts == ["job-1", 1, "hello", "v1"]
        assert 0 < left_ms <= 5000
        assert greeting == "hi"


def test_an_error_names_the_users_file_and_line_and_nothing_of_the_shim(node: Path) -> None:
    """Type, message, traceback with causes; the sandbox goes on."""
    source = """\
        class Broken extends Error {}
        exports.handle = async (event) => {
          try { null.x } catch (cause) { throw new Broken('no', { cause }) }
        };
        """
    with NodeHost(node, files={"code/handler.js": source}) as host:
        host.ready()
        for _ in range(2):
            meta = host.call().meta
            assert (meta["kind"], meta["type"], meta["message"]) == ("handler", "Broken", "no")
            assert "handler.js:3:" in meta["traceback"]
            assert "Caused by: TypeError" in meta["traceback"]
            assert "worker.cjs" not in meta["traceback"]
            assert "node:" not in meta["traceback"]
            assert "reusable" not in meta


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("throw Object.assign(new Error('x'), {permanent: true})", {"permanent": True}),
        ("throw Object.assign(new Error('x'), {retry_after_s: 2.5})", {"retry_after_s": 2.5}),
        ("throw Object.assign(new Error('x'), {retryAfterS: 3})", {"retry_after_s": 3}),
        ("throw Object.assign(new Error('x'), {retry_after_s: NaN, permanent: false})", {}),
        ("throw Object.assign(new Error('x'), {retry_after_s: -1})", {}),
    ],
)
def test_an_error_may_say_what_a_retry_is_worth(node: Path, body: str, extra: dict[str, Any]) -> None:
    """Properties of whatever error the user likes."""
    with NodeHost(node, handler(body)) as host:
        meta = host.ready().call().meta
        assert {key: meta[key] for key in ("permanent", "retry_after_s") if key in meta} == extra


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("throw 'text'", "NotAnError", '"text" was thrown in the handler'),
        ("throw undefined", "NotAnError", "undefined"),
        ("throw null", "NotAnError", "null"),
        ("throw {}", "Object", "without a message"),
        ("throw Object.create(null)", "Error", "without a message"),
        ("throw { get message() { throw new Error('ha') } }", "Object", "describing the error failed: Error"),
        ("throw new Proxy({}, { get() { throw 1 } })", "Error", "describing the error failed: number"),
        ("throw new Error('\\ud800 ' + 'x'.repeat(9999))", "Error", "characters left out"),
        ("const e = new Error('x'); e.stack = 5; e.name = {}; throw e", "Error", "x"),
        ("await Promise.reject(new RangeError('far'))", "RangeError", "far"),
        ("(function f() { f() })()", "RangeError", "call stack"),
        ("return 1n", "ResultNotJson", "BigInt"),
        ("return { a: [NaN] }", "ResultNotJson", "NaN is not JSON"),
        ("const a = {}; a.a = a; return a", "ResultNotJson", "circular"),
        ("return () => 1", "ResultNotJson", "function"),
        ("return { toJSON() { throw new Error('mine') } }", "ResultNotJson", "mine"),
        ("return 'x'.repeat(1024 * 1024)", "ResultTooLarge", "the limit is 1048576"),
    ],
)
def test_whatever_goes_wrong_in_a_handler_is_an_error_and_not_the_end(
    node: Path, body: str, kind: str, words: str
) -> None:
    """The next call works."""
    source = handler(f"if (event) {{ {body} }} return 'fine'")
    with NodeHost(node, source) as host:
        meta = host.ready().call(1).meta
        assert meta["type"] == kind
        assert words in meta["message"]
        assert len(meta["message"]) <= 4096
        assert host.call(0).json() == "fine"


@pytest.mark.parametrize("body", ["setTimeout(() => { throw new Error('late') })", "Promise.reject(new Error('late'))"])
def test_what_nobody_catches_is_the_error_of_the_call_and_ends_the_reuse(node: Path, body: str) -> None:
    """Better than a crash without a word; but who knows in which state it left the module."""
    with NodeHost(node, handler(f"{body}; await new Promise(() => {{}})")) as host:
        meta = host.ready().call().meta
        assert (meta["type"], meta["message"], meta["reusable"]) == ("Error", "late", False)
        assert "uncaught" in meta["why_not"]


def test_what_nobody_catches_between_calls_ends_the_sandbox(node: Path) -> None:
    """As Node does; the next call gets another sandbox."""
    with NodeHost(node, handler("setTimeout(() => { throw new Error('too late') }, 50); return 1")) as host:
        assert host.ready().call().json() == 1
        answer = host.answer()
        assert (answer.frame.kind, answer.meta["status"]) == (framing.EXIT, 1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("exports.handle = (", "Unexpected"),
        ("throw new TypeError('at once')", "at once"),
        ("exports.other = 1", "exports no handle"),
        ("exports.handle = 5", "of type number, not a function"),
        ("require('left-pad')", "left-pad"),
        ("setTimeout(() => { throw new Error('soon') }); export const h = await new Promise(() => {})", "soon"),
    ],
)
def test_code_that_cannot_be_loaded_is_an_init_error(node: Path, source: str, words: str) -> None:
    """With the error's own words, and where."""
    with NodeHost(node, source) as host:
        answer = host.init()
        assert (answer.frame.kind, answer.frame.call_id, answer.meta["kind"]) == (framing.ERROR, 0, "init")
        assert words in answer.meta["message"]


def test_a_missing_handler_module_names_what_is_there(node: Path) -> None:
    """The usual slip: another file name."""
    with NodeHost(node, files={"code/index.js": ECHO}) as host:
        message = host.init().meta["message"]
        assert "none of handler.js, handler.mjs, handler.cjs; it has index.js" in message


# -- output and progress ----------------------------------------------------------------------------------------------


def test_output_of_every_kind_is_captured_in_order(node: Path) -> None:
    """console, the streams, the descriptors and child processes, all before the answer."""
    body = """
        console.log('one'); console.error('two'); process.stdout.write('three\\n'); process.stderr.write('four\\n');
        require('fs').writeSync(1, 'five\\n');
        require('child_process').execFileSync('/bin/sh', ['-c', 'echo six; echo seven >&2'], {stdio: 'inherit'});
        console.log('eight');
        """
    with NodeHost(node, handler(body)) as host:
        answer = host.ready().call()
        assert answer.logs.split() == [b"one", b"two", b"three", b"four", b"five", b"six", b"seven", b"eight"]


def test_logs_of_one_call_are_never_in_another(node: Path) -> None:
    """What is written between calls belongs to none."""
    body = "console.log('call', event); setTimeout(() => console.log('between'), 300); return event"
    with NodeHost(node, "console.log('load');" + handler(body)) as host:
        loading = host.init()
        assert loading.logs == b"load\n"
        for n in range(3):
            assert host.call(n).logs == b"call %d\n" % n
            time.sleep(0.6)  # longer than the timer, so that it writes between the calls


def test_logs_over_the_cap_are_cut_and_counted(node: Path) -> None:
    """The beginning is kept, the rest counted, for each call anew; and flooding does not take long."""
    with NodeHost(node, handler("for (let i = 0; i < event; i++) console.log('x'.repeat(999)); return 1")) as host:
        host.ready(log_bytes=10_000)
        for _ in range(2):
            began = time.monotonic()
            answer = host.call(20_000)
            assert time.monotonic() - began < 30
            assert len(answer.logs) == 10_000
            assert answer.cut == {"truncated": True, "dropped_bytes": 20_000 * 1000 - 10_000}
        assert host.call(1).cut is None


def test_logs_and_progress_arrive_while_the_call_runs(node: Path) -> None:
    """Also from code that never lets the event loop run."""
    body = "console.log('now'); context.progress({done: 1}); for (;;) ;"
    with NodeHost(node, handler(body)) as host:
        call_id = host.ready().start_call()
        frames = [host.reader.read(5.0), host.reader.read(5.0)]
        assert {(frame.kind, frame.call_id, bytes(frame.body)) for frame in frames} == {
            (framing.LOG, call_id, b"now\n"),
            (framing.PROGRESS, call_id, b'{"done":1}'),
        }


def test_progress_is_sent_five_times_a_second_and_the_last_value_always(node: Path) -> None:
    """However often a handler tells, and at once for the first value."""
    body = """
        const until = performance.now() + 1000;
        let n = 0;
        while (performance.now() < until) { context.progress(++n); }
        return n;
        """
    with NodeHost(node, handler(body)) as host:
        answer = host.ready().call()
        values = [value for _, value in answer.told]
        assert 3 <= len(values) <= 8
        assert values == sorted(values)
        assert values[-1] == answer.json()


def test_progress_is_refused_with_size_and_limit_and_is_nothing_after_the_call(node: Path) -> None:
    """The handler's error; nothing is sent of it, or of what a call that is over still tells."""
    source = """
        let last;
        exports.handle = async (event, context) => {
          if (event === 'long') context.progress('x'.repeat(5000));
          if (event === 'no') context.progress(() => 1);
          if (last) last.progress('of another call');
          last = context;
        };
        """
    with NodeHost(node, source) as host:
        host.ready()
        assert "at most 4096 bytes of JSON, got 5002" in host.call("long").meta["message"]
        assert host.call("no").meta["type"] == "TypeError"
        assert [host.call().told, host.call().told] == [[], []]


# -- the end ----------------------------------------------------------------------------------------------------------

BUSY = "console.log('busy'); for (;;) ;"
IN_C = "console.log('busy'); require('crypto').pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512')"
DEAF = "process.on('SIGTERM', () => {}); console.log('busy'); await new Promise(() => {})"


@pytest.mark.parametrize("body", [BUSY, IN_C, DEAF])
def test_the_order_to_end_kills_a_busy_worker_at_once(node: Path, body: str) -> None:
    """Code that holds the event loop, or that holds the thread in C, or that ignores signals."""
    with NodeHost(node, handler(body)) as host:
        host.ready().start_call()
        assert bytes(host.reader.read(5.0).body) == b"busy\n"
        began = time.monotonic()
        answer = host.end()
        assert time.monotonic() - began < 20  # without the order it goes on for a minute or for ever
        assert answer.meta == {"status": None, "signal": 9, "ordered": True}


@pytest.mark.parametrize("body", [BUSY, IN_C])
def test_a_runner_that_disappears_takes_the_worker_along(node: Path, body: str) -> None:
    """Nothing runs on without a runner."""
    with NodeHost(node, handler(body)) as host:
        host.ready().start_call()
        host.reader.read(5.0)
        assert host.channel is not None
        assert host.process is not None
        host.channel.close()
        assert host.process.wait(5) == 128 + 9


def test_an_unbound_stem_can_be_ended(node: Path) -> None:
    """A stem that nobody needs."""
    with NodeHost(node, ECHO) as host:
        assert host.end().meta["ordered"] is True


def test_leaving_in_the_middle_of_a_call_is_reported_with_status_and_output(node: Path) -> None:
    """process.exit() ends the process, and what was printed and told is there."""
    with NodeHost(node, handler("console.log('x'.repeat(100000)); context.progress(1); process.exit(3)")) as host:
        answer = host.ready().call()
        assert (answer.frame.kind, answer.meta["status"], answer.meta["signal"]) == (framing.EXIT, 3, None)
        assert len(answer.logs) == 100_001
        assert [value for _, value in answer.told] == [1]
        assert host.process is not None
        assert host.process.wait(5) == 3


def test_a_crash_is_reported_with_its_signal(node: Path) -> None:
    """process.abort() stands for what goes wrong in C."""
    with NodeHost(node, handler("console.log('then'); process.abort()")) as host:
        answer = host.ready().call()
        assert (answer.frame.kind, answer.meta["signal"]) == (framing.EXIT, 6)
        assert answer.logs.startswith(b"then\n")
        assert "oom" not in answer.meta


@pytest.mark.parametrize(
    "forged",
    [
        b"\xff\xff\xff\xff nonsense, and enough of it to be a head",
        framing.encode(framing.RESULT, 999, {}, b"1"),
        framing.encode(framing.EXIT, 0, {"status": 0, "signal": None}, b""),
        framing.encode(framing.LOG, 1, {}, b"forged"),
        framing.encode(framing.INIT, 0, {}, b""),
    ],
)
def test_forged_frames_end_the_sandbox_and_never_reach_the_runner(node: Path, forged: bytes) -> None:
    """User code can write to the worker's channel; the keeper passes on what can come now, and nothing else."""
    body = "require('fs').writeSync(4, Buffer.from(event, 'base64')); await new Promise(() => {})"
    with NodeHost(node, handler(body)) as host:
        answer = host.ready().call(base64.b64encode(forged).decode())
        assert (answer.frame.kind, answer.meta["kind"], answer.meta["reusable"]) == (framing.ERROR, "protocol", False)
        assert answer.logs == b""
        assert host.answer().frame.kind == framing.EXIT


def test_a_sandbox_is_bound_once(node: Path) -> None:
    """A second init is answered with an error, and the end."""
    with NodeHost(node, ECHO) as host:
        answer = host.ready().init()
        assert (answer.frame.kind, answer.meta["kind"]) == (framing.ERROR, "protocol")
        assert host.answer().frame.kind == framing.EXIT


def test_a_call_before_init_ends_the_sandbox(node: Path) -> None:
    """Nothing runs in a sandbox that belongs to no function."""
    with NodeHost(node, ECHO) as host:
        host.start_call()
        answer = host.answer()
        assert (answer.frame.kind, answer.meta["kind"]) == (framing.ERROR, "protocol")


@pytest.mark.parametrize(
    ("body", "why_not"),
    [
        ("require('child_process').spawn('sleep', ['60'], {stdio: 'ignore'})", "left child processes running"),
        ("require('child_process').execFileSync('true')", None),
        ("setInterval(() => {}, 1000)", None),
    ],
)
def test_only_processes_that_still_run_end_the_reuse(node: Path, body: str, why_not: str | None) -> None:
    """They could reach into the next call; and they die with the sandbox."""
    with NodeHost(node, handler(f"{body}; return 1")) as host:
        meta = host.ready().call().meta
        assert (meta.get("reusable", True), meta.get("why_not")) == (why_not is None, why_not)


def test_programs_started_by_user_code_do_not_get_our_descriptors(node: Path) -> None:
    """Neither the channel to the keeper nor anything else but the standard streams."""
    body = "return require('child_process').execFileSync('/bin/ls', ['/proc/self/fd']).toString().split('\\n')"
    with NodeHost(node, handler(body)) as host:
        assert set(host.ready().call().json()) <= {"0", "1", "2", "3", ""}  # 3 is the folder that ls reads


def test_a_runner_of_another_protocol_is_told(node: Path) -> None:
    """Instead of a riddle later on."""
    with NodeHost(node, ECHO) as host:
        assert "protocol 2" in host.init(protocol=2).meta["message"]
    with NodeHost(node, ECHO) as host:
        pass
    host = NodeHost(node, ECHO)
    host.write("boot.json", json.dumps({"protocol": 7, "egress": []}))
    with host:
        assert host.answer().meta["status"] == 78
