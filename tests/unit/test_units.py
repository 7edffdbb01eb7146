"""Times and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananas.units import parse_size_mb, parse_time_ms, show_time


@pytest.mark.parametrize(
    ("text", "ms"),
    [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("7d", 604_800_000), (" 1.5h ", 5_400_000)],
)
def test_times_are_read_in_every_unit(text: str, ms: int) -> None:
    """A time is a number and ms, s, m, h or d."""
    assert parse_time_ms(text) == ms


@pytest.mark.parametrize(
    "text", ["30", "", "s", "-1s", "1 h 2 m", "30sec", "1e3s", "30S", "1:30", "30s s", "9" * 400 + "s"]
)
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    """The message names the value and shows a right one."""
    with pytest.raises(ValueError, match=r"is not a time; write a number and ms, s, m, h or d, such as 30s"):
        parse_time_ms(text)


@pytest.mark.parametrize(
    ("text", "mb"), [("256M", 256), ("256Mi", 256), ("256MB", 256), ("2G", 2048), ("1.5GiB", 1536), (" 64M", 64)]
)
def test_sizes_are_read_in_mebibytes(text: str, mb: int) -> None:
    """M and G count in 1,024s, however they are spelt."""
    assert parse_size_mb(text) == mb


@pytest.mark.parametrize("text", ["256", "256K", "256m", "", "M", "-1M", "1T"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    """The message names the value and shows a right one."""
    with pytest.raises(ValueError, match=r"is not a size; write a number and M or G, such as 256M"):
        parse_size_mb(text)


@given(st.integers(min_value=1, max_value=30 * 24 * 3600 * 1000))
def test_a_shown_time_reads_back_as_itself(ms: int) -> None:
    """What is printed may be copied into bananas.yaml."""
    assert parse_time_ms(show_time(ms)) == ms
