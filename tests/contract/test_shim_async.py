"""``async def`` handlers in the real shim: one loop that lives as long as the sandbox, nothing of a call after it."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.contract.shim_host import ShimHost


def test_an_async_handler_is_awaited() -> None:
    """Event in, result out, as with any other handler; also when it is a method, a partial or an object."""
    source = (
        "import asyncio, functools\n"
        "async def handle(event, context):\n"
        "    await asyncio.sleep(0.01)\n"
        "    return [event, context.job_id, context.remaining_s() > 1]\n"
        "partial = functools.partial(handle)\n"
        "class Handler:\n"
        "    async def __call__(self, event, context):\n"
        "        return await handle(event, context)\n"
        "    async def method(self, event, context):\n"
        "        return await handle(event, context)\n"
        "called = Handler()\n"
        "method = called.method\n"
    )
    for name in ("handle", "partial", "called", "method"):
        with ShimHost(source) as host:
            assert host.ready(handler=f"handler.{name}").call({"a": 1}).json() == [{"a": 1}, "job-1", True]


def test_what_one_call_opens_serves_the_next() -> None:
    """The loop outlives the call: a connection made in the first call is used by the others."""
    source = (
        "import asyncio, os\n"
        "stream = None\n"
        "async def handle(event, context):\n"
        "    global stream\n"
        "    if stream is None:\n"
        "        async def echo(reader, writer):\n"
        "            while line := await reader.readline():\n"
        "                writer.write(line)\n"
        "        def serve(loop):\n"
        "            asyncio.set_event_loop(loop)\n"
        "            loop.run_until_complete(asyncio.start_unix_server(echo, path))\n"
        "            ready.set()\n"
        "            loop.run_forever()\n"
        "        import tempfile, threading\n"
        "        path, ready = os.path.join(tempfile.mkdtemp(), 's'), threading.Event()\n"
        "        threading.Thread(target=serve, args=(asyncio.new_event_loop(),), daemon=True).start()\n"
        "        ready.wait(5)\n"
        "        stream = await asyncio.open_unix_connection(path)\n"
        "    stream[1].write(event.encode() + b'\\n')\n"
        "    return [(await stream[0].readline()).decode(), id(asyncio.get_running_loop())]\n"
    )
    with ShimHost(source) as host:
        host.ready()
        lines = [host.call(f"line {n}").json() for n in range(3)]
    assert [line for line, _ in lines] == ["line 0\n", "line 1\n", "line 2\n"]
    assert len({loop for _, loop in lines}) == 1


@pytest.mark.parametrize("is_async", [True, False])
def test_context_variables_are_those_of_one_call(is_async: bool) -> None:
    """What loading set is seen by each call; what a call sets is seen by its tasks and by no other call."""
    source = (
        "import contextvars\n"
        "who = contextvars.ContextVar('who')\n"
        "who.set('loading')\n"
        f"{'async ' * is_async}def handle(event, context):\n"
        "    before = who.get()\n"
        "    who.set(event)\n"
        f"    return [before, {'await asyncio.create_task(get())' if is_async else 'get()'}]\n"
        "import asyncio\n"
        f"{'async ' * is_async}def get():\n"
        "    return who.get()\n"
    )
    with ShimHost(source) as host:
        host.ready()
        assert host.call("first").json() == ["loading", "first"]
        assert host.call("second").json() == ["loading", "second"]


def test_a_traceback_shows_the_users_frames_only() -> None:
    """Neither the shim nor the loop that runs the handler is in it."""
    source = (
        "import asyncio\n"
        "async def inner():\n"
        "    await asyncio.sleep(0)\n"
        "    raise ValueError('no')\n"
        "async def handle(event, context):\n"
        "    await inner()\n"
    )
    with ShimHost(source) as host:
        code = host.root / "code" / "handler.py"
        meta = host.ready().call().meta
        assert (meta["kind"], meta["type"], meta["message"]) == ("handler", "ValueError", "no")
        assert meta["traceback"] == (
            "Traceback (most recent call last):\n"
            f'  File "{code}", line 6, in handle\n    await inner()\n'
            f"  File \"{code}\", line 4, in inner\n    raise ValueError('no')\n"
            "ValueError: no\n"
        )
        assert "reusable" not in meta


def test_a_task_group_tells_what_each_task_raised() -> None:
    """Exception groups come with their parts, without frames of the shim."""
    source = (
        "import asyncio\n"
        "async def bad(n):\n"
        "    raise ValueError(f'no {n}')\n"
        "async def handle(event, context):\n"
        "    async with asyncio.TaskGroup() as group:\n"
        "        group.create_task(bad(1))\n"
        "        group.create_task(bad(2))\n"
    )
    with ShimHost(source) as host:
        meta = host.ready().call().meta
        shim = str(host.root / "shim")
    assert meta["type"] == "ExceptionGroup"
    assert "ValueError: no 1" in meta["traceback"]
    assert "ValueError: no 2" in meta["traceback"]
    assert shim not in meta["traceback"]
    assert "_guarded" not in meta["traceback"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise StopIteration", "RuntimeError"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("asyncio.current_task().cancel(); await asyncio.sleep(1)", "CancelledError"),
        ("await asyncio.wait_for(asyncio.sleep(9), 0.01)", "TimeoutError"),
        ("await asyncio.create_task(leave())", "SystemExit"),
        ("return asyncio.sleep(0)", "ResultNotJson"),
    ],
)
def test_whatever_an_async_handler_raises_is_an_answer(body: str, kind: str) -> None:
    """No exception, of the handler or of a task that it awaits, ends the loop or the sandbox."""
    source = (
        "import asyncio, sys\n"
        "async def leave():\n"
        "    sys.exit(1)\n"
        "async def handle(event, context):\n"
        f"    if event:\n        return event\n    {body}\n"
    )
    with ShimHost(source) as host:
        answer = host.ready().call()
        assert (answer.meta["kind"], answer.meta["type"]) == ("handler", kind)
        assert host.call("next").json() == "next"


def test_a_loop_that_code_stops_goes_on() -> None:
    """loop.stop() in a handler does not lose its answer."""
    source = (
        "import asyncio\n"
        "async def handle(event, context):\n"
        "    asyncio.get_running_loop().stop()\n"
        "    await asyncio.sleep(0.01)\n"
        "    return 1\n"
    )
    with ShimHost(source) as host:
        host.ready()
        assert [host.call().json(), host.call().json()] == [1, 1]


def test_tasks_that_a_call_leaves_are_cancelled_before_its_answer() -> None:
    """They may clean up, the call's log names them, and the next call sees nothing of them."""
    source = (
        "import asyncio\n"
        "done = []\n"
        "async def tick(name):\n"
        "    try:\n"
        "        while True:\n"
        "            await asyncio.sleep(0.001)\n"
        "            done.append('tick')\n"
        "    finally:\n"
        "        await asyncio.create_task(goodbye(name))\n"
        "async def goodbye(name):\n"
        "    print('goodbye', name)\n"
        "async def handle(event, context):\n"
        "    if event == 'look':\n"
        "        return [len(asyncio.all_tasks()), len(done) == len(done[:])]\n"
        "    asyncio.create_task(tick('a'))\n"
        "    asyncio.create_task(tick('b'))\n"
        "    await asyncio.sleep(0.01)\n"
        "    if event == 'fail':\n"
        "        raise ValueError\n"
    )
    with ShimHost(source) as host:
        host.ready()
        for event in ("leave", "fail"):
            answer = host.call(event)
            assert b"goodbye a" in answer.logs
            assert b"goodbye b" in answer.logs
            assert b"bananas: the call ended and left 2 tasks running, now cancelled: tick, tick\n" in answer.logs
            assert "reusable" not in answer.meta
        look = host.call("look")
        assert look.json() == [1, True]
        assert look.logs == b""


