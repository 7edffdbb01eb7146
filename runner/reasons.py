"""Why sandboxes come and go: the closed vocabulary of job records, metrics and logs. ``tally.py`` counts them.

Words here are labels of counters, so nothing that a user or an engine wrote is ever one.
"""

from __future__ import annotations

from enum import StrEnum

from bananas.errors import ProtocolError


class Start(StrEnum):
    """How an attempt got its sandbox; the last two start without an attempt."""

    WARM = "warm"  # one that had the code loaded already
    STEM = "stem"  # a spare stem, bound for this attempt
    COLD = "cold"  # the attempt waited for a container
    SPARE = "spare"  # a stem for a later first call
    MIN_WARM = "min_warm"  # bound ahead of any call, as `min_warm` asks


class StartReason(StrEnum):
    """Why it was not better than that."""

    NONE = ""  # nothing is better than an idle one
    FREED = "freed"  # warm: it became free while the attempt waited for a container
    SHARED = "shared"  # warm: it runs other calls at the same time (`calls_per_sandbox`)
    NONE_IDLE = "none_idle"  # stem: this runner had no sandbox of the version
    ALL_BUSY = "all_busy"  # stem: those of the version were all at work
    NO_STEM = "no_stem"  # cold: the spare ones were used up
    STEMS_OFF = "stems_off"  # cold: the pool keeps none


class EndReason(StrEnum):
    """Why a sandbox was ended."""

    IDLE = "idle"  # no call for `idle_timeout`
    MEMORY = "memory"  # idle, and its memory was needed
    GPUS = "gpus"  # idle, and its devices were needed
    CAPACITY = "capacity"  # idle, and its place in the pool was needed
    MAX_USES = "max_uses"
    MAX_LIFETIME = "max_lifetime"
    SINGLE_USE = "single_use"
    NEW_VERSION = "new_version"  # its function has another version by now
    NEW_SECRET = "new_secret"  # noqa: S105 - a secret of its function has another value by now
    REMOVED = "removed"  # its function was removed
    POOL_CHANGED = "pool_changed"  # the pool's settings or the image are others by now
    SURPLUS = "surplus"  # a stem that nobody needs
    DIED = "died"  # it ended by itself while it was idle
    LEFTOVERS = "leftovers"  # the call left something behind: processes, broken output
    FAILED_TIMEOUT = "failed_timeout"
    FAILED_CRASH = "failed_crash"
    FAILED_OOM = "failed_oom"
    FAILED_PROTOCOL = "failed_protocol"
    FAILED_LOAD = "failed_load"  # the code could not be put in place or loaded
    FAILED = "failed"  # a defect of the runner
    ABANDONED = "abandoned"  # the attempt was cancelled, lost its lease or was handed back
    SHUTDOWN = "shutdown"


def of_failure(cause: Exception) -> EndReason:
    """What a failed ``bind`` or ``invoke`` means for the sandbox."""
    if isinstance(cause, TimeoutError):
        return EndReason.FAILED_TIMEOUT
    return EndReason.FAILED_PROTOCOL if isinstance(cause, ProtocolError) else EndReason.FAILED_CRASH
