"""Masking what is still being printed."""

from __future__ import annotations

import pytest

from bananas.protocols import Secret
from runner.masking import Mask


@pytest.mark.parametrize("values", [(b"abcdef",), (b"abcdef", b"abcdefgh"), (b"line one\nline two",), (b"aaaaaa",), ()])
@pytest.mark.parametrize(
    "text", [b"x abcdef y", b"abcdefgh", b"abcdeabcdefg", b"so line one\nline two.", b"aaaaaaa b", b"ab"]
)
def test_what_is_told_early_is_what_the_end_says(values, text):
    """However little is known yet: always a begin of the masked whole, and never a part of a value."""
    mask = Mask({str(n): Secret("1", value) for n, value in enumerate(values)})
    whole = mask.text(text)
    for size in range(len(text) + 1):
        assert whole.startswith(mask.so_far(text[:size]))
