"""What ``bananas doctor`` says of our systemd units: do they run, will they after a boot, do they stop late enough, are
their settings right and nobody else's to read. Reads what ``systemctl`` tells, and their env files; changes nothing.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bananas.errors import ConfigError
from bananas.findings import Finding
from bananas.settings import Settings

_SYSTEMCTL_S: Final = 10.0
_PATTERN: Final = "bananas*.service"
_PROPERTIES: Final = (
    *("Id", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "NRestarts", "TimeoutStopUSec"),
    *("Environment", "EnvironmentFiles"),
)
#: What a unit needs after BANANAS_GRACE_S to leave in order, by what its name begins with.
_EXIT_S: Final = {"bananas-gateway": 10.0, "bananas-runner@": 20.0, "bananas.service": 35.0}
_SPANS_S: Final = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "month": 2.63e6,
    "y": 3.16e7,
}
#: Of a file's mode: anything for the group or for others.
_OTHERS: Final = 0o077


def look_at_units(_: Settings) -> list[Finding]:
    """Our units, where there is a systemd and any of them is installed."""
    if shutil.which("systemctl") is None:
        return []
    try:
        # Without systemd as process 1, as in most containers, it cannot tell and says so by its exit code.
        listed = _systemctl("list-units", "--all", "--plain", "--no-legend", _PATTERN)
        files = _systemctl("list-unit-files", "--no-legend", _PATTERN)
        names = [line.split()[0] for line in listed.splitlines() if line.strip()]
        if not names:
            return [_unused(files)] if files.strip() else []
        told = _systemctl("show", f"--property={','.join(_PROPERTIES)}", *names)
    except subprocess.TimeoutExpired:
        return [Finding("systemd", "warning", f"systemctl gave no answer within {_SYSTEMCTL_S:g} s")]
    return [finding for text in told.strip().split("\n\n") for finding in unit(_facts(text))]


def _systemctl(*args: str) -> str:
    command = ["systemctl", "--no-pager", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_S, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else ""


def _facts(text: str) -> dict[str, list[str]]:
    """Each property's values, of the lines ``Name=value``; some properties have several lines."""
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        facts.setdefault(name, []).append(value)
    return facts


def _unused(files: str) -> Finding:
    names = ", ".join(line.split()[0] for line in files.splitlines())
    return Finding("systemd", "warning", f"installed and not in use: {names}", "systemctl enable --now what you want")


def unit(facts: dict[str, list[str]]) -> Iterator[Finding]:
    """What is right and wrong with one unit, by its properties as ``systemctl show`` prints them."""

    def fact(name: str) -> str:
        return facts.get(name, [""])[0]

    name = fact("Id")
    yield _activity(name, fact("ActiveState"), fact("SubState"), int(fact("NRestarts") or 0))
    if fact("ActiveState") == "active" and fact("UnitFileState") == "disabled":
        yield Finding(name, "warning", "it does not start when this host boots", f"systemctl enable {name}")
    if fact("NeedDaemonReload") == "yes":
        step = f"systemctl daemon-reload && systemctl restart {name}"
        yield Finding(name, "warning", "its file was changed since systemd read it", step)
    env = dict(word.split("=", 1) for word in shlex.split(fact("Environment")) if "=" in word)
    for value in facts.get("EnvironmentFiles", []):
        path = Path(value.rpartition(" (")[0] or value)
        try:
            mode = path.stat().st_mode & 0o777
            env |= _variables(path.read_text("utf-8"))
        except FileNotFoundError:
            continue  # each of them may be left out
        except PermissionError:
            detail = f"this user may not read {path}, so its settings were not looked at"
            yield Finding(name, "warning", detail, "run `bananas doctor` as root")
            return
        if mode & _OTHERS:
            detail = f"{path} has the mode {mode:04o}; it may hold passwords and keys"
            yield Finding(name, "failed", detail, f"chmod 0600 {path}")
    yield from _settings(name, env, fact("TimeoutStopUSec"))


def _activity(name: str, active: str, sub: str, restarts: int) -> Finding:
    detail = f"{active} ({sub})"
    if restarts:
        detail += f", restarted {restarts} time{'s'[: restarts != 1]}"
    if active == "failed" or sub == "auto-restart":
        return Finding(name, "failed", detail, f"see `journalctl -u {name} -n 50`")
    if active in ("active", "reloading"):
        return Finding(name, "ok", detail)
    if active != "inactive":
        return Finding(name, "warning", detail, f"see `systemctl status {name}`")
    return Finding(name, "warning", detail, f"start it with `systemctl start {name}`")


def _settings(name: str, env: dict[str, str], timeout: str) -> Iterator[Finding]:
    """Whether the unit's settings are right, and its stop long enough for its grace."""
    try:
        settings = Settings.from_env(env)
    except ConfigError as e:
        yield Finding(name, "failed", f"its settings are wrong: {e}", f"mend them in /etc/bananas, and restart {name}")
        return
    exit_s = next((value for start, value in _EXIT_S.items() if name.startswith(start)), 0.0)
    stop_s, least_s = seconds(timeout), settings.grace_s + exit_s
    if stop_s < least_s:
        detail = (
            f"it is killed {stop_s:g} s after a stop began, and may need {least_s:g} s (BANANAS_GRACE_S + {exit_s:g})"
        )
        yield Finding(name, "failed", detail, f"TimeoutStopSec={least_s + 5:g} by `systemctl edit {name}`")


def _variables(text: str) -> dict[str, str]:
    """An env file as systemd reads it: comments begin with # or ;, values may be quoted."""
    found = {}
    for line in text.splitlines():
        name, assigns, value = line.strip().partition("=")
        if assigns and not name.startswith(("#", ";")):
            value = value.strip()
            is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            found[name.strip()] = value[1:-1] if is_quoted else value
    return found


def seconds(span: str) -> float:
    """A time span as systemd prints it.

    >>> [seconds(span) for span in ("1min 15s", "500ms", "infinity")]
    [75.0, 0.5, inf]
    """
    if span in ("", "infinity"):
        return float("inf")
    return sum(float(number) * _SPANS_S[word] for number, word in re.findall(r"([\d.]+)([a-z]+)", span))
