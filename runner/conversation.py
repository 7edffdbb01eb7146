"""What the runner and one shim say to each other: frames go out whole, and each that comes goes to whom it belongs.

Several may wait for answers at once (calls of one sandbox). One of those who wait reads for all of them, and passes the
reading on when it has its own answer: so nobody who is alone switches to another greenlet, and there is none that only
reads. It is ordinary blocking code, like ``transport``. Never ends a sandbox; ``runner.sandbox`` is the only user.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import gevent
from gevent import monkey

from bananas.errors import ProtocolError, SandboxDied, SandboxError
from bananas.protocols import Channel, ExitInfo
from bananas.settings import LIMITS
from runner import framing
from runner.answers import checked_json, exit_info

#: For one frame, to a shim that does nothing but read.
SEND_TIMEOUT_S = 2.0
#: A frame without output only reports a cut, once in an exchange.
_EMPTY_FRAMES = 16
#: The shim sends 5 frames of progress per second, counted from its begin, however long nobody read them.
_PROGRESS_FRAMES, _PROGRESS_FRAMES_PER_S = 16, 10

_new_lock = monkey.get_original("_thread", "allocate_lock")
OnLog = Callable[[bytes], None]
OnProgress = Callable[[bytes], None]


class _Bounds:
    """How much may come besides an answer: the shim keeps to its caps, so more than that is forged. Reading lets no
    other greenlet run while there is data, so this does, now and then.
    """

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._frames = 0
        self._bytes = 0
        self._empty = 0
        self._told = 0

    def log(self, body: bytes) -> None:
        """Count a frame of output; raises ProtocolError when there are too many."""
        self._frames += 1
        self._bytes += len(body)
        self._empty += not body
        # Output of the exchange before may still be on its way, hence twice the cap.
        if self._bytes > 2 * LIMITS.log_bytes or self._empty > _EMPTY_FRAMES:
            raise ProtocolError(f"the sandbox sent more log frames than its cap of {LIMITS.log_bytes} bytes allows")
        if self._frames % 64 == 0:
            gevent.sleep(0)

    def progress(self) -> None:
        """Count a frame of progress; raises ProtocolError when they come faster than the shim sends them."""
        self._told += 1
        if self._told > _PROGRESS_FRAMES + _PROGRESS_FRAMES_PER_S * (time.monotonic() - self._began_s):
            raise ProtocolError(f"the sandbox told its progress {self._told} times, more often than its shim does")


class _Line:
    """Who waits for an answer: ``init``, or a call. It stays open when the wait is given up, for the last words."""

    def __init__(self, answers: Sequence[int], on_log: OnLog, on_progress: OnProgress | None) -> None:
        self.answers = answers
        self.on_log = on_log
        self.on_progress = on_progress
        self.bounds = _Bounds()
        self.answer: framing.Frame | None = None
        #: What wakes it when another one reads; None until it needs that.
        self.wake: threading.Event | None = None
        self.is_waiting = True


class Conversation:
    """See the module."""

    def __init__(self, sandbox_id: str, channel: Channel) -> None:
        self._id = sandbox_id
        self._channel = channel
        self._reader = framing.FrameReader(channel)
        #: By call id.
        self._lines: dict[int, _Line] = {}
        #: For what belongs to none of them, since the latest call; None while nothing came.
        self._stray: _Bounds | None = None
        self._sending = threading.Lock()
        #: Held by who reads. Nobody ever blocks on it, so it need not know of greenlets.
        self._reading = _new_lock()
        #: What wakes ``finish`` when another one has read until now.
        self._finisher: threading.Event | None = None
        #: Why no answer can follow, once that is so.
        self._over: SandboxError | None = None
        #: True when calls may overlap: then output without a call id is that of every call that runs.
        self.is_shared = False
        #: What the shim's guard said of the end, and whether it says that it killed the process because we hung up.
        self.exit = ExitInfo()
        self.is_ordered = False

    def ask(
        self,
        frame: framing.Frame,
        answers: Sequence[int],
        deadline_s: float,
        on_log: OnLog,
        on_progress: OnProgress | None = None,
    ) -> framing.Frame:
        """Send a frame and wait for its answer, which has its call id and one of the kinds ``answers``.

        Raises TimeoutError at the deadline (monotonic seconds), ProtocolError or SandboxDied; the sandbox must then be
        ended. The callables get what comes meanwhile, in whichever greenlet reads; they must not wait.
        """
        if frame.call_id in self._lines:
            raise ValueError(f"call {frame.call_id} of sandbox {self._id} is not over")
        # The shim's cap on such output begins anew with a call before which none ran, which only it knows.
        self._stray = None
        line = self._lines[frame.call_id] = _Line(answers, on_log, on_progress)
        try:
            self._check()
            self._send(framing.encode(frame.kind, frame.call_id, frame.meta, frame.body), deadline_s)
            return self._wait(line, deadline_s)
        finally:
            line.is_waiting = False
            if not self._reading.locked():
                self._wake()

    def finish(self, on_log: OnLog, timeout_s: float) -> None:
        """Order the shim to end and read its last words; output of no open call goes to ``on_log``. Then nobody waits
        for an answer any more. Never raises."""
        deadline_s = time.monotonic() + timeout_s
        try:
            self._channel.half_close()
            if self._may_read(deadline_s):
                try:
                    while True:
                        self._take(self._reader.read(max(0.0, deadline_s - time.monotonic())), on_log)
                finally:
                    self._reading.release()
        except (SandboxError, TimeoutError, OSError):
            pass  # the end of the stream, or garbage in front of it: both are the end
        finally:
            self._over = self._over or SandboxDied(self.exit.describe())
            self._wake()

    # -- inside -----------------------------------------------------------------------------------------------

    def _may_read(self, deadline_s: float) -> bool:
        """Wait until nobody else reads; False at the deadline. Who reads at the moment comes to the end itself."""
        stopped = self._finisher = threading.Event()
        while not self._reading.acquire(False):
            if not stopped.wait(max(0.0, deadline_s - time.monotonic())):
                return False
            stopped.clear()
        return True

    def _check(self) -> None:
        """Raise what ended it, if something did."""
        if self._over is not None:
            raise type(self._over)(str(self._over))

    def _send(self, data: bytes, deadline_s: float) -> None:
        """A shim that runs several calls may be slow to read, which is no reason to end them all: then only the
        deadline counts. Raises TimeoutError or SandboxDied."""
        if not self.is_shared:
            self._send_all(data, SEND_TIMEOUT_S)
            return
        left_s = max(0.0, deadline_s - time.monotonic())
        if not self._sending.acquire(timeout=left_s):
            raise TimeoutError("the sandbox took no more input in time")
        try:
            self._send_all(data, max(SEND_TIMEOUT_S, left_s))
        finally:
            self._sending.release()

    def _send_all(self, data: bytes, timeout_s: float) -> None:
        try:
            self._channel.settimeout(timeout_s)
            self._channel.sendall(data)
        except OSError as e:
            if self.is_shared and isinstance(e, TimeoutError):
                raise
            raise SandboxDied(f"sandbox {self._id} took no more input: {e}") from e

    def _wait(self, line: _Line, deadline_s: float) -> framing.Frame:
        while line.answer is None:
            self._check()
            if self._reading.acquire(False):
                try:
                    self._check()  # who read before may have found the end, after the look above
                    self._read_for(line, deadline_s)
                finally:
                    self._reading.release()
            elif line.wake is None:
                line.wake = threading.Event()  # and look again: who reads may have stopped just now
            elif not line.wake.wait(max(0.0, deadline_s - time.monotonic())):
                raise TimeoutError("the sandbox did not answer in time")
            else:
                line.wake.clear()
        return line.answer

    def _read_for(self, line: _Line, deadline_s: float) -> None:
        """Read until the line has its answer; raises what ends the wait."""
        try:
            while line.answer is None:
                frame = self._reader.read(max(0.0, deadline_s - time.monotonic()))
                self._take(frame)
                if frame.kind == framing.EXIT:
                    raise SandboxDied(self.exit.describe())
        except SandboxError as e:
            self._over = e
            raise

    def _wake(self) -> None:
        """Let another one read; at the end, let all of them see it."""
        if self._finisher is not None:
            self._finisher.set()
        for line in list(self._lines.values()):
            if line.is_waiting and line.wake is not None:
                line.wake.set()
                if self._over is None:
                    return

    def _take(self, frame: framing.Frame, on_stray: OnLog | None = None) -> None:
        line = self._lines.get(frame.call_id)
        if frame.kind == framing.LOG:
            self._bounds(line).log(frame.body)
            for on_log in self._listeners(frame.call_id, line, on_stray):
                on_log(frame.body)
        elif frame.kind == framing.PROGRESS:
            if line is None or line.on_progress is None:
                raise ProtocolError(f"the sandbox told the progress of call {frame.call_id}, which does not run")
            line.bounds.progress()
            line.on_progress(checked_json(frame.body, "progress", LIMITS.progress_bytes))
        elif frame.kind == framing.EXIT:
            self.exit = exit_info(frame.meta)
            self.is_ordered = frame.meta.get("ordered") is True
        elif line is not None and frame.kind in line.answers:
            del self._lines[frame.call_id]
            line.answer = frame
            if line.wake is not None:
                line.wake.set()
        else:
            raise ProtocolError(f"sandbox {self._id} sent frame kind {frame.kind} for call {frame.call_id}")

    def _bounds(self, line: _Line | None) -> _Bounds:
        if line is not None:
            return line.bounds
        self._stray = self._stray or _Bounds()
        return self._stray

    def _listeners(self, call_id: int, line: _Line | None, on_stray: OnLog | None) -> list[OnLog]:
        if line is not None:
            return [line.on_log]
        if call_id == 0 and self.is_shared:
            return [open_line.on_log for open_line in self._lines.values()]
        return [on_stray] if on_stray is not None else []
