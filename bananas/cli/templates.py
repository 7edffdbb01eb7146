"""The apps that ``bananas init`` writes: file path → text, one dictionary per template. Data only.

Each is deployed and called by a test as it stands here.
"""

from __future__ import annotations

from typing import Final

_IGNORED: Final = """\
# what `bananas dev` keeps: jobs, logs, the key of secrets
.bananas/
__pycache__/
.venv/
"""

_PYTHON_HANDLER: Final = '''\
"""Greets whoever the event names."""


def handle(event, context):
    """``event`` is the JSON that the caller sent; what is returned becomes JSON again."""
    name = event.get("name", "world")
    print("greeting", name, "in attempt", context.attempt)  # bananas jobs logs ID
    return {"message": f"Hello, {name}!"}
'''

_PYTHON_MANIFEST: Final = """\
version: 1

functions:
  hello:
    path: functions/hello
    handler: handler.handle       # handle() in functions/hello/handler.py
    timeout: 10s
    retries: {max: 3, base: 2s}   # three more tries, after 2, 4 and 8 s
"""

_CRON_HANDLER: Final = '''\
"""Called by the clock; see `schedule` in bananas.yaml."""

from datetime import UTC, datetime


def handle(event, context):
    """``event`` is the schedule's payload. A job may run twice when its runner dies: make that harmless."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    print("job", context.job_id, "looks after", event.get("what", "nothing"), "at", now)
    return {"done": event.get("what"), "at": now}
'''

_CRON_MANIFEST: Final = """\
version: 1

functions:
  hello:
    path: functions/hello
    handler: handler.handle       # handle() in functions/hello/handler.py
    timeout: 1m
    # Minute, hour, day of month, month, day of week: here every five minutes. With overlap: skip a slot is left out
    # while the job of the one before still runs.
    schedule: {cron: "*/5 * * * *", tz: UTC, overlap: skip, payload: {what: the shop}}
"""

_NODE_HANDLER: Final = """\
'use strict';
// Greets whoever the event names.

/** `event` is the JSON that the caller sent; what is returned, or the promise's value, becomes JSON again. */
exports.handle = async (event, context) => {
  const name = event.name ?? 'world';
  console.log('greeting', name, 'in attempt', context.attempt); // bananas jobs logs ID
  return { message: `Hello, ${name}!` };
};
"""

_NODE_MANIFEST: Final = """\
version: 1

functions:
  hello:
    runtime: node                 # needs an image once: bananas images build --runtime node22
    path: functions/hello
    handler: handler.handle       # exports.handle in functions/hello/handler.js
    timeout: 10s
    retries: {max: 3, base: 2s}   # three more tries, after 2, 4 and 8 s
"""

TEMPLATES: Final[dict[str, dict[str, str]]] = {
    "python": {
        "bananas.yaml": _PYTHON_MANIFEST,
        "functions/hello/handler.py": _PYTHON_HANDLER,
        ".gitignore": _IGNORED,
    },
    "cron": {
        "bananas.yaml": _CRON_MANIFEST,
        "functions/hello/handler.py": _CRON_HANDLER,
        ".gitignore": _IGNORED,
    },
    "node": {
        "bananas.yaml": _NODE_MANIFEST,
        "functions/hello/handler.js": _NODE_HANDLER,
        ".gitignore": _IGNORED + "node_modules/\n",
    },
}
