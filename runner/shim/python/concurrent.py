"""Several calls at once in one sandbox (``calls`` in ``init``). Loaded only then; one after the other is ``worker.py``.

Async handlers share the one loop of ``tasks.py``, on the main thread, and a thread reads the frames; other handlers run
on threads, which the main thread feeds. Output and progress belong to the call whose context variables the code has.
What has none (programs, C code, threads of user code) has call id 0: the runner knows which calls run meanwhile.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
import time
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from . import current, logs, wire
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tasks import Tasks
    from .worker import Worker

#: Output without an end of line waits for one up to this size.
LINE_BYTES = 8 * 1024


class Call:
    """One call that runs."""

    def __init__(self, call_id: int, progress: Progress) -> None:
        self.call_id = call_id
        self.progress = progress
        self.began_s = time.perf_counter()
        #: Output that is not sent yet; its size with that which is; what was too much.
        self.tail = bytearray()
        self.logged = 0
        self.dropped = 0
        self.is_over = False


class Output(io.RawIOBase):
    """What stands behind ``sys.stdout`` and ``sys.stderr``: each piece goes to the call that writes it."""

    def __init__(self, fd: int, take: Callable[[Call, bytes], None]) -> None:
        super().__init__()
        self._fd = fd
        self._take = take
        self._pid = os.getpid()

    def writable(self) -> bool:
        """As a file says it."""
        return True

    def fileno(self) -> int:
        """For what writes past Python: to whom that belongs is not known."""
        return self._fd

    def write(self, data: Any) -> int:
        """From any thread, and from finalizers: never waits for a lock."""
        piece = bytes(data)
        call = current.call.get()
        if isinstance(call, Call) and not call.is_over and os.getpid() == self._pid:
            self._take(call, piece)
        else:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._fd, view) :]
        return len(piece)


class Turn:
    """The lock of the logs. Who gives it back sends what others could not send meanwhile, so nobody waits to print."""

    def __init__(self, lock: Any, send_rest: Callable[[Call], None]) -> None:
        """``send_rest`` is called under the lock for each call in ``behind``."""
        self._lock = lock
        self._send_rest = send_rest
        self.behind: deque[Call] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        """As a lock does."""
        return bool(self._lock.acquire(blocking))

    def release(self) -> None:
        """As a lock does. What comes into ``behind`` before this returns is sent, by this thread or the next holder."""
        while True:
            try:
                while self.behind:
                    self._send_rest(self.behind.popleft())
            finally:
                self._lock.release()
            if not self.behind or not self.acquire(False):
                return

    def __enter__(self) -> None:
        """Wait for it."""
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()


class Concurrent:
    """The calls of one sandbox after ``init``."""

    def __init__(self, worker: Worker, link: wire.Link, output: logs.Logs, most: int, log_bytes: int) -> None:
        """``most`` calls run at once. From now on output is told apart."""
        self._worker = worker
        self._link = link
        self._logs = output
        self._most = most
        self._log_bytes = log_bytes
        self._turn = output.lock = Turn(output.lock, self._send_rest)  # type: ignore[assignment]
        #: Changed under the lock of the logs.
        self._running: set[Call] = set()
        self._free = [Progress(link, output.lock) for _ in range(most)]
        self._queue: queue.SimpleQueue[tuple[Call, dict[str, Any], bytes]] = queue.SimpleQueue()
        self._threads = 0
        self._most_threads = most
        self._trouble = ""
        for name, fd in (("stdout", 1), ("stderr", 2)):
            # Written through: what waits in a stream would be taken for that of whoever writes next.
            stream = io.TextIOWrapper(
                Output(fd, self._take),  # type: ignore[type-var]
                encoding="utf-8",
                errors="backslashreplace",
                write_through=True,
            )
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.modules[__package__].tell_progress = _tell_progress  # type: ignore[attr-defined]

    # -- who runs them ------------------------------------------------------------------------------------------

    def serve(self, handler: Callable[[Any, Any], Any], tasks: Tasks | None) -> None:
        """Answer calls until the runner sends no more."""
        if tasks is None:
            self._read(lambda *order: self._to_thread(handler, *order))
            return
        broken: list[BaseException] = []

        def read() -> None:
            try:
                self._read(lambda *order: tasks.soon(lambda: self._start(tasks, *order)))
            except BaseException as e:  # noqa: BLE001 - the main thread raises it
                broken.append(e)
            tasks.end()

        threading.Thread(target=read, name="bananas-frames", daemon=True).start()
        tasks.serve()
        if broken:
            raise broken[0]

    def _read(self, start: Callable[[Call, dict[str, Any], bytes], object]) -> None:
        while (frame := self._link.read()) is not None:
            kind, call_id, meta, body = frame
            if kind != wire.INVOKE or len(self._running) >= self._most:
                self._worker.refuse(kind, call_id)
            with self._logs.lock:
                if not self._running:
                    self._logs.reset(0)
                call = Call(call_id, self._free.pop())
                call.progress.begin(call_id)
                self._running.add(call)
            start(call, meta, body)

    def _to_thread(self, handler: Callable[[Any, Any], Any], *order: Any) -> None:
        self._queue.put(order)
        if self._threads < min(len(self._running), self._most_threads):
            name = f"bananas-call-{self._threads + 1}"
            thread = threading.Thread(target=self._work, args=(handler, copy_context()), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as e:
                if not self._threads:
                    raise
                self._most_threads = self._threads
                print(f"bananas: {e}: calls wait for those that run; raise pids of the pool", file=sys.stderr)
            else:
                self._threads += 1

    def _work(self, handler: Callable[[Any, Any], Any], variables: Any) -> None:
        """One thread: its calls see what loading the code has set, and nothing of each other."""
        while True:
            call, meta, body = self._queue.get()
            result, exc = variables.copy().run(self._run, handler, call, meta, body)
            self._answer(call, result, exc, "")
            del result, exc

    def _run(self, handler: Callable[[Any, Any], Any], call: Call, meta: dict[str, Any], body: bytes) -> Any:
        current.call.set(call)
        try:
            return handler(json.loads(body.decode()), self._worker.context(meta)), None
        except BaseException as e:  # noqa: BLE001 - whatever the handler raises is its answer
            # Without our own frame: the traceback is the user's.
            return None, e.with_traceback(e.__traceback__.tb_next if e.__traceback__ else None)
        finally:
            self._worker.end_if_forked()

    def _start(self, tasks: Tasks, call: Call, meta: dict[str, Any], body: bytes) -> None:
        try:
            event = json.loads(body.decode())
        except ValueError as e:
            self._answer(call, None, e, "")
            return
        tasks.start(event, self._worker.context(meta), call, lambda *ended: self._answer(call, *ended))

    # -- what they say ------------------------------------------------------------------------------------------

    def _answer(self, call: Call, result: Any, exc: BaseException | None, trouble: str) -> None:
        kind, meta, body = self._worker.outcome(result, exc, call.began_s)
        with self._logs.lock:
            call.is_over = True
            self._running.discard(call)
            is_last = not self._running
            # Children are nobody's while others run; the last one is asked.
            trouble = trouble or ("ran out of memory" if isinstance(exc, MemoryError) else "")
            self._trouble = self._trouble or trouble or (self._worker.left_over() if is_last else "")
            if self._trouble:
                meta |= {"reusable": False, "why_not": self._trouble}
            call.progress.finish()
            self._free.append(call.progress)
            self._send_tail(call)
            if call.dropped:
                cut = wire.encode_meta({"truncated": True, "dropped_bytes": call.dropped})
                self._link.send(wire.LOG, call.call_id, cut, b"")
            if is_last:
                self._logs.finish()
            else:
                self._logs.drain()
            self._link.send(kind, call.call_id, wire.encode_meta(meta), body)

    def _take(self, call: Call, piece: bytes) -> None:
        kept = piece[: max(0, self._log_bytes - call.logged)]
        call.logged += len(kept)
        call.dropped += len(piece) - len(kept)
        call.tail += kept
        if b"\n" in kept or len(call.tail) >= LINE_BYTES:
            # A finalizer may print while this very thread has the turn; then it is sent when that is given back.
            self._turn.behind.append(call)
            if self._turn.acquire(False):
                self._turn.release()

    def _send_rest(self, call: Call) -> None:
        if not call.is_over:
            self._send_tail(call)

    def _send_tail(self, call: Call) -> None:
        while call.tail:
            piece = bytes(call.tail[: wire.LOG_FRAME_BYTES])
            self._link.send(wire.LOG, call.call_id, b"{}", piece)
            del call.tail[: len(piece)]


def _tell_progress(text: bytes) -> None:
    call = current.call.get()
    if isinstance(call, Call) and not call.is_over:
        call.progress.tell(text)
