"""Times and sizes as people write them: ``30s``, ``1.5h``, ``256M``."""

from __future__ import annotations

import re

_TIME_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE_MB = {"M": 1, "Mi": 1, "MB": 1, "MiB": 1, "G": 1024, "Gi": 1024, "GB": 1024, "GiB": 1024}
# As many digits as any number that means something: more of them would not fit into a float.
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?)"
_TIME = re.compile(_NUMBER + r"(ms|s|m|h|d)")
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


def show_time(ms: float) -> str:
    """The shortest exact-enough way to write a duration.

    >>> show_time(30_000), show_time(90_000), show_time(1500), show_time(7_200_000)
    ('30s', '90s', '1500ms', '2h')
    """
    for unit in ("d", "h", "m", "s"):
        if ms >= _TIME_MS[unit] and ms % _TIME_MS[unit] == 0:
            return f"{int(ms // _TIME_MS[unit])}{unit}"
    return f"{int(ms)}ms" if ms == int(ms) else f"{ms:g}ms"
