"""The kinds of value in bananas.yaml: times, sizes, numbers, texts, targets; how each is read and described.

Each kind turns a YAML value into what ``bananas.spec`` stores, or raises ValueError with the finished sentence: the
value as written, and what would be right. Bounds come from the spec's own types. Called by
``bananas.manifest_schema``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

import msgspec

import bananas
from bananas import cron
from bananas.errors import InvalidRequest
from bananas.runtimes import parse_runtime
from bananas.settings import LIMITS
from bananas.spec import EgressTarget, Name, RetrySpec, SecretName
from bananas.targets import parse_target
from bananas.units import parse_size_mb, parse_time_ms, show_time
from bananas.yamlmap import Filled

NOT_YET: Final = f"not supported by this release ({bananas.__version__})"
#: What ``${VAR}`` looks like to an editor, which cannot know the value.
_VARIABLE: Final = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What ``bananas.spec`` allows for a field; None is no bound."""

    low: float | None = None
    high: float | None = None
    is_low_excluded: bool = False
    pattern: str = ""
    max_items: int | None = None

    @classmethod
    def of(cls, struct: type[msgspec.Struct], name: str) -> Bounds:
        """The bounds of one field, however deep its type hides them."""
        return cls.among(get_type_hints(struct, include_extras=True)[name])

    @classmethod
    def among(cls, hint: Any) -> Bounds:
        """The bounds in an annotated type, or in a member of a union."""
        for part in (hint, *get_args(hint)):
            for meta in getattr(part, "__metadata__", ()):
                if isinstance(meta, msgspec.Meta):
                    low = meta.ge if meta.gt is None else meta.gt
                    return cls(low, meta.le, meta.gt is not None, meta.pattern or "", meta.max_length)
        return cls()

    def allow(self, value: float) -> bool:
        """True when the number is within them."""
        above = self.low is None or value > self.low or (value == self.low and not self.is_low_excluded)
        return above and (self.high is None or value <= self.high)

    def say(self, show: Callable[[float], str]) -> str:
        """``1 to 512``, ``at least 1``, ``more than 0 and at most 512``."""
        low = "" if self.low is None else show(self.low)
        high = "" if self.high is None else show(self.high)
        if low and high and not self.is_low_excluded:
            return f"{low} to {high}"
        low = low and f"{'more than' if self.is_low_excluded else 'at least'} {low}"
        return " and ".join(part for part in (low, high and f"at most {high}") if part)


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of value is read, shown as a default, and described to editors."""

    read: Callable[[Any, Bounds], Any]
    json: Callable[[Bounds], dict[str, Any]]
    show: Callable[[Any], Any] = lambda value: value
    #: True for a list or mapping: ``read`` checks only the outside, its items have kinds of their own.
    is_nested: bool = False
    #: True when an empty value is as good as an empty list or mapping.
    takes_nothing: bool = False


def shown(value: object) -> str:
    """A value as it stands in the YAML, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``; did you mean 'timeout'?`` for a near miss, else nothing."""
    match = difflib.get_close_matches(word, list(known), n=1) if isinstance(word, str) else []
    return f"; did you mean '{match[0]}'?" if match else ""


def show_size(value_mb: float) -> str:
    """``256M``, ``2G``."""
    return f"{value_mb / 1024:g}G" if value_mb >= 1024 and value_mb % 1024 == 0 else f"{value_mb:g}M"


def _with_unit(
    noun: str, example: str, parse: Callable[[str], int], show: Callable[[float], str]
) -> Callable[[Any, Bounds], int]:
    def read(value: Any, bounds: Bounds) -> int:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"{value} has no unit; write {value}{example[-1]}")
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not a {noun}; write a number and a unit, such as {example}")
        number = parse(value)
        if not bounds.allow(number):
            raise ValueError(f"{value} is out of range; write {bounds.say(show)}")
        return number

    return read


def _count(value: Any, bounds: Bounds) -> int:
    if isinstance(value, Filled) and re.fullmatch(r"-?\d{1,18}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value)} is not a whole number; write one, {bounds.say(str)}, without quotes")
    if not bounds.allow(value):
        raise ValueError(f"{value} is out of range; write {bounds.say(str)}")
    return value


def _amount(value: Any, bounds: Bounds) -> float:
    if isinstance(value, Filled) and re.fullmatch(r"-?\d{1,18}(\.\d{1,18})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is not a number; write one, {bounds.say(str)}, without quotes")
    if not bounds.allow(value):
        raise ValueError(f"{value:g} is out of range; write {bounds.say(str)}")
    return float(value)


def _flag(value: Any, _: Bounds) -> bool:
    if isinstance(value, Filled) and value in ("true", "false"):
        value = value == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not valid; write true or false, without quotes")
    return value


def text(right: str, refuse: Callable[[str], str] = lambda _: "") -> Kind:
    """Text that matches the spec's pattern; ``right`` says what to write, ``refuse`` may object to a value."""

    def read(value: Any, bounds: Bounds) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not text; write {right}")
        wrong = refuse(value)
        if wrong or (bounds.pattern and not re.fullmatch(bounds.pattern, value)):
            raise ValueError(wrong or f"{shown(value)} is not valid; write {right}")
        return str(value)

    def describe(bounds: Bounds) -> dict[str, Any]:
        pattern = bounds.pattern and {"pattern": f"{bounds.pattern}|{_VARIABLE}"}
        return {"type": "string"} | (pattern or {})

    return Kind(read, describe)


