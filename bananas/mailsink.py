"""A mail server for development: takes every mail, delivers none, shows what came.

``bananas dev`` starts it so that ``send_email`` has somewhere to send. Each mail becomes one line on stdout,
``mail received: {json}``, and one .eml file. Listens on 127.0.0.1 only and keeps the last 100 files. It never
relays, knows no users and no TLS. Speaks RFC 5321 with CRLF line ends; a lone LF never ends a line inside a message,
so that no second mail can be smuggled into the first.
"""

from __future__ import annotations

import argparse
import contextlib
import email
import email.policy
import json
import re
import signal
import socketserver
import sys
import threading
import time
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import IO, Any

HOST = "127.0.0.1"
#: Of one mail, after undoing the dot-stuffing; announced as SIZE.
MESSAGE_BYTES = 1024 * 1024
#: RFC 5321 asks for 512; MAIL and RCPT parameters may add to it.
COMMAND_BYTES = 1024
#: RFC 5321 asks for 1,000; servers in the field take longer lines, so this one only keeps a bound.
TEXT_LINE_BYTES = 16 * 1024
RECIPIENTS = 100
CONNECTIONS = 32
#: Between two lines; and for one connection as a whole.
IDLE_S = 60.0
SESSION_S = 600.0
#: Wrong commands before the connection is closed.
MAX_ERRORS = 20
KEPT_FILES = 100
#: Of a body, in the line on stdout; the file has all of it.
SHOWN_BODY_CHARS = 2000

_PATH = re.compile(r"<([^<>\s]{0,256})>(?:\s+(.*))?", re.DOTALL)


class LineTooLong(Exception):
    """A line was longer than its limit; it has been read to its end."""


class Mailbox:
    """The folder of received mails: the newest ``KEPT_FILES`` as .eml files. Safe for several threads."""

    def __init__(self, directory: Path, out: IO[str]) -> None:
        """``out`` gets one line per mail; the folder is created."""
        self.directory = directory.absolute()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # mails are nobody else's business
        self._out = out
        self._lock = threading.Lock()  # guards the names, the pruning and ``out``
        self._last_ns = 0

    def store(self, sender: str, recipients: list[str], content: bytes) -> str:
        """Write one mail and announce it; returns its file's name. Raises OSError when it cannot be written."""
        envelope = "".join(f"Delivered-To: {address}\r\n" for address in recipients)
        with self._lock:
            self._last_ns = max(time.time_ns(), self._last_ns + 1)
            name = f"{self._last_ns}.eml"
            part = self.directory / f"{name}.part"
            part.write_bytes(f"Return-Path: <{sender}>\r\n{envelope}".encode() + content)
            part.replace(self.directory / name)
            for old in sorted(self.directory.glob("*.eml"))[:-KEPT_FILES]:
                old.unlink(missing_ok=True)
            print(f"mail received: {json.dumps(summary(sender, recipients, content))}", file=self._out, flush=True)
        return name


