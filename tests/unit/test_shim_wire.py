"""How the Python shim reads JSON: nothing but the time that it takes tells it from ``json.loads``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runner.shim.python.wire import decode_json


@pytest.mark.parametrize("text", ["1", ' {"a": [1, 2]}\n', "[1] ", '"\\ud800"', "1e400", "NaN"])
def test_text_with_or_without_spaces_around_it_is_the_same_value(text: str) -> None:
    """A payload arrives as its sender wrote it."""
    assert repr(decode_json(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["", " ", "1 2", "{} x", "\ufeff1", "[1,", "'a'"])
def test_what_is_no_json_is_refused_in_the_same_words(text: str) -> None:
    """Also text after a value."""
    errors: list[Any] = []
    for decode in (json.loads, decode_json):
        with pytest.raises(json.JSONDecodeError) as caught:
            decode(text)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