def choice(*choices: str) -> Kind:
    """One of a few words."""

    def read(value: Any, _: Bounds) -> str:
        if value not in choices:
            raise ValueError(
                f"{shown(value)} is not valid; write one of {', '.join(choices)}{did_you_mean(value, choices)}"
            )
        return str(value)

    return Kind(read, lambda _: {"anyOf": [{"enum": list(choices)}, {"type": "string", "pattern": _VARIABLE}]})


def _items(kind: Kind, each: Bounds, example: str) -> Kind:
    """A list; a wrong item is reported by the caller, who knows its place."""

    def read(value: Any, bounds: Bounds) -> list[Any]:
        if not isinstance(value, list | None):
            raise ValueError(f"{shown(value)} is not a list; write one, such as {example}")
        if bounds.max_items is not None and value and len(value) > bounds.max_items:
            raise ValueError(f"{len(value)} items are too many; write at most {bounds.max_items}")
        return value or []

    def describe(bounds: Bounds) -> dict[str, Any]:
        limit = {} if bounds.max_items is None else {"maxItems": bounds.max_items}
        return {"type": ["array", "null"], "items": kind.json(each)} | limit

    return Kind(read, describe, list, is_nested=True, takes_nothing=True)


def _refuse_runtime(value: str) -> str:
    try:
        if value.startswith(("node", "python3.")):
            parse_runtime(value)
    except InvalidRequest as e:
        return str(e)
    return ""


def _refuse_target(value: str) -> str:
    """Why a target cannot be reached from a sandbox; empty when it can."""
    try:
        parse_target(value)
    except ValueError as e:
        return str(e)
    return ""


def _refuse_own_target(value: str) -> str:
    """The same for a function's list, which only names what the pool's list has."""
    if "=" in value:
        return f"{value!r}: only the pool's egress says which address a name is; write {value.split('=')[0]}:port here"
    return _refuse_target(value)


def _gpus(value: Any, bounds: Bounds) -> int | str:
    if value == "all":
        return "all"
    try:
        return _count(value, bounds)
    except ValueError as e:
        raise ValueError(f"{e}; or write all") from None


def _retries(value: Any, _: Bounds) -> Any:
    if isinstance(value, list):
        raise ValueError("a list is not valid; write a number of retries, or {max: 3, base: 2s, factor: 2}")
    return value if isinstance(value, dict) else {"max": value}


def _rate(value: Any, _: Bounds) -> Any:
    if isinstance(value, dict) and "limit" not in value:
        raise ValueError("has no limit; write 10/s, or {limit: 10/s, burst: 20}")
    if not isinstance(value, dict | str):
        raise ValueError(f"{shown(value)} is not a rate; write a whole number and /s, /m or /h, such as 10/s")
    return value if isinstance(value, dict) else {"limit": value}


def _schedule(value: Any, _: Bounds) -> Any:
    right = 'write "0 2 * * *", @daily and the like, or {cron: "0 2 * * *", tz: Europe/Berlin}'
    if isinstance(value, dict) and "cron" not in value:
        raise ValueError(f"has no cron; {right}")
    if not isinstance(value, dict | str):
        raise ValueError(f"{shown(value)} is not a schedule; {right}")
    return value if isinstance(value, dict) else {"cron": value}


def _checked(check: Callable[[str], None]) -> Callable[[str], str]:
    def refuse(value: str) -> str:
        try:
            check(value)
        except ValueError as e:
            return str(e)
        return ""

    return refuse


def _json_value(value: Any, _: Bounds) -> Any:
    plain = _plain(value)
    size = len(msgspec.json.encode(plain))
    if size > LIMITS.schedule_payload_bytes:
        raise ValueError(f"has {size} bytes as JSON; write at most {LIMITS.schedule_payload_bytes}")
    return plain


