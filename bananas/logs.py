"""How lines come into the log: what an event is, what is bound to a call, and the two forms of a line.

An *event* has a name, a level, a sentence and named facts; ``bananas.events`` is the catalogue of all of them, and
nothing of ours logs anything else. Telling one that is below the level costs a comparison. Lines are made by structlog:
JSON, one object on a line, or text for people. Lines of libraries take the same way. Gateway and runner set this up at
their start; whoever only imports ``bananas`` (the command line) loads no structlog.

Never in a line: passwords and tokens of this process's settings (they become ``***`` wherever they stand), payloads and
results. What a handler says when it fails is told at ``debug`` only: it may quote what the function was called with.
"""

from __future__ import annotations

import json
import logging
import re
import string
import sys
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO
from urllib.parse import unquote

from bananas.settings import Settings

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50
#: Libraries tell less than we do: their debug lines hold what is sent.
_LIBRARIES: Final = {"docker": INFO, "urllib3": INFO, "asyncio": INFO, "gunicorn": WARNING}
#: Shorter ones would blacken ordinary words.
_SECRET_CHARS: Final = 6
_MASK: Final = "***"
#: What a line of text has besides its sentence in any case.
_HEAD: Final = frozenset({"ts", "level", "event", "exc_info", "stack_info"})

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-")

_bound: ContextVar[dict[str, object]] = ContextVar("bananas_bound")
#: Events of this process at ``warning`` and above, by name, for metrics.
told: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of line; calling it tells it. Made by ``bananas.events`` only."""

    #: Lower case with dots: ``sandbox.started``.
    name: str
    level: int
    #: With the names of facts in braces.
    sentence: str
    #: All facts that a call gives, those of the sentence among them.
    facts: tuple[str, ...]
    logger: logging.Logger = field(repr=False, compare=False)

    def __call__(self, exc: BaseException | None = None, /, **facts: object) -> None:
        """Tell it; ``exc`` is shown with its traceback."""
        if self.level >= WARNING:
            told[self.name] += 1
        if self.logger.isEnabledFor(self.level):
            extra = {"bananas_event": self.name, "bananas_facts": facts}
            self.logger.log(self.level, _Sentence(self.sentence, facts), exc_info=exc, extra=extra)

    @property
    def is_told(self) -> bool:
        """False when a call would tell nothing: for facts that cost something."""
        return self.logger.isEnabledFor(self.level)


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence that is only put together when somebody reads it."""

    text: str
    facts: dict[str, object]

    def __str__(self) -> str:
        return self.text.format_map(self.facts)


def event(name: str, level: int, sentence: str, more: str = "") -> Event:
    """An event of the catalogue; ``more`` names facts that the sentence does not, with spaces between them."""
    named = [part.split("!")[0] for _, part, _, _ in string.Formatter().parse(sentence) if part]
    facts = tuple(dict.fromkeys([*named, *more.split()]))
    return Event(name, level, sentence, facts, logging.getLogger(f"bananas.{name.partition('.')[0]}"))


def bind(**facts: object) -> None:
    """Add these facts to every line of this greenlet from now on, instead of those that were bound before.

    Greenlets that it starts begin without any.
    """
    _bound.set(facts)


def trace_id(traceparent: str | None) -> str | None:
    """The trace of a W3C trace context; None without one, and for what is none.

    >>> trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    match = _TRACE.match(traceparent) if traceparent else None
    return match[1] if match else None


def library(name: str) -> logging.Logger:
    """For a library that wants a logger to write to."""
    return logging.getLogger(f"library.{name}")


# -- the form of a line -------------------------------------------------------------------------------------------


def set_up(settings: Settings, service: str, stream: TextIO | None = None) -> None:
    """Send every line of this process to ``stream`` (stderr); ``service`` is in each, such as ``gateway``."""
    import structlog

    stream = stream or sys.stderr
    wants_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    level = settings.log_level.upper()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_facts_of(service)],
            processors=[*(_json() if wants_json else _pretty(stream.isatty())), _masking(secrets_of(settings))],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(logging.getLevelName(level), least))


def secrets_of(settings: Settings) -> list[str]:
    """What must not be shown of the settings: their secret values, and the passwords in the URL of Redis."""
    values = [str(getattr(settings, f.name)) for f in fields(settings) if not f.repr and f.name != "redis_url"]
    found = {part for value in values for part in re.split(r"[\s,]+", value)}
    for url in re.findall(r"://([^/@\s]*)@", settings.redis_url):
        password = url.partition(":")[2]
        found |= {password, unquote(password)}
    for password in re.findall(r"password=([^&\s]+)", settings.redis_url):
        found |= {password, unquote(password)}
    return sorted((text for text in found if len(text) >= _SECRET_CHARS), key=len, reverse=True)


def _masking(secrets: Sequence[str]) -> Processor:
    """Replaces secrets in the finished line, whatever brought them there."""
    written = {form for text in secrets for form in (text, json.dumps(text)[1:-1], repr(text)[1:-1])}
    pattern = re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True))) or r"(?!)")

    def mask(_logger: object, _method: str, line: Any) -> Any:
        return pattern.sub(_MASK, line)

    return mask


def _facts_of(service: str) -> Processor:
    """Makes the dictionary of a line out of a record of logging: of an event of ours, or of a library."""

    def gather(_logger: object, _method: str, line: EventDict) -> EventDict:
        record: logging.LogRecord = line["_record"]
        message, facts = line.pop("event"), getattr(record, "bananas_facts", {})
        bound = _bound.get({})
        return {
            "ts": _utc(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "bananas_event", "library"),
            "message": message,
            "service": service,
            "pid": record.process,
            **({} if hasattr(record, "bananas_event") else {"logger": record.name}),
            **{name: value for name, value in {**bound, **facts}.items() if value is not None and value != ""},
            **line,
        }

    return gather


def _utc(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _visible(value: object) -> object:
    """Without characters that would begin a line of their own, or move a terminal's cursor: callers choose texts."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], value) if isinstance(value, str) else value


def _json() -> list[Processor]:
    import structlog

    def escape(_logger: object, _method: str, line: Any) -> Any:
        """The control characters that JSON leaves as they are."""
        return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", line)

    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        escape,
    ]


def _pretty(colors: bool) -> list[Processor]:
    import structlog

    def shorten(_logger: object, _method: str, line: EventDict) -> EventDict:
        """The sentence first; what it says already is not said again, nor what every line has."""
        line = {name: _visible(value) for name, value in line.items() if name not in ("service", "pid")}
        message = str(line.pop("message"))
        left = {name: value for name, value in line.items() if name in _HEAD or str(value) not in message}
        head = {"timestamp": left.pop("ts"), "logger": left.pop("event"), "event": message}
        return {**head, **left}

    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        shorten,
        structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=0,
            pad_level=False,
            sort_keys=False,
            # The default shows the values of local variables, secrets among them.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]
