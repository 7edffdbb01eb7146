"""Functions that misbehave: each gives a clear error, and a neighbour on the same runner goes on all the time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bananas.errors import ApiError, DeployError
from tests.platform import Platform
from tests.tools.neighbours import Neighbours

pytestmark = pytest.mark.docker

HANDLERS = {
    "raises": "def handle(event, context):\n    raise ValueError('the reason')\n",
    "exits": "import os\ndef handle(event, context):\n    print('last words')\n    os._exit(3)\n",
    "sysexit": "import sys\ndef handle(event, context):\n    sys.exit(2)\n",
    "floods": "def handle(event, context):\n    for _ in range(10**5):\n        print('x' * 999)\n    return 'done'\n",
    "hangs": "import time\ndef handle(event, context):\n    print('going to hang')\n    time.sleep(600)\n",
    # A regular expression that backtracks without end holds the interpreter in C code.
    "holds": "import re\ndef handle(event, context):\n    return bool(re.match(r'(a+)+$', 'a' * 40 + 'b'))\n",
    "eats": "def handle(event, context):\n    held = []\n    while True:\n        held.append(bytearray(2**23))\n",
    "forks": (
        "import os, time\n"
        "def handle(event, context):\n"
        "    while True:\n"
        "        if os.fork() == 0:\n"
        "            while True:\n"
        "                try:\n"
        "                    os.fork()\n"
        "                except OSError:\n"
        "                    time.sleep(0.01)\n"
    ),
    "notjson": "def handle(event, context):\n    return {1, 2}\n",
    "imports": "import no_such_module\ndef handle(event, context):\n    return 1\n",
    "segfaults": "import ctypes\ndef handle(event, context):\n    ctypes.string_at(0)\n",
    "closes": "import os\ndef handle(event, context):\n    os.closerange(3, 2000)\n    return 1\n",
}
#: Only what takes for ever has a short timeout; the others have one that a busy machine does not reach.
ENDLESS = {"hangs", "holds", "forks"}
SHORT, LONG = "    timeout: 3s\n    retries: 0", "    timeout: 60s\n    retries: 0"


@pytest.fixture(scope="module")
def app(platform: Platform) -> Platform:
    platform.deploy({name: source for name, source in HANDLERS.items() if name in ENDLESS}, SHORT)
    platform.deploy({name: source for name, source in HANDLERS.items() if name not in ENDLESS}, LONG)
    platform.deploy({"neighbour": "def handle(event, context):\n    return event\n"})
    return platform


@pytest.fixture(autouse=True)
def beside(app: Platform) -> Iterator[None]:
    """A steady load on the same runner and pool; every job of it is done at the first try."""
    with Neighbours(app.url):
        yield


CASES = {
    "raises": ("error", "ValueError", "the reason"),
    "exits": ("crashed", "Crashed", "exited with status 3"),
    "sysexit": ("error", "SystemExit", "sys.exit"),
    "hangs": ("timeout", "Timeout", "3000 ms"),
    "holds": ("timeout", "Timeout", "3000 ms"),
    "eats": ("oom", "OutOfMemory", "256 MiB"),
    "notjson": ("error", "ResultNotJson", "set"),
    "imports": ("error", "ModuleNotFoundError", "no_such_module"),
    "segfaults": ("crashed", "Crashed", "signal 11"),
}


@pytest.mark.parametrize("name", CASES)
def test_misbehaviour_has_a_clear_error_and_harms_nobody(app, name):
    """The outcome is the right one, the message names what happened, and a neighbour answers before, during, after."""
    outcome, kind, text = CASES[name]
    job = app.client.submit(name, None)["id"]
    assert app.client.invoke("neighbour", {"n": 1}) == b'{"n":1}'
    record = app.finished(job, 90)
    assert record["status"] == "failed"
    assert record["reason"] == "retries_exhausted"
    attempt = record["history"][-1]
    assert (attempt["outcome"], attempt["error"]["type"]) == (outcome, kind), record
    assert text in attempt["error"]["message"]
    assert app.client.invoke("neighbour", {"n": 2}) == b'{"n":2}'


def test_code_that_does_not_compile_is_refused_and_what_served_before_serves(app):
    """The deploy names file, line and column, and nothing is switched."""
    with pytest.raises(DeployError, match=r"handler\.py:1:\d+: SyntaxError: expected ':'"):
        app.deploy({"neighbour": "def handle(event, context)\n    return 1\n"})
    assert app.client.invoke("neighbour", 5) == b"5"


def test_last_words_before_a_crash_or_a_timeout_are_kept(app):
    """What was printed before the end is in the record."""
    for name, words in (("exits", "last words"), ("hangs", "going to hang")):
        record = app.finished(app.client.submit(name, None)["id"])
        assert words in record["history"][-1]["logs"]


def test_a_flood_of_output_is_cut_and_said_to_be(app):
    """100 MB of output cost a bounded record, and the function completes."""
    record = app.finished(app.client.submit("floods", None)["id"], 90)
    attempt = record["history"][-1]
    assert record["status"] == "completed", record
    assert attempt["log_truncated"] is True
    assert attempt["log_bytes"] == 256 * 1024
    assert len(app.client.logs(record["id"])) < 300 * 1024


def test_a_fork_bomb_is_contained(app):
    """The process limit holds, the sandbox is destroyed, and its neighbour keeps its speed."""
    record = app.finished(app.client.submit("forks", None)["id"])
    assert record["history"][-1]["outcome"] in ("error", "timeout", "crashed", "oom")
    assert app.client.invoke("neighbour", 3) == b"3"


def test_closing_the_connection_only_hurts_the_function_itself(app):
    """User code may close every descriptor it finds: the attempt fails or works, the platform goes on."""
    record = app.finished(app.client.submit("closes", None)["id"])
    assert record["history"][-1]["outcome"] in ("ok", "crashed")
    assert app.client.invoke("neighbour", 4) == b"4"


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("raises", 500, "handler-error"),
        ("exits", 502, "sandbox-died"),
        ("eats", 502, "sandbox-died"),
        ("hangs", 504, "timeout"),
    ],
)
def test_synchronous_calls_say_it_by_their_status(app, name, status, code):
    """Handler error 500, crash and out of memory 502, timeout 504, each naming the job."""
    with pytest.raises(ApiError) as caught:
        app.client.invoke(name, None)
    assert (caught.value.status, caught.value.problem["code"]) == (status, code)
    assert app.client.job(caught.value.problem["job"])["status"] == "failed"


FLOOD = """
import os, struct