def _plain(value: Any) -> Any:
    """The value without the marks of where it came from."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _mapping(example: str) -> Callable[[Any, Bounds], dict[str, Any]]:
    def read(value: Any, _: Bounds) -> dict[str, Any]:
        if not isinstance(value, dict | None):
            raise ValueError(f"{shown(value)} is not a mapping; write names and values, such as {example}")
        return value or {}

    return read


def _env_value(value: Any, _: Bounds) -> str:
    if not isinstance(value, str):
        quote = "" if isinstance(value, dict | list) else f'; write it in quotes: "{shown(value)}"'
        raise ValueError(f"{shown(value)} is not text, and the environment holds only text{quote}")
    if "\0" in value:
        raise ValueError("holds a NUL character, which an environment variable cannot")
    return str(value)


def _version(value: Any, _: Bounds) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value != 1:
        raise ValueError(f"{shown(value)} is not a version of this format; write 1")
    return 1


def _number_json(kind: str) -> Callable[[Bounds], dict[str, Any]]:
    def describe(bounds: Bounds) -> dict[str, Any]:
        number: dict[str, Any] = {"type": kind}
        if bounds.low is not None:
            number["exclusiveMinimum" if bounds.is_low_excluded else "minimum"] = bounds.low
        if bounds.high is not None:
            number["maximum"] = bounds.high
        return {"anyOf": [number, {"type": "string", "pattern": _VARIABLE}]}

    return describe


def _pattern_json(pattern: str) -> Callable[[Bounds], dict[str, Any]]:
    return lambda _: {"type": "string", "pattern": rf"^\s*{pattern}\s*$|{_VARIABLE}"}


TIME = Kind(_with_unit("time", "30s", parse_time_ms, show_time), _pattern_json(r"\d+(\.\d+)?(ms|s|m|h|d)"), show_time)
SIZE = Kind(_with_unit("size", "256M", parse_size_mb, show_size), _pattern_json(r"\d+(\.\d+)?[MG](i|B|iB)?"), show_size)
COUNT = Kind(_count, _number_json("integer"))
FLAG = Kind(_flag, lambda _: {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": _VARIABLE}]})
AMOUNT = Kind(_amount, _number_json("number"))
NAME = text("lower-case letters, digits, - and _, a letter first, at most 63 in all")
RUNTIME = text("python, or python3.N for a certain one, or node or node22", _refuse_runtime)
HANDLER = text("module.function, such as handler.handle")
FOLDER = text("a folder below the one that holds bananas.yaml, such as functions/hello")
FILE = text("a file in the function's folder, such as requirements.txt")
TARGET = text("host:port, such as smtp.example.com:587", _refuse_target)
TARGET_BOUNDS: Final = Bounds.among(EgressTarget)
TARGETS = _items(TARGET, TARGET_BOUNDS, "[smtp.example.com:587]")
OWN_TARGET = text("host:port as in the pool's egress, such as smtp.example.com:587", _refuse_own_target)
OWN_TARGETS = _items(OWN_TARGET, TARGET_BOUNDS, "[smtp.example.com:587]")
IMAGE = text("an image's name, such as shop/resize:3 or shop/resize@sha256:…")
ARGUMENT = text("text, such as python3; quote numbers")
ARGUMENTS = _items(ARGUMENT, Bounds(), '["python3", "main.py"]')
GPUS = Kind(_gpus, lambda bounds: {"anyOf": [COUNT.json(bounds), {"const": "all"}]})

NAME_BOUNDS: Final = Bounds.among(Name)
NAMES = _items(NAME, NAME_BOUNDS, "[email, gpu]")
SECRET_NAME = text("a letter or _, then up to 62 letters, digits and _")
SECRET_NAME_BOUNDS: Final = Bounds.among(SecretName)
SECRETS = _items(SECRET_NAME, SECRET_NAME_BOUNDS, "[SMTP_PASSWORD]")
ENV_NAME = text("letters, digits and _, and no digit first")
ENV_NAME_BOUNDS: Final = Bounds(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
ENV_VALUE = Kind(_env_value, lambda _: {"type": "string"})
ENV = Kind(
    _mapping("{SMTP_HOST: localhost}"),
    lambda _: {
        "type": ["object", "null"],
        "patternProperties": {ENV_NAME_BOUNDS.pattern: {"type": "string"}},
        "additionalProperties": False,
    },
    is_nested=True,
    takes_nothing=True,
)
#: ``pools`` and ``functions``; what stands below the names is a model.
NAMED = Kind(
    _mapping("hello: {timeout: 30s}"),
    lambda _: {"type": ["object", "null"], "additionalProperties": False},
    is_nested=True,
    takes_nothing=True,
)
RETRIES = Kind(
    _retries,
    lambda _: COUNT.json(Bounds.of(RetrySpec, "max")),  # the short form; the mapping is a model
    lambda spec: spec.max,
    is_nested=True,
)
SCHEDULE = Kind(_schedule, lambda _: {"type": "string"}, is_nested=True)  # the short form; the mapping is a model
#: The short form; the mapping is a model.
RATE = Kind(_rate, lambda _: {"type": "string", "pattern": rf"^[1-9][0-9]*/[smh]$|{_VARIABLE}"}, is_nested=True)
LIMIT = text("a whole number and /s, /m or /h, such as 10/s")
CRON = text('five fields such as "0 2 * * *", or @daily and the like', _checked(cron.check))
ZONE = text("an IANA name such as Europe/Berlin", _checked(cron.check_zone))
JSON = Kind(_json_value, lambda _: {}, takes_nothing=True)
#: The mapping is a model.
WEIGHTS = Kind(_mapping("{high: 16, normal: 4, low: 1}"), lambda _: {"type": "object"}, msgspec.structs.asdict, True)
VERSION = Kind(_version, lambda _: {"const": 1})
