"""Runs ``async def`` handlers: one event loop for the whole life of the sandbox. Imported only for such a handler.

The loop runs while a call runs and stands still between calls, so that a client session opened by one call serves the
next, and nothing happens that no call would see. Tasks that a call leaves behind are cancelled before its answer.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from contextvars import Context as Variables
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .context import Context

#: How long tasks that were cancelled may take to clean up.
CANCEL_TIMEOUT_S = 1.0
_NAMES = 5
_KEEPS_CONTEXT = sys.version_info >= (3, 12)  # before that a task does not tell which variables it runs with

#: The call that code runs for: inherited by its tasks and threads, unless they are given other variables.
_owner: ContextVar[object | None] = ContextVar("bananas_call", default=None)


class Tasks:
    """The loop of one sandbox, and the handler that runs on it."""

    def __init__(self, handler: Callable[[Any, Context], Coroutine[Any, Any, Any]], check: Callable[[], None]) -> None:
        """``check`` is called on the loop whenever the handler has ended, in whichever process that is."""
        self._handler = handler
        self._check = check
        #: Why the sandbox must not serve another call.
        self.trouble = ""
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[Any], object] = weakref.WeakKeyDictionary()
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        if not _KEEPS_CONTEXT:
            self._loop.set_task_factory(self._make_task)

    def run(self, event: Any, context: Context) -> Any:
        """One call: what the handler returns or raises, once nothing of the call runs any more."""
        if self._loop.is_closed():
            self.trouble = "closed the event loop"
            raise RuntimeError("the event loop of the sandbox was closed by an earlier call; leave it open")
        call = object()
        variables = copy_context()
        variables.run(_owner.set, call)
        task = self._loop.create_task(self._guarded(event, context), context=variables)
        try:
            self._run_until(task)
            result, exc = task.result()
        finally:
            self._cancel_rest(call)
        if exc is not None:
            raise exc
        return result

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

    def _cancel_rest(self, call: object) -> None:
        if self._loop.is_closed():
            return
        deadline_s = self._loop.time() + CANCEL_TIMEOUT_S
        told: set[asyncio.Task[Any]] = set()
        # Again and again, for what is cancelled may start other tasks to clean up.
        while rest := self._rest(call):
            told |= rest
            for task in rest:
                task.cancel()
            left_s = deadline_s - self._loop.time()
            self._run_until(self._loop.create_task(asyncio.wait(rest, timeout=max(0.0, left_s)), context=Variables()))
            if left_s <= 0:
                self.trouble = f"left tasks that did not end when they were cancelled: {_names(self._rest(call))}"
                break
        if told:
            count = f"{len(told)} task" + "s" * (len(told) > 1)
            print(f"bananas: the call ended and left {count} running, now cancelled: {_names(told)}", file=sys.stderr)

    def _rest(self, call: object) -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks(self._loop) if self._owner_of(task) is call}

    def _owner_of(self, task: asyncio.Task[Any]) -> object | None:
        if _KEEPS_CONTEXT:
            return task.get_context().get(_owner)  # type: ignore[attr-defined,no-any-return,unused-ignore]
        return self._owners.get(task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **how)
        variables: Variables | None = how.get("context")
        owner = _owner.get() if variables is None else variables.get(_owner)
        if owner is not None:
            self._owners[task] = owner
        return task


def _names(tasks: set[asyncio.Task[Any]]) -> str:
    names = sorted(getattr(task.get_coro(), "__qualname__", task.get_name()) for task in tasks)
    return ", ".join(names[:_NAMES]) + ", …" * (len(names) > _NAMES)
