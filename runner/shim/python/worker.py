"""The worker: the process that loads and runs user code. Forked by ``guard.py`` before there is any.

It answers one ``init`` and then one ``invoke`` after the other. Whatever user code raises is an answer; what it does to
the process (``os._exit``, a crash, closing our descriptors) ends the worker, and the keeper reports that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from _contextvars import copy_context  # what contextvars holds, without one more module to load
from typing import TYPE_CHECKING, Any, NoReturn

from . import logs, wire
from .children import Children
from .context import Context
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from .concurrent import Concurrent
    from .tasks import Tasks

#: Exit statuses (after sysexits.h): a bug of the shim, the runner broke the protocol.
STATUS_SOFTWARE, STATUS_PROTOCOL = 70, 76
_KEEPER_TIMEOUT_MS = 2000
#: Our descriptors move up to here, out of the way of ``os.closerange(3, 256)`` and other habits of daemons.
_HIGH_FD = 1000
#: In a sandbox that runs out of memory the kernel shall end user code, not the keeper that reports it.
_OOM_SCORE = b"500"
_JSON_TYPES = "return dict, list, str, number, bool or None"
_AWAIT = "write the handler itself with async def, and what wraps it too"
SECRETS = "/run/secrets"
_ASYNC = 0x80  # inspect.CO_COROUTINE, without importing inspect

_encode_result = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode


class Refused(Exception):
    """The handler's answer cannot be sent; ``kind`` is the error's type for the client."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def run(root: str, sock: socket.socket, log_pipe: tuple[int, int], state: memoryview, children: Children) -> NoReturn:
    """Become the worker: never returns. ``log_pipe`` is the read and the write end."""
    status = STATUS_SOFTWARE
    try:
        link = wire.Link(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, _move_up(sock.detach())), state)
        output = logs.Logs(_move_up(log_pipe[0]), link, state)
        _settle_in(log_pipe[1])
        os.register_at_fork(after_in_child=link.close)
        output.start()
        Worker(root, link, output, children).serve()
        # The runner is done with us, so the keeper kills us now. If there is none any more, we end by ourselves.
        select.poll().poll(_KEEPER_TIMEOUT_MS)
        status = 0
    except wire.ProtocolBreach as e:
        status = STATUS_PROTOCOL
        print(f"bananas: the runner broke the protocol: {e}", file=sys.stderr)
    except OSError as e:
        status = logs.STATUS_IO
        print(f"bananas: the sandbox lost its connection: {e}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 - the top of the process: print it and end
        sys.excepthook(*sys.exc_info())
    finally:
        logs.flush()
        os._exit(status)


def _move_up(fd: int) -> int:
    """The same file under a high number that programs started from here do not inherit."""
    import fcntl

    limit = os.sysconf("SC_OPEN_MAX")
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(_HIGH_FD, limit - 16) if limit > 64 else 3)
    os.close(fd)
    return high


def _settle_in(log_fd: int) -> None:
    """Own process group, standard streams on the log pipe, no input, first in line for the kernel's OOM killer."""
    import faulthandler

    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    if null > 2:
        os.close(null)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115 - stays open
    sys.stdout = sys.__stdout__ = _stream(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2)  # type: ignore[misc]
    sys.argv = [""]
    faulthandler.enable(file=2, all_threads=False)
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(_OOM_SCORE)
    except OSError:
        pass  # no such file in this kind of sandbox: the engine's own OOM report has to do


def _stream(fd: int) -> Any:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