def summary(sender: str, recipients: list[str], content: bytes) -> dict[str, Any]:
    """``{"from", "to", "subject", "received_at", "body"}``; ``from`` and ``to`` are the envelope's."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    now_ms = time.time_ns() // 1_000_000
    return {
        "from": sender,
        "to": recipients,
        "subject": str(message.get("subject", "")),
        "received_at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now_ms // 1000))}.{now_ms % 1000:03d}Z",
        "body": _body(message)[:SHOWN_BODY_CHARS],
    }


def _body(message: EmailMessage) -> str:
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    try:
        return str(part.get_content()).replace("\r\n", "\n")
    except (LookupError, KeyError):  # a charset or a content type that Python does not know
        raw = part.get_payload(decode=True)
        return raw.decode("latin-1") if isinstance(raw, bytes) else ""


@dataclass(slots=True)
class _Envelope:
    """The mail that is being put together; ``sender`` None means that no MAIL came yet."""

    sender: str | None = None
    recipients: list[str] = field(default_factory=list)


class _Session(socketserver.StreamRequestHandler):
    """One connection, in a thread of its own."""

    server: MailSink
    timeout = IDLE_S

    def handle(self) -> None:
        self.greeted = False
        self.errors = 0
        self.envelope = _Envelope()
        self.deadline_at = time.monotonic() + SESSION_S
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client went away: nothing to answer
            self._talk()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().finish()

    def _talk(self) -> None:
        self._say("220 localhost Bananas mail sink")
        while True:
            try:
                line = self._read_line(COMMAND_BYTES, lone_lf=True)
            except LineTooLong:
                self._say(f"500 5.5.6 line too long, the limit is {COMMAND_BYTES} bytes")
                self.errors += 1
                continue
            except TimeoutError:
                self._say(f"421 4.4.2 no command for {IDLE_S:g} s, or connected for {SESSION_S:g} s; closing")
                return
            if line is None:
                return
            answer = self._command(line)
            self._say(answer)
            self.errors += answer[0] == "5"
            if answer.startswith("221"):
                return
            if self.errors >= MAX_ERRORS:
                self._say(f"421 4.7.0 {MAX_ERRORS} wrong commands; closing")
                return

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def _read_line(self, limit_bytes: int, *, lone_lf: bool) -> bytes | None:
        """The next line without its end, or None at the end of the stream.

        With ``lone_lf`` a bare LF ends it too (someone who types into netcat). Raises LineTooLong, or TimeoutError
        when the session has taken too long.
        """
        line = bytearray()
        total_bytes = 0
        while True:
            if time.monotonic() > self.deadline_at:
                raise TimeoutError
            piece = self.rfile.readline(limit_bytes + 2)
            if not piece:
                return None
            total_bytes += len(piece)
            line = (line + piece)[-(limit_bytes + 2) :]
            if line.endswith(b"\r\n") or (lone_lf and line.endswith(b"\n")):
                break
        text = bytes(line[: -2 if line.endswith(b"\r\n") else -1])
        if total_bytes > limit_bytes + 2:
            raise LineTooLong
        return text

    def _command(self, line: bytes) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return "500 5.5.2 commands must be UTF-8"
        if re.search(r"[\x00-\x1f\x7f]", text):
            return "500 5.5.2 commands must not contain control characters"
        verb, _, rest = text.partition(" ")
        match verb.upper():
            case "EHLO" | "HELO" as hello:
                return self._hello(hello, rest.strip())
            case "MAIL":
                return self._mail(rest)
            case "RCPT":
                return self._rcpt(rest)
            case "DATA":
                return self._data(rest)
            case "RSET":
                self.envelope = _Envelope()
                return "250 2.0.0 forgotten"
            case "NOOP":
                return "250 2.0.0 nothing done"
            case "QUIT":
                return "221 2.0.0 bye"
            case "VRFY":
                return "252 2.1.5 every address is accepted"
            case _:
                return f"502 5.5.1 {verb[:20]!r} is not supported"

    def _hello(self, verb: str, client: str) -> str:
        if not client:
            return f"501 5.5.4 write {verb} and your host name"
        self.greeted = True
        self.envelope = _Envelope()
        if verb == "HELO":
            return "250 localhost"
        return f"250-localhost\r\n250-SIZE {MESSAGE_BYTES}\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES"

    def _mail(self, rest: str) -> str:
        if not self.greeted:
            return "503 5.5.1 EHLO first"
        if self.envelope.sender is not None:
            return "503 5.5.1 one MAIL per message; RSET starts a new one"
        found = _PATH.fullmatch(rest[5:].strip()) if rest[:5].upper() == "FROM:" else None
        if found is None:
            return "501 5.5.4 write MAIL FROM:<address>"
        for parameter in (found[2] or "").split():
            key, _, value = parameter.partition("=")
            if key.upper() == "SIZE" and (not value.isdecimal() or int(value) > MESSAGE_BYTES):
                return f"552 5.3.4 SIZE={value[:20]} is more than the limit of {MESSAGE_BYTES} bytes"
            if key.upper() not in ("SIZE", "BODY", "SMTPUTF8"):
                return f"555 5.5.4 {key[:20]!r} is not supported"
        self.envelope.sender = found[1]
        return "250 2.1.0 sender ok"

    def _rcpt(self, rest: str) -> str:
        if self.envelope.sender is None:
            return "503 5.5.1 MAIL first"
        found = _PATH.fullmatch(rest[3:].strip()) if rest[:3].upper() == "TO:" else None
        if found is None or not found[1] or found[2]:
            return "501 5.5.4 write RCPT TO:<address>"
        if len(self.envelope.recipients) >= RECIPIENTS:
            return f"452 4.5.3 at most {RECIPIENTS} recipients"
        self.envelope.recipients.append(found[1])
        return "250 2.1.5 recipient ok"

    def _data(self, rest: str) -> str:
        if rest.strip():
            return "501 5.5.4 DATA takes no parameters"
        if self.envelope.sender is None or not self.envelope.recipients:
            return "503 5.5.1 MAIL and RCPT first"
        self._say("354 end with a line that holds only a dot")
        content, problem = self._read_content()
        envelope, self.envelope = self.envelope, _Envelope()
        if problem or envelope.sender is None:
            return problem
        try:
            name = self.server.mailbox.store(envelope.sender, envelope.recipients, content)
        except OSError as e:
            print(f"mail not stored: {e}", file=sys.stderr, flush=True)
            return f"452 4.3.1 cannot write the mail: {e.strerror}"
        return f"250 2.0.0 kept as {name}"

    def _read_content(self) -> tuple[bytes, str]:
        """The message with its dots undone, and why it is refused ("" when it is not)."""
        content = bytearray()
        problem = ""
        while True:
            try:
                line = self._read_line(TEXT_LINE_BYTES, lone_lf=False)
            except LineTooLong:
                problem = problem or f"554 5.6.0 a line is longer than {TEXT_LINE_BYTES} bytes"
                continue
            if line is None:
                raise ConnectionResetError("the client left inside a message")
            if line == b".":
                return bytes(content), problem
            line = line.removeprefix(b".") + b"\r\n"
            if len(content) + len(line) > MESSAGE_BYTES:
                problem = problem or f"552 5.3.4 the message is larger than {MESSAGE_BYTES} bytes"
            if not problem:
                content += line


class MailSink(socketserver.ThreadingTCPServer):
    """The listener; at most ``CONNECTIONS`` at once, one more is told 421."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * CONNECTIONS

    def __init__(self, port: int, directory: Path, out: IO[str]) -> None:
        """Bind 127.0.0.1:``port`` (0 takes a free one, see ``port``). Raises OSError when it is taken."""
        self.mailbox = Mailbox(directory, out)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((HOST, port), _Session)

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a session, or refuse it when all are taken."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(1.0)
                request.sendall(f"421 4.3.2 {CONNECTIONS} connections are open; try later\r\n".encode())
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Run a session and free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def main(argv: list[str] | None = None) -> int:
    """``python -m bananas.mailsink --port 2525 --dir D``; returns the exit code, 0 after SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bananas.mailsink", description="Take every mail, deliver none.")
    parser.add_argument("--port", type=int, default=2525, help="on 127.0.0.1; 0 takes a free one (default 2525)")
    parser.add_argument("--dir", type=Path, required=True, help=f"folder for the last {KEPT_FILES} mails")
    options = parser.parse_args(argv)
    try:
        sink = MailSink(options.port, options.dir, sys.stdout)
    except (OSError, OverflowError) as e:
        print(f"error: mail sink on {HOST}:{options.port}, folder {options.dir}: {e}", file=sys.stderr)
        return 1
    with sink:
        for number in (signal.SIGTERM, signal.SIGINT):
            # shutdown() waits for serve_forever to notice, so it must not run in the thread that serves.
            signal.signal(number, lambda *_: threading.Thread(target=sink.shutdown, daemon=True).start())
        print(f"mail sink listening on {HOST}:{sink.port}", flush=True)
        sink.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
