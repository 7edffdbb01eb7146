"""The runner's side of a sandbox without a container: the real shim as a subprocess, over a real Unix socket."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import bananas_sdk
from runner import framing
from runner.framing import Frame
from runner.transport import SocketChannel, SocketListener

SHIM = Path(framing.__file__).parent / "shim" / "python"
START_S = 10.0
LOG_BYTES = 256 * 1024
RESULT_BYTES = 1024 * 1024


@dataclass
class Answer:
    """What came back from a call, or from the end of a sandbox: the last frame, and the logs before it."""

    frame: Frame
    logs: bytes = b""
    #: The meta of the frame that reported a cut, if there was one.
    cut: dict[str, Any] | None = None
    #: (call id, bytes) of each log frame.
    log_frames: list[tuple[int, int]] = field(default_factory=list)
    #: What the call told of its progress, each time when, in monotonic seconds.
    told: list[tuple[float, Any]] = field(default_factory=list)

    @property
    def meta(self) -> dict[str, Any]:
        return self.frame.meta

    def json(self) -> Any:
        """The result's value; fails with the error when it is none."""
        assert self.frame.kind == framing.RESULT, self.frame
        return json.loads(self.frame.body)


class ShimHost:
    """Lays out a sandbox directory, starts the shim in it, and speaks the protocol with it."""

    def __init__(
        self,
        source: str = "",
        *,
        files: dict[str, str] | None = None,
        egress: Sequence[dict[str, Any]] = (),
        command: Sequence[str] = (sys.executable,),
    ) -> None:
        """``source`` is ``code/handler.py``; ``files`` maps more paths below the root to their text."""
        # Not tmp_path: with a test's name in it, it would be too long for a socket.
        self.root = Path(tempfile.mkdtemp(prefix="bn-"))
        self._command = [*command, "-I", "-B", "-u", str(self.root / "shim" / "keeper.py"), str(self.root)]
        self.call_id = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: SocketChannel | None = None
        # A link, not a copy, so that coverage sees the shim's own files.
        (self.root / "shim").symlink_to(SHIM)
        (self.root / "sdk").mkdir()
        (self.root / "sdk" / "bananas_sdk.py").symlink_to(bananas_sdk.__file__)
        self.write("boot.json", json.dumps({"protocol": 1, "egress": list(egress)}))
        self.write("code/handler.py", source)
        for path, text in (files or {}).items():
            self.write(path, text)

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))

    def __enter__(self) -> Self:
        listener = SocketListener(self.root / "s")
        try:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
            self.channel = listener.accept(START_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            listener.close()
        self.reader = framing.FrameReader(self.channel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.channel is not None:
            self.channel.close()
        if self.process is not None:
            try:
                self.process.wait(5)
            finally:
                self.process.kill()
                self.process.wait(5)
        shutil.rmtree(self.root)

    def send(self, kind: int, call_id: int, meta: dict[str, Any], body: bytes = b"") -> None:
        assert self.channel is not None
        self.channel.settimeout(10)
        self.channel.sendall(framing.encode(kind, call_id, meta, body))

    def answer(self, timeout_s: float = 20.0) -> Answer:
        """Everything up to the next frame that is neither output nor progress."""
        deadline = time.monotonic() + timeout_s
        answer = Answer(Frame(0, 0, {}, b""))
        while True:
            frame = self.reader.read(deadline - time.monotonic())
            if frame.kind == framing.PROGRESS:
                assert frame.call_id == self.call_id, frame
                answer.told.append((time.monotonic(), json.loads(frame.body)))
                continue
            if frame.kind != framing.LOG:
                answer.frame = frame
                return answer
            answer.logs += frame.body
            answer.log_frames.append((frame.call_id, len(frame.body)))
            if frame.meta.get("truncated"):
                answer.cut = frame.meta

    def init(self, **meta: Any) -> Answer:
        """Bind it; ``meta`` replaces fields of the usual init frame."""
        usual = {
            "protocol": 1,
            "function": "hello",
            "version": "v1",
            "handler": "handler.handle",
            "env": {},
            "deps": False,
            "log_bytes": LOG_BYTES,
            "result_bytes": RESULT_BYTES,
        }
        self.send(framing.INIT, 0, usual | meta)
        return self.answer()

    def ready(self, **meta: Any) -> Self:
        """Bind it, which must work."""
        answer = self.init(**meta)
        assert answer.frame.kind == framing.READY, answer
        return self

    def start_call(self, payload: Any = None, timeout_s: float = 20.0) -> int:
        """Send an invoke frame and return its call id."""
        self.call_id += 1
        meta = {"job": f"job-{self.call_id}", "attempt": 1, "timeout_ms": round(timeout_s * 1000)}
        self.send(framing.INVOKE, self.call_id, meta, json.dumps(payload).encode())
        return self.call_id

    def call(self, payload: Any = None, timeout_s: float = 20.0) -> Answer:
        """One call; the answer must carry its id."""
        call_id = self.start_call(payload, timeout_s)
        answer = self.answer(timeout_s)
        assert answer.frame.kind == framing.EXIT or answer.frame.call_id == call_id, answer
        return answer

    def end(self, timeout_s: float = 5.0) -> Answer:
        """Order it to end, as the runner does, and return its last words."""
        assert self.channel is not None
        self.channel.half_close()
        return self.answer(timeout_s)
