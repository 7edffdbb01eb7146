"""The mail sink, spoken to by smtplib and by hand: what it keeps, what it refuses, what bounds it."""

from __future__ import annotations

import io
import json
import smtplib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bananas import mailsink
from bananas.mailsink import MailSink


@pytest.fixture
def out() -> io.StringIO:
    """What the sink prints."""
    return io.StringIO()


@pytest.fixture
def sink(tmp_path: Path, out: io.StringIO) -> Iterator[MailSink]:
    """A sink on a free port, serving."""
    with MailSink(0, tmp_path / "mail", out) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


@pytest.fixture
def client(sink: MailSink) -> Iterator[smtplib.SMTP]:
    """A connected smtplib client."""
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=5) as smtp:
        yield smtp


def mails(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line.removeprefix("mail received: ")) for line in out.getvalue().splitlines()]


def hand(sink: MailSink) -> tuple[socket.socket, io.BufferedReader]:
    connection = socket.create_connection(("127.0.0.1", sink.port), timeout=5)
    return connection, connection.makefile("rb")


def test_a_sent_mail_becomes_a_line_and_a_file(sink: MailSink, client: smtplib.SMTP, out: io.StringIO) -> None:
    """A mail arrives whole: subject and body decoded in the line, every byte in the file."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "me@here.example", "you@there.example", "Grüße 🍌"
    message.set_content("first\n.\n..two dots\nünï")
    assert client.send_message(message) == {}
    (mail,) = mails(out)
    assert {k: mail[k] for k in ("from", "to", "subject", "body")} == {
        "from": "me@here.example",
        "to": ["you@there.example"],
        "subject": "Grüße 🍌",
        "body": "first\n.\n..two dots\nünï\n",
    }
    (path,) = sink.mailbox.directory.iterdir()
    assert path.suffix == ".eml"
    assert sink.mailbox.directory.stat().st_mode & 0o077 == 0, "only this user reads it"
    assert path.read_bytes().startswith(b"Return-Path: <me@here.example>\r\nDelivered-To: you@there.example\r\n")
    assert b"\r\n.\r\n" in path.read_bytes(), "the body's own dot line is there, without its stuffing"


def test_several_mails_go_over_one_connection(client: smtplib.SMTP, out: io.StringIO) -> None:
    """RSET forgets the mail in the making; the next ones are complete and apart."""
    client.ehlo()
    assert client.mail("dropped@x.example")[0] == 250
    assert client.rset()[0] == 250
    for n in range(3):
        client.sendmail(f"{n}@x.example", ["a@x.example", "b@x.example"], f"Subject: {n}\r\n\r\nbody {n}")
    assert client.noop()[0] == 250
    assert [(m["from"], m["subject"], m["to"]) for m in mails(out)] == [
        (f"{n}@x.example", str(n), ["a@x.example", "b@x.example"]) for n in range(3)
    ]


def test_only_the_newest_files_are_kept(
    sink: MailSink, client: smtplib.SMTP, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is bounded: the oldest mails go first."""
    monkeypatch.setattr(mailsink, "KEPT_FILES", 3)
    for n in range(5):
        client.sendmail("a@x.example", ["b@x.example"], f"Subject: {n}\r\n\r\n")
    kept = sorted(sink.mailbox.directory.iterdir())
    assert [b"Subject: %d\r\n" % n in path.read_bytes() for n, path in zip((2, 3, 4), kept, strict=True)] == [True] * 3
    assert len(mails(out)) == 5


