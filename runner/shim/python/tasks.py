"""Runs ``async def`` handlers: one event loop for the whole life of the sandbox. Imported only for such a handler.

The loop runs while a call runs and stands still between calls, so that a client session opened by one call serves the
next, and nothing happens that no call would see. Tasks that a call leaves behind are cancelled before its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from contextvars import Context as Variables
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from . import current

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .context import Context

#: How long tasks that were cancelled may take to clean up.
CANCEL_TIMEOUT_S = 1.0
_NAMES = 5
_KEEPS_CONTEXT = sys.version_info >= (3, 12)  # before that a task does not tell which variables it runs with


class Tasks:
    """The loop of one sandbox, and the handler that runs on it."""

    def __init__(self, handler: Callable[[Any, Context], Coroutine[Any, Any, Any]], check: Callable[[], None]) -> None:
        """``check`` is called on the loop whenever the handler has ended, in whichever process that is."""
        self._handler = handler
        self._check = check
        #: Why the sandbox must not serve another call.
        self.trouble = ""
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[Any], object] = weakref.WeakKeyDictionary()
        #: Of calls that run; nothing else holds them.
        self._endings: set[Ending] = set()
        #: What loading the code has set.
        self._variables = copy_context()
        self._is_ended = False
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        if not _KEEPS_CONTEXT:
            self._loop.set_task_factory(self._make_task)

    def run(self, event: Any, context: Context) -> Any:
        """One call: what the handler returns or raises, once nothing of the call runs any more."""
        if self._loop.is_closed():
            self.trouble = "closed the event loop"
            raise RuntimeError("the event loop of the sandbox was closed by an earlier call; leave it open")
        ended: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self.start(event, context, object(), lambda result, exc, _: ended.set_result((result, exc)))
        self._run_until(ended)
        result, exc = ended.result()
        if exc is not None:
            raise exc
        return result

    def serve(self) -> None:
        """Run the loop until ``end``, for calls that others ``start``."""
        while not self._is_ended:
            if self._loop.is_closed():
                raise RuntimeError("the event loop of the sandbox was closed")
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()

    def end(self) -> None:
        """From any thread: let ``serve`` return."""
        self._is_ended = True
        self.soon(self._loop.stop)

    def soon(self, what: Callable[[], object]) -> None:
        """From any thread: have it called on the loop."""
        self._loop.call_soon_threadsafe(what)

    def start(self, event: Any, context: Context, call: object, done: Callable[[Any, Any, str], object]) -> None:
        """Begin a call, on the loop's thread; ``done`` gets its result, its exception and ``trouble``.

        No task of ours stands behind it: code may cancel all tasks that there are.
        """
        variables = self._variables.copy()
        variables.run(current.call.set, call)
        task = self._loop.create_task(self._guarded(event, context), context=variables)
        ending = Ending(self, self._loop, call, variables, lambda: self._report(task, done))
        self._endings.add(ending)
        ending.over = self._endings.discard
        task.add_done_callback(ending.begin, context=Variables())

    def _report(self, task: asyncio.Task[Any], done: Callable[[Any, Any, str], object]) -> None:
        result, exc = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
        done(result, exc, self.trouble)

    async def _guarded(self, event: Any, context: Context) -> tuple[Any, BaseException | None]:
        """Results and exceptions alike as a value: what a task raises may end the loop instead of reaching us."""
        try:
            result = await self._handler(event, context)
        except BaseException as e:  # noqa: BLE001 - whatever the handler raises is its answer
            self._check()
            # Without our own frame: the traceback is the user's.
            return None, e.with_traceback(e.__traceback__.tb_next if e.__traceback__ else None)
        self._check()
        return result, None

    def _run_until(self, future: asyncio.Future[Any]) -> None:
        while not future.done():
            try:
                self._loop.run_until_complete(future)
            except (SystemExit, KeyboardInterrupt):
                pass  # of some other task, which keeps it for whoever awaits that one
            except RuntimeError:
                # Code stopped the loop, which is nothing that a call has to notice; a closed one is.
                if self._loop.is_closed():
                    self.trouble = "closed the event loop"
                    raise

    def rest(self, call: object) -> set[asyncio.Task[Any]]:
        """The tasks of a call that are not done."""
        return {task for task in asyncio.all_tasks(self._loop) if self._owner_of(task) is call}

    def _owner_of(self, task: asyncio.Task[Any]) -> object | None:
        if _KEEPS_CONTEXT:
            return task.get_context().get(current.call)  # type: ignore[attr-defined,no-any-return,unused-ignore]
        return self._owners.get(task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **how)
        variables: Variables | None = how.get("context")
        owner = current.call.get() if variables is None else variables.get(current.call)
        if owner is not None:
            self._owners[task] = owner
        return task


class Ending:
    """The end of one call: what it has left is cancelled, until nothing is left or the time for it is over."""

    def __init__(
        self,
        tasks: Tasks,
        loop: asyncio.AbstractEventLoop,
        call: object,
        variables: Variables,
        done: Callable[[], object],
    ) -> None:
        """``done`` is called once, on the loop."""
        self._tasks = tasks
        self._loop = loop
        self._call = call
        self._variables = variables
        self._done = done
        self._waiting: set[asyncio.Task[Any]] = set()
        self._told: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.over: Callable[[Ending], object] = lambda _: None

    def begin(self, _: object = None) -> None:
        """The handler has ended."""
        rest = self._tasks.rest(self._call)
        if not rest:
            self._finish()
            return
        if self._timer is None:
            self._timer = self._loop.call_later(CANCEL_TIMEOUT_S, self._give_up, context=Variables())
        self._told |= rest
        self._waiting = set(rest)
        for task in rest:
            task.add_done_callback(self._ended, context=Variables())
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task in self._waiting:
            self._waiting.discard(task)
            if not self._waiting:
                self.begin()  # again, for what is cancelled may have started other tasks to clean up

    def _give_up(self) -> None:
        self._waiting = set()
        names = _names(self._tasks.rest(self._call))
        self._tasks.trouble = f"left tasks that did not end when they were cancelled: {names}"
        self._finish()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            count = f"{len(self._told)} task" + "s" * (len(self._told) > 1)
            text = f"bananas: the call ended and left {count} running, now cancelled: {_names(self._told)}"
            self._variables.run(print, text, file=sys.stderr)
        self.over(self)
        self._done()


def _names(tasks: set[asyncio.Task[Any]]) -> str:
    names = sorted(getattr(task.get_coro(), "__qualname__", task.get_name()) for task in tasks)
    return ", ".join(names[:_NAMES]) + ", …" * (len(names) > _NAMES)