def test_a_task_that_cannot_be_cancelled_ends_the_reuse() -> None:
    """The answer comes all the same, a second later; the sandbox serves no other call."""
    source = (
        "import asyncio\n"
        "async def stubborn():\n"
        "    while True:\n"
        "        try:\n"
        "            await asyncio.sleep(60)\n"
        "        except asyncio.CancelledError:\n"
        "            pass\n"
        "async def handle(event, context):\n"
        "    asyncio.create_task(stubborn())\n"
        "    await asyncio.sleep(0)\n"
        "    return 'ok'\n"
    )
    with ShimHost(source) as host:
        answer = host.ready().call()
    assert answer.json() == "ok"
    assert answer.meta["reusable"] is False
    assert answer.meta["why_not"] == "left tasks that did not end when they were cancelled: stubborn"


def test_code_may_cancel_all_other_tasks() -> None:
    """A usual way to clean up; no task of the shim is among them."""
    source = (
        "import asyncio\n"
        "async def handle(event, context):\n"
        "    task = asyncio.create_task(asyncio.sleep(60))\n"
        "    others = asyncio.all_tasks() - {asyncio.current_task()}\n"
        "    for other in others:\n"
        "        other.cancel()\n"
        "    await asyncio.wait(others)\n"
        "    return others == {task}\n"
    )
    with ShimHost(source) as host:
        host.ready()
        assert [host.call().json(), host.call().json()] == [True, True]


