"""Send one mail over SMTP: ``{"to": "a@b.example", "subject": "…", "body"?: "…"}``.

``to`` may also be a list of at most 50 addresses. Where the server is comes from SMTP_HOST and SMTP_PORT, the sender
from MAIL_FROM. Jobs run at least once, so a mail can go out twice; the Message-ID is made of the job's id and is the
same in each attempt, which lets the receiving side drop the copy.
"""

from __future__ import annotations

import os
import re
import smtplib
from email.message import EmailMessage
from typing import Any

SMTP_TIMEOUT_S = 10.0
MAX_RECIPIENTS = 50
MAX_SUBJECT_CHARS = 500
MAX_BODY_CHARS = 500_000
#: Enough to catch a slip; the mail server has the last word.
ADDRESS = re.compile(r"[^@\s<>,;:\"()\x00-\x1f\x7f]{1,64}@[^@\s<>,;:\"()\x00-\x1f\x7f]{1,253}")


class BadEvent(ValueError):
    """The payload is wrong; no retry will help."""

    permanent = True


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Return ``{"accepted": [address, …], "message_id": "<…>"}``; raise when the server took none of them."""
    message = compose(event, context.job_id)
    host, port = server()
    recipients = [address.strip() for address in str(message["To"]).split(",")]
    print(f"sending to {len(recipients)} recipient(s) over {host}:{port}")
    with smtplib.SMTP(host, port, timeout=SMTP_TIMEOUT_S) as smtp:
        refused = smtp.send_message(message)
    for address, (code, reason) in refused.items():
        print(f"refused {address}: {code} {reason.decode(errors='replace')}")
    return {"accepted": [a for a in recipients if a not in refused], "message_id": message["Message-ID"]}


def compose(event: Any, job_id: str) -> EmailMessage:
    """The mail that ``event`` asks for; raises BadEvent naming the field, its value and what would be right."""
    if not isinstance(event, dict):
        raise BadEvent(f'the payload must be an object such as {{"to": …, "subject": …}}, got {type(event).__name__}')
    if unknown := sorted(set(event) - {"to", "subject", "body"}):
        raise BadEvent(f"unknown field {unknown[0]!r}; there are to, subject and body")
    to = event.get("to")
    recipients = [to] if isinstance(to, str) else to
    if not isinstance(recipients, list) or not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise BadEvent(f"to must be an address or a list of 1 to {MAX_RECIPIENTS} addresses, got {to!r:.60}")
    for address in recipients:
        if not isinstance(address, str) or not ADDRESS.fullmatch(address):
            raise BadEvent(f"to: {address!r:.60} is not an address such as user@example.com")
    message = EmailMessage()
    message["From"] = os.environ.get("MAIL_FROM", "bananas@localhost")
    message["To"] = ", ".join(recipients)
    message["Subject"] = _text(event, "subject", MAX_SUBJECT_CHARS, one_line=True)
    message["Message-ID"] = f"<{job_id}@bananas.localhost>"
    message.set_content(_text(event, "body", MAX_BODY_CHARS, one_line=False, default=""))
    return message


def server() -> tuple[str, int]:
    """Host and port of the mail server; raises RuntimeError naming the setting that is missing or wrong."""
    host, port = os.environ.get("SMTP_HOST", ""), os.environ.get("SMTP_PORT", "")
    if not host or not port.isdecimal():
        raise RuntimeError(
            f"SMTP_HOST={host!r} and SMTP_PORT={port!r} do not name a mail server; set both under env: of send_email"
        )
    return host, int(port)


def _text(event: dict[str, Any], key: str, max_chars: int, *, one_line: bool, default: str | None = None) -> str:
    value = event.get(key, default)
    if not isinstance(value, str) or len(value) > max_chars:
        raise BadEvent(f"{key} must be a text of at most {max_chars} characters, got {value!r:.60}")
    if one_line and re.search(r"[\r\n]", value):
        raise BadEvent(f"{key} must be a single line, got {value!r:.60}")
    return value
