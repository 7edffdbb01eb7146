"""Times, sizes, rates and instants as people write them: ``30s``, ``1.5h``, ``256M``, ``10/s``."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_TIME_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE_MB = {"M": 1, "Mi": 1, "MB": 1, "MiB": 1, "G": 1024, "Gi": 1024, "GB": 1024, "GiB": 1024}
# As many digits as any number that means something: more of them would not fit into a float.
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?)"
_TIME = re.compile(_NUMBER + r"(ms|s|m|h|d)")
_RATE = re.compile(r"([1-9]\d{0,6})/([smh])")
_SIZE = re.compile(_NUMBER + r"(M|Mi|MB|MiB|G|Gi|GB|GiB)")


def parse_time_ms(text: str) -> int:
    """Milliseconds of ``250ms``, ``30s``, ``5m``, ``1h`` or ``7d``; raises ValueError saying what is right.

    >>> parse_time_ms("1.5h")
    5400000
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a time; write a number and ms, s, m, h or d, such as 30s")
    return round(float(match[1]) * _TIME_MS[match[2]])


def parse_size_mb(text: str) -> int:
    """Mebibytes of ``256M`` or ``2G``; raises ValueError saying what is right.

    >>> parse_size_mb("1.5G")
    1536
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write a number and M or G, such as 256M")
    return round(float(match[1]) * _SIZE_MB[match[2]])


def parse_rate(text: str) -> tuple[int, int]:
    """How many, in how many ms: ``10/s``, ``100/m`` or ``1000/h``; raises ValueError saying what is right.

    >>> parse_rate("100/m")
    (100, 60000)
    """
    match = _RATE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a rate; write a whole number and /s, /m or /h, such as 10/s")
    return int(match[1]), _TIME_MS[match[2]]


def show_rate(interval_ms: float) -> str:
    """The rate of one each that many ms.

    >>> show_rate(100), show_rate(600), show_rate(1000 / 3), show_rate(3_600_000)
    ('10/s', '100/m', '3/s', '1/h')
    """
    for unit in ("s", "m"):
        number = _TIME_MS[unit] / interval_ms
        if abs(number - round(number)) < 1e-6 * number:
            return f"{round(number)}/{unit}"
    return f"{_TIME_MS['h'] / interval_ms:g}/h"


def show_time(ms: float) -> str:
    """The shortest exact-enough way to write a duration.

    >>> show_time(30_000), show_time(90_000), show_time(1500), show_time(7_200_000)
    ('30s', '90s', '1500ms', '2h')
    """
    for unit in ("d", "h", "m", "s"):
        if ms >= _TIME_MS[unit] and ms % _TIME_MS[unit] == 0:
            return f"{int(ms // _TIME_MS[unit])}{unit}"
    return f"{int(ms)}ms" if ms == int(ms) else f"{ms:g}ms"


def iso(unix_ms: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds; None stays None.

    >>> iso(1_764_000_000_123)
    '2025-11-24T16:00:00.123Z'
    """
    if unix_ms is None:
        return None
    seconds, ms = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"