def test_a_mail_above_the_limit_is_refused_and_the_next_one_taken(client: smtplib.SMTP, out: io.StringIO) -> None:
    """Announced by SIZE it is refused before it is sent; unannounced it is read to its end and refused then."""
    client.ehlo()
    assert client.esmtp_features["size"] == str(mailsink.MESSAGE_BYTES)
    assert client.mail("a@x.example", [f"size={mailsink.MESSAGE_BYTES + 1}"])[0] == 552
    client.mail("a@x.example")
    client.rcpt("b@x.example")
    line = b"x" * 998 + b"\r\n"
    assert client.data(line * (mailsink.MESSAGE_BYTES // len(line) + 1))[0] == 552
    client.sendmail("a@x.example", ["b@x.example"], "Subject: fits\r\n\r\n")
    assert [m["subject"] for m in mails(out)] == ["fits"]


def test_a_mail_of_exactly_the_limit_is_kept(sink: MailSink, client: smtplib.SMTP) -> None:
    """The limit itself is allowed, and dots do not count twice."""
    content = (b"." * 1022 + b"\r\n") * (mailsink.MESSAGE_BYTES // 1024)
    client.sendmail("a@x.example", ["b@x.example"], content)
    (path,) = sink.mailbox.directory.iterdir()
    assert path.read_bytes().endswith(content)
    assert path.stat().st_size == len(content) + len(b"Return-Path: <a@x.example>\r\nDelivered-To: b@x.example\r\n")


def test_lines_have_limits(sink: MailSink, client: smtplib.SMTP, out: io.StringIO) -> None:
    """A command or a text line that never ends costs a bounded buffer and an error, not the connection."""
    client.ehlo()
    assert client.docmd("NOOP", "x" * 100_000)[0] == 500
    client.mail("a@x.example")
    client.rcpt("b@x.example")
    code, text = client.data(b"y" * (mailsink.TEXT_LINE_BYTES + 1) + b"\r\n")
    assert (code, b"longer than 16384 bytes" in text) == (554, True)
    assert client.noop()[0] == 250
    assert mails(out) == []


@pytest.mark.parametrize(
    ("commands", "code"),
    [
        (["MAIL FROM:<a@x>"], 503),
        (["EHLO me", "RCPT TO:<a@x>"], 503),
        (["EHLO me", "MAIL FROM:<a@x>", "DATA"], 503),
        (["EHLO me", "MAIL FROM:<a@x>", "MAIL FROM:<a@x>"], 503),
        (["EHLO me", "MAIL FROM a@x"], 501),
        (["EHLO me", "MAIL FROM:<a@x>", "RCPT TO:<>"], 501),
        (["EHLO me", "MAIL FROM:<a@x> RET=FULL"], 555),
        (["EHLO"], 501),
        (["STARTTLS"], 502),
        (["AUTH PLAIN AAAA"], 502),
        (["NOOP \x1b[31m"], 500),
        (["HELO me", "MAIL FROM:<>", "RCPT TO:<a@x>"], 250),
        (["VRFY a@x"], 252),
    ],
)
def test_commands_out_of_order_or_unknown_get_their_code(sink: MailSink, commands: list[str], code: int) -> None:
    """Each step checks that its predecessor happened, and what is not offered says so."""
    connection, answers = hand(sink)
    with connection, answers:
        answers.readline()
        for command in commands:
            connection.sendall(command.encode() + b"\r\n")
            answer = answers.readline()
            while answer[3:4] == b"-":
                answer = answers.readline()
    assert int(answer[:3]) == code, answer


def test_a_lone_lf_does_not_end_a_message(sink: MailSink, out: io.StringIO) -> None:
    """A second mail cannot be smuggled in behind LF . LF."""
    connection, answers = hand(sink)
    with connection, answers:
        connection.sendall(b"EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n")
        connection.sendall(b"Subject: one\r\n\r\nbody\n.\nMAIL FROM:<evil@x>\r\n.\n\r\n.\r\nQUIT\r\n")
        answered = answers.read()
    assert answered.count(b"250 2.0.0 kept") == 1
    assert [m["subject"] for m in mails(out)] == ["one"]
    assert "evil" in str(mails(out)[0]["body"])


def test_too_many_wrong_commands_end_the_connection(sink: MailSink) -> None:
    """A client that only talks nonsense (a browser, say) is put out."""
    connection, answers = hand(sink)
    with connection, answers:
        connection.sendall(b"GET / HTTP/1.1\r\n" * (mailsink.MAX_ERRORS + 5))
        answered = answers.read().splitlines()
    assert answered[-1].startswith(b"421 4.7.0")
    assert len(answered) == 1 + mailsink.MAX_ERRORS + 1


def test_connections_have_a_cap_that_frees_itself(sink: MailSink) -> None:
    """One connection above the cap hears 421; after one has left there is room again."""
    open_ones = [hand(sink) for _ in range(mailsink.CONNECTIONS)]
    assert all(answers.readline().startswith(b"220") for _, answers in open_ones)
    late, answers = hand(sink)
    with late, answers:
        assert answers.read().startswith(b"421 4.3.2 32 connections")
    first, first_answers = open_ones.pop()
    with first, first_answers:
        first.sendall(b"QUIT\r\n")
        assert b"221" in first_answers.read()
    # The place is free a moment after the stream has ended; a connection shows it, however many are needed.
    for _ in range(100):
        again, answers = hand(sink)
        with again, answers:
            if (greeting := answers.readline()).startswith(b"220"):
                break
    assert greeting.startswith(b"220")
    for connection, reader in open_ones:
        reader.close()
        connection.close()


def test_a_silent_client_is_told_and_disconnected(sink: MailSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection holds its place only for the idle time."""
    monkeypatch.setattr(mailsink._Session, "timeout", 0.05)
    connection, answers = hand(sink)
    with connection, answers:
        assert [line[:3] for line in answers.read().splitlines()] == [b"220", b"421"]


def test_a_mail_that_cannot_be_written_is_refused_for_now(sink: MailSink, client: smtplib.SMTP) -> None:
    """The sender keeps its mail (4xx) when the folder is gone."""
    sink.mailbox.directory.rmdir()
    with pytest.raises(smtplib.SMTPDataError) as caught:
        client.sendmail("a@x.example", ["b@x.example"], "Subject: lost\r\n\r\n")
    assert caught.value.smtp_code == 452


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["Subject: =?x?b?zz?=", "Content-Type: text/plain; charset=nope", "From: <<>,;"]) | st.text()
    ),
    st.binary(max_size=200),
)
def test_any_bytes_have_a_summary(headers: list[str], body: bytes) -> None:
    """No mail, however broken, ends the session that brought it."""
    content = "\r\n".join(headers).encode("utf-8", "replace") + b"\r\n\r\n" + body
    shown = mailsink.summary("a@x", ["b@x"], content)
    assert len(shown["body"]) <= mailsink.SHOWN_BODY_CHARS
    assert "\n" not in json.dumps(shown)


def test_the_program_listens_on_loopback_and_ends_on_sigterm(tmp_path: Path) -> None:
    """``python -m bananas.mailsink`` says its port once it listens, prints mails and exits 0."""
    command = [sys.executable, "-m", "bananas.mailsink", "--port", "0", "--dir", str(tmp_path / "mail")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            assert ready.startswith("mail sink listening on 127.0.0.1:")
            with smtplib.SMTP("127.0.0.1", int(ready.rsplit(":", 1)[1]), timeout=5) as smtp:
                smtp.sendmail("a@x.example", ["b@x.example"], "Subject: hi\r\n\r\n")
            assert '"subject": "hi"' in process.stdout.readline()
        finally:
            process.terminate()
        assert process.wait(10) == 0


def test_a_taken_port_is_an_error_with_its_number(sink: MailSink, tmp_path: Path) -> None:
    """The program names the port that it cannot have."""
    command = [sys.executable, "-m", "bananas.mailsink", "--port", str(sink.port), "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"mail sink on 127.0.0.1:{sink.port}" in done.stderr