def handle(event, context):
    # Find the connection to the runner among our descriptors and write log frames to it for ever.
    frame = struct.pack(">IBQI", 1 + 8 + 4 + 2, 6, event["call"], 2) + b"{}"
    for fd in range(3, 1024):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                while True:
                    os.write(fd, frame * 500)
        except OSError:
            continue
"""


def test_forged_frames_end_their_sandbox_and_hold_nobody_up(app):
    """A flood on the protocol socket is a violation; calls of others are answered meanwhile."""
    app.deploy({"forges": FLOOD}, LONG)
    job = app.client.submit("forges", {"call": 1})["id"]
    for n in range(20):
        assert app.client.invoke("neighbour", n) == str(n).encode()
    attempt = app.finished(job)["history"][-1]
    assert (attempt["outcome"], attempt["error"]["type"]) == ("crashed", "ProtocolViolation"), attempt


def test_a_result_that_is_nested_too_deeply_is_its_own_problem(app):
    """The runner checks it without falling over."""
    app.deploy(
        {
            "nests": "import sys\ndef handle(event, context):\n    sys.setrecursionlimit(100000)\n    v = []\n"
            "    for _ in range(5000):\n        v = [v]\n    return v\n"
        },
        LONG,
    )
    attempt = app.finished(app.client.submit("nests", None)["id"])["history"][-1]
    assert attempt["outcome"] in ("crashed", "error")
    assert app.client.invoke("neighbour", 6) == b"6"
