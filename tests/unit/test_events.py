"""The catalogue of events: every call fits it, nothing else is logged, and how lines look."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bananas import events, logs
from bananas.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for package in ("bananas", "gateway", "runner")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "shim" not in path.relative_to(ROOT / package).parts
]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REDIS = "redis://user:s3cret%2Fpass@localhost:1/0"


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """Every ``events.NAME(...)``: where, the name, the facts that are given; ``**facts`` is a literal there."""
    for path in SOURCES:
        tree = ast.parse(path.read_text("utf-8"))
        literals = {
            target.id: {ast.literal_eval(key) for key in node.value.keys if key is not None}
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            for target in node.targets
            if isinstance(target, ast.Name) and all(isinstance(key, ast.Constant) for key in node.value.keys)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "events":
                    given: set[str] = set()
                    for keyword in node.keywords:
                        given |= {keyword.arg} if keyword.arg else literals.get(ast.unparse(keyword.value), {"?"})
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.attr, given


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Logging as it was before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    libraries = {name: logging.getLogger(name).level for name in ("docker", "urllib3", "asyncio", "gunicorn")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in libraries.items():
        logging.getLogger(name).setLevel(before)


def lines(tell: Any, *, tty: bool = False, **settings: Any) -> str:
    """What ``tell()`` logs under the settings."""
    stream = io.StringIO()
    stream.isatty = lambda: tty  # type: ignore[method-assign]
    logs.set_up(Settings(**settings), "runner", stream)
    tell()
    return stream.getvalue()


def test_every_call_gives_the_facts_of_its_event() -> None:
    """A fact too few is a broken sentence, one too many is nowhere documented."""
    wrong = []
    for where, name, given in calls():
        event = getattr(events, name)
        if given != set(event.facts):
            wrong.append(f"{where}: {name} takes {sorted(event.facts)}, not {sorted(given)}")
    assert wrong == []


def test_every_event_happens_somewhere() -> None:
    """What nobody tells is not in the catalogue. Some are chosen first and called then, so names count."""
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    names = {name for name, value in vars(events).items() if isinstance(value, logs.Event)}
    assert {name for name in names if f"events.{name}" not in text} == set()
    assert len(events.CATALOGUE) == len(names)


def test_nothing_is_logged_past_the_catalogue() -> None:
    """A line of ours is an event: add it to bananas/events.py and call that."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in SOURCES
        if path.name != "logs.py"
        for match in re.finditer(
            r"^import logging|^from logging import|\blogging\.getLogger", path.read_text("utf-8"), re.M
        )
    ]
    assert found == []


@pytest.mark.usefixtures("root_logger")
def test_a_line_of_json_has_the_event_its_facts_and_what_is_bound() -> None:
    """One object on a line; facts that are empty are left out."""

    def tell() -> None:
        logs.bind(job="j1", function="hello", trace=logs.trace_id(TRACE))
        facts = {"sandbox": "s1", "pool": "default", "start": "stem", "reason": "", "wait_ms": 1.5}
        events.SANDBOX_STARTED(function="hello", **facts)
        logs.bind()

    told = json.loads(lines(tell))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("ts"))
    assert told.pop("pid") > 0
    assert told == {
        "level": "info",
        "event": "sandbox.started",
        "message": "sandbox s1 started in pool 'default': stem",
        "service": "runner",
        "job": "j1",
        "function": "hello",
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
        "sandbox": "s1",
        "pool": "default",
        "start": "stem",
        "wait_ms": 1.5,
    }


@pytest.mark.usefixtures("root_logger")
def test_a_terminal_gets_text_and_a_setting_decides_otherwise() -> None:
    """Sentence first, then what it does not say."""

    def tell() -> None:
        events.ROLE_WAITS(role="reaper", error="Redis is away")

    assert "[warning] reaper: Redis is away [role.waits]" in re.sub(
        r"\x1b\[[0-9;]*m| +(?=\])", "", lines(tell, tty=True)
    )
    assert json.loads(lines(tell, tty=True, log_format="json"))["event"] == "role.waits"
    assert "reaper: Redis is away" in lines(tell, log_format="pretty").split("[warning]")[1]


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_nobody_can_forge_a_line_or_move_the_cursor(log_format: str) -> None:
    """A path or a name is chosen by a caller; what it holds stays on its line, and is no order to the terminal."""

    def tell() -> None:
        path = "/pools/a\n2026-01-01T00:00:00Z [info] all is well\r\x1b[2J\u2028\x9b2J"
        events.AUDIT(token="t", name="n\nx", method="PUT", path=path, request="r")

    (line,) = lines(tell, log_format=log_format).split("\n")[:-1]
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028]", line)
    assert log_format == "pretty" or "\x1b[2J\u2028\x9b2J" in json.loads(line)["path"]


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_secrets_of_the_settings_are_in_no_line_whatever_brings_them(log_format: str) -> None:
    """Passwords as they are written and as they are meant, tokens and keys; in sentences, facts and tracebacks."""
    key = 'quoted"key\\0123'
    token = "bn_token-of-the-shell"

    def tell() -> None:
        local = f"{token} of a local variable"
        try:
            raise RuntimeError(f"{local[:6]} s3cret/pass {key}")
        except RuntimeError as e:
            events.ROLE_DIED(e, role=f"{token} s3cret%2Fpass")
        logging.getLogger("urllib3.pool").warning("library says s3cret/pass")

    text = lines(tell, redis_url=REDIS, token=token, secret_key=key, log_format=log_format)
    assert "***" in text
    for secret in (token, "s3cret", key, 'quoted\\"key'):
        assert secret not in text
    assert "of a local variable" not in text


@pytest.mark.usefixtures("root_logger")
def test_what_is_below_the_level_is_not_put_together() -> None:
    """Neither the sentence nor the line; libraries tell nothing at debug."""

    class Unreadable:
        def __str__(self) -> str:
            raise AssertionError("somebody read it")

    def tell() -> None:
        assert not events.STREAM_BROKE.is_told
        events.STREAM_BROKE(error=Unreadable())
        logging.getLogger("urllib3.pool").debug("what is sent")

    assert lines(tell) == ""
    assert "what is sent" not in lines(lambda: logging.getLogger("docker.api").debug("what is sent"), log_level="debug")


@pytest.mark.parametrize("header", [None, "", "x", "00-zz-1-01", "-" * 500])
def test_what_is_no_trace_context_is_no_trace(header: str | None) -> None:
    """Clients may send anything."""
    assert logs.trace_id(header) is None


def test_of_the_url_of_redis_only_passwords_are_secret() -> None:
    """Hosts and names of services are what an operator looks for."""
    url = (
        "redis+sentinel://us3r99:hunter2%2Fx@10.0.0.1:26379,10.0.0.2:26379/jobs-of-us/0?sentinel_password=s3ntinel&x=1"
    )
    assert set(logs.secrets_of(Settings(redis_url=url))) == {"hunter2%2Fx", "hunter2/x", "s3ntinel"}
    assert logs.secrets_of(Settings(redis_url="redis://10.0.0.1,10.0.0.2/0")) == []