class Worker:
    """State of one sandbox: unbound, then bound to one function for the rest of its life."""

    def __init__(self, root: str, link: wire.Link, output: logs.Logs, children: Children) -> None:
        self._root = root
        self._link = link
        self._logs = output
        self._children = children
        self._progress = Progress(link, output.lock)
        self._pid = os.getpid()
        self._was_init = False
        self._handler: Callable[[Any, Context], Any] | None = None
        #: What runs the handler if that is async.
        self._tasks: Tasks | None = None
        #: What runs calls if they may overlap.
        self._several: Concurrent | None = None
        self._function = ""
        self._version = ""
        self._result_bytes = 0
        # Where the SDK looks, whichever copy of it the function imports.
        sys.modules[__package__].tell_progress = self._progress.tell  # type: ignore[attr-defined]

    def serve(self) -> None:
        """Answer frames until the runner sends no more."""
        while (frame := self._link.read()) is not None:
            kind, call_id, meta, body = frame
            if kind == wire.INVOKE and self._handler is not None:
                self._invoke(call_id, meta, body)
            elif kind == wire.INIT and not self._was_init:
                self._was_init = True
                self._init(meta, body)
                if self._several is not None and self._handler is not None:
                    self._several.serve(self._handler, self._tasks)
                    return
            else:
                self.refuse(kind, call_id)

    def refuse(self, kind: int, call_id: int) -> NoReturn:
        """A sandbox is bound once. Anything out of turn ends it, so that no call ever runs in the wrong function."""
        early = "a call before init" if self._handler is None else "more calls at once than init said"
        what = "a second init" if kind == wire.INIT else early if kind == wire.INVOKE else "nonsense"
        message = f"the sandbox got {what} (frame kind {kind}) and ends"
        meta = wire.encode_meta({"kind": "protocol", "type": "ProtocolError", "message": message, "reusable": False})
        with self._logs.lock:
            self._link.send(wire.ERROR, call_id, meta, b"")
        raise wire.ProtocolBreach(message)

    def _init(self, meta: dict[str, Any], secrets: bytes) -> None:
        began_s = time.perf_counter()
        self._logs.begin(0, int(meta["log_bytes"]))
        try:
            if meta["protocol"] != wire.PROTOCOL:
                raise RuntimeError(f"the runner speaks protocol {meta['protocol']}, the sandbox {wire.PROTOCOL}")
            self._function, self._version = meta["function"], meta["version"]
            self._result_bytes = int(meta["result_bytes"])
            self._prepare(meta)
            if (calls := int(meta.get("calls", 1))) > 1:
                from . import concurrent

                self._several = concurrent.Concurrent(self, self._link, self._logs, calls, int(meta["log_bytes"]))
            _keep_secrets(secrets)
            self._handler = self._runnable(_load(meta["handler"]))
        except BaseException as e:  # noqa: BLE001 - loading runs user code, which may raise anything
            error = {"kind": "init", **_describe(e, "while it was loaded")}
            self._answer(wire.ERROR, 0, wire.encode_meta(error), b"")
        else:
            ready = {"python": sys.version.split()[0], "init_ms": _since_ms(began_s)}
            self._answer(wire.READY, 0, wire.encode_meta(ready), b"")

    def _runnable(self, handler: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
        """What to call for each call. asyncio takes longer to load than all of the shim, so only who needs it does."""
        if not _is_async(handler):
            if self._several is not None:
                return handler
            # Context variables are set for one call only.
            return lambda event, context: copy_context().run(handler, event, context)
        from . import tasks

        self._tasks = tasks.Tasks(handler, self.end_if_forked)
        return self._tasks.run

    def _prepare(self, meta: dict[str, Any]) -> None:
        os.environ.update(meta["env"])
        if "TZ" in meta["env"]:
            time.tzset()
        code = os.path.join(self._root, "code")
        sys.path[:0] = [code, os.path.join(self._root, "deps")] if meta["deps"] else [code]
        sys.path.append(os.path.join(self._root, "sdk"))
        os.chdir(code)

    def _invoke(self, call_id: int, meta: dict[str, Any], payload: bytes) -> None:
        assert self._handler is not None
        began_s = time.perf_counter()
        self._logs.begin(call_id)
        self._progress.begin(call_id)
        try:
            result = self._handler(wire.decode_json(payload.decode()), self.context(meta))
            self.end_if_forked()
            body = self._encode(result)
        except BaseException as e:  # noqa: BLE001 - whatever the handler raises is its answer
            self.end_if_forked()
            self._fail(call_id, e, began_s)
            return
        trouble = self.left_over()
        if trouble:
            answer = wire.encode_meta({"run_ms": _since_ms(began_s), "reusable": False, "why_not": trouble})
        else:
            answer = b'{"run_ms":%.3f}' % _since_ms(began_s)
        self._answer(wire.RESULT, call_id, answer, body)

    def context(self, meta: dict[str, Any]) -> Context:
        """The second argument of the handler, for an ``invoke`` frame."""
        timeout_s = meta["timeout_ms"] / 1000
        trace = meta.get("traceparent")
        return Context(self._function, self._version, meta["job"], meta["attempt"], timeout_s, trace)

    def outcome(
        self, result: Any, exc: BaseException | None, began_s: float
    ) -> tuple[int, dict[str, Any], bytes | memoryview]:
        """Kind, meta and body of the answer to a call of several."""
        if exc is None:
            try:
                body = self._encode(result)
                return wire.RESULT, {"run_ms": _since_ms(began_s)}, body
            except BaseException as e:  # noqa: BLE001 - encoding runs user code
                exc = e
        return wire.ERROR, {"kind": "handler", **_describe(exc, "in the handler"), "run_ms": _since_ms(began_s)}, b""

    def _fail(self, call_id: int, exc: BaseException, began_s: float) -> None:
        error = {"kind": "handler", **_describe(exc, "in the handler"), "run_ms": _since_ms(began_s)}
        trouble = "ran out of memory" if isinstance(exc, MemoryError) else self.left_over()
        if trouble:
            error |= {"reusable": False, "why_not": trouble}
        self._answer(wire.ERROR, call_id, wire.encode_meta(error), b"")

    def left_over(self) -> str:
        """Why the sandbox must not serve another call; empty when it may."""
        return (self._tasks.trouble if self._tasks is not None else "") or self._children.trouble()

    def _answer(self, kind: int, call_id: int, meta: bytes, body: bytes) -> None:
        logs.flush()
        with self._logs.lock:
            self._progress.finish()
            self._logs.finish()
            self._link.send(kind, call_id, meta, body)

    def end_if_forked(self) -> None:
        """A child that user code forked and that came back from the handler must not answer for its parent."""
        if os.getpid() != self._pid:
            logs.flush()
            os._exit(0)

    def _encode(self, result: Any) -> bytes:
        """JSON text of the handler's result; raises Refused."""
        try:
            body = _encode_result(result).encode()
        except MemoryError:
            raise
        except Exception as e:  # noqa: BLE001 - subclasses of dict and list run user code here
            kind = type(result).__name__
            article = "an" if kind[:1].lower() in tuple("aeiou") else "a"
            # "Object of type set is not JSON serializable" adds something when it is not the result itself.
            inside = "" if isinstance(e, TypeError) and str(e).startswith(f"Object of type {kind} ") else f" ({e})"
            advice = _AWAIT if kind == "coroutine" else _JSON_TYPES
            raise Refused(
                "ResultNotJson", f"{self._function} returned {article} {kind}, which is not JSON{inside}; {advice}"
            ) from None
        if len(body) > self._result_bytes:
            raise Refused(
                "ResultTooLarge",
                f"{self._function} returned {len(body)} bytes of JSON, the limit is {self._result_bytes}; "
                "store large results elsewhere and return where they are",
            )
        return body


def _keep_secrets(body: bytes) -> None:
    """Secrets become files that only this user may read, on a file system in memory."""
    if not body:
        return
    from base64 import b64decode

    for name, text in json.loads(body).items():
        file = os.open(os.path.join(SECRETS, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
        with os.fdopen(file, "wb") as out:
            out.write(b64decode(text))


def _load(handler: str) -> Callable[[Any, Context], Any]:
    """Import ``package.module.function``; raises what the import raises, or says what is wrong with the name."""
    module_name, _, name = handler.rpartition(".")
    __import__(module_name)
    module = sys.modules[module_name]
    function = getattr(module, name, None)
    if function is None:
        raise AttributeError(f"the handler is {handler}, but module {module_name} has no {name}")
    if not callable(function):
        raise TypeError(f"the handler {handler} is of type {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _is_async(function: Any) -> bool:
    """Is it written with ``async def``, also as a method, as ``__call__`` or within functools.partial?"""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & _ASYNC)


def _describe(exc: BaseException, where: str) -> dict[str, Any]:
    if isinstance(exc, Refused):
        return {"type": exc.kind, "message": str(exc)}
    from . import report

    return report.describe(exc, where)


def _since_ms(began_s: float) -> float:
    return round((time.perf_counter() - began_s) * 1000, 3)