def test_a_task_with_variables_of_its_own_belongs_to_no_call() -> None:
    """The way out for clients with a background task: they start it in an empty context, and keep it."""
    source = (
        "import asyncio, contextvars\n"
        "count, task = 0, None\n"
        "async def tick():\n"
        "    global count\n"
        "    while True:\n"
        "        await asyncio.sleep(0.001)\n"
        "        count += 1\n"
        "async def handle(event, context):\n"
        "    global task\n"
        "    task = task or asyncio.create_task(tick(), context=contextvars.Context())\n"
        "    await asyncio.sleep(0.02)\n"
        "    return count\n"
    )
    with ShimHost(source) as host:
        host.ready()
        first, second = host.call(), host.call()
    assert 0 < first.json() < second.json()
    assert first.logs == b""
    assert "reusable" not in first.meta


def test_a_closed_loop_ends_the_reuse() -> None:
    """Code that closes the loop behind our back costs the next call its result, with the reason, and the sandbox."""
    source = (
        "import asyncio, threading, time\n"
        "def close(loop):\n"
        "    while loop.is_running():\n"
        "        time.sleep(0.001)\n"
        "    loop.close()\n"
        "async def handle(event, context):\n"
        "    threading.Thread(target=close, args=(asyncio.get_running_loop(),)).start()\n"
        "    return 1\n"
    )
    with ShimHost(source) as host:
        assert host.ready().call().json() == 1
        time.sleep(0.2)  # the thread needs a moment after the answer
        meta = host.call().meta
    assert (meta["type"], meta["reusable"], meta["why_not"]) == ("RuntimeError", False, "closed the event loop")


def test_a_child_that_returns_from_an_async_handler_does_not_answer() -> None:
    """One call, one answer, also when user code forks."""
    source = "import os\nasync def handle(event, context):\n    return 'child' if os.fork() == 0 else 'parent'\n"
    with ShimHost(source) as host:
        assert host.ready().call().json() == "parent"
        assert host.end().meta["ordered"] is True


def test_a_handler_that_is_not_async_loads_no_asyncio() -> None:
    """Whoever does not need it does not wait for it."""
    source = "import sys\ndef handle(event, context):\n    return 'asyncio' in sys.modules\n"
    with ShimHost(source) as host:
        assert host.ready().call().json() is False


def test_a_wrapper_that_returns_a_coroutine_is_told_what_to_write() -> None:
    """The usual mistake with decorators has an error that names the way out."""
    source = (
        "import functools\n"
        "def plain(f):\n"
        "    @functools.wraps(f)\n"
        "    def wrapper(event, context):\n"
        "        return f(event, context)\n"
        "    return wrapper\n"
        "@plain\n"
        "async def handle(event, context):\n"
        "    pass\n"
    )
    with ShimHost(source) as host:
        message = host.ready().call().meta["message"]
    assert message.endswith(
        "returned a coroutine, which is not JSON; write the handler itself with async def, and what wraps it too"
    )


def test_a_warm_async_call_takes_under_a_millisecond() -> None:
    """The loop adds little to a call."""
    with ShimHost("async def handle(event, context):\n    return event\n") as host:
        host.ready()
        times_s = []
        for _ in range(300):
            began_s = time.perf_counter()
            host.call()
            times_s.append(time.perf_counter() - began_s)
    assert statistics.median(times_s) < 0.001
