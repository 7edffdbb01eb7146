"""Closed request bodies and queries: decoded in one go, and only when that fails looked at again, slowly, so that all
problems are named at once and in words.

Decides how a wrong field is told; which fields there are is said by the struct of each call (``bodies``, ``letters``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec
from werkzeug.datastructures import MultiDict

from bananas.errors import InvalidRequest

SHOWN_CHARS: Final = 60
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class Form(Generic[_Struct]):
    """One kind of body: a struct with ``forbid_unknown_fields``, and the words for what is wrong with it."""

    def __init__(self, kind: type[_Struct], wanted: Mapping[str, str], example: str) -> None:
        """``wanted``: what is right for a field, as the end of "… must be"."""
        self._kind = kind
        self._wanted = wanted
        self._example = example
        self._fields = {field.name: field for field in msgspec.structs.fields(kind)}
        self._decode = msgspec.json.Decoder(kind).decode

    def decode(self, raw: bytes) -> _Struct:
        """The struct that a JSON body says; raises InvalidRequest with everything that is wrong."""
        check_utf8(raw)
        try:
            return self._decode(raw)
        except (msgspec.DecodeError, RecursionError) as e:
            raise InvalidRequest("; ".join(self._problems(raw, e))) from e

    def convert(self, values: dict[str, Any]) -> _Struct:
        """The same for values that were read already, such as those of a query."""
        try:
            return msgspec.convert(values, self._kind)
        except msgspec.ValidationError as e:
            raise InvalidRequest("; ".join(self._wrong(values)) or str(e)) from e

    def _problems(self, raw: bytes, error: Exception) -> list[str]:
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError) as e:
            return [f"the body is not valid JSON: {reason(e)}"]
        if not isinstance(body, dict):
            return [f"the body must be an object such as {self._example}, not {shown(body)}"]
        return self._wrong(body) or [str(error)]

    def _wrong(self, body: dict[str, Any]) -> list[str]:
        found = [self._unknown_key(key) for key in body if key not in self._fields]
        found += [
            f"{name} is missing; it must be {self._wanted[name]}"
            for name, field in self._fields.items()
            if field.required and name not in body
        ]
        found += [
            f"{key} must be {wanted}, not {shown(body[key])}"
            for key, wanted in self._wanted.items()
            if key in body and not _fits(body[key], self._fields[key].type)
        ]
        return found

    def _unknown_key(self, key: str) -> str:
        close = difflib.get_close_matches(key, self._fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(self._fields)}"
        return f"unknown key {key[:SHOWN_CHARS]!r}; {hint}"


def query_values(args: MultiDict[str, str], numbers: tuple[str, ...] = ()) -> dict[str, str | int]:
    """A request's query for ``Form.convert``: without parameters that have no value, and with numbers as such.

    Raises InvalidRequest for a parameter that is given twice.
    """
    _refuse_repeated(args)
    values: dict[str, str | int] = {name: value for name, value in args.items() if value != ""}
    for name in numbers:
        text = args.get(name, "")
        if text.isascii() and text.isdecimal() and len(text) <= 9:
            values[name] = int(text)
    return values


def only(args: MultiDict[str, str], *names: str) -> None:
    """Raises InvalidRequest for a query that has other parameters, or one of these twice."""
    _refuse_repeated(args)
    if unknown := [name for name in args if name not in names]:
        known = ", ".join(names)
        raise InvalidRequest(f"unknown parameter {unknown[0][:SHOWN_CHARS]!r}; this call takes {known}")


def _refuse_repeated(args: MultiDict[str, str]) -> None:
    if repeated := [name for name, values in args.lists() if len(values) > 1]:
        raise InvalidRequest(f"parameter {repeated[0][:SHOWN_CHARS]!r} is given more than once; give it once")


def check_utf8(raw: bytes) -> None:
    """Raises InvalidRequest for a body that is no text."""
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as e:
            raise InvalidRequest(f"the body is not valid JSON: byte {e.start} is not UTF-8") from e


def reason(error: Exception) -> str:
    """Why a text is not JSON, in a few words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ")


def shown(value: Any) -> str:
    """A value as its sender wrote it, shortened."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _fits(value: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        return False
    return True
