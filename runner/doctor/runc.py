"""Which runc starts the sandboxes, and whether the ways out of a container that are known are closed in it.

A distribution mends an old version without changing its number, so the number alone condemns nobody: what the package's
change log says it mended counts as well. Called by ``runner.doctor.engine``; asks only this host's dpkg.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bananas import events
from bananas.findings import Finding

_DPKG_S: Final = 10.0
_CHANGES: Final = Path("/usr/share/doc/runc/changelog.Debian.gz")
_CHANGES_BYTES: Final = 4 * 1024 * 1024
#: A release, with more after it than any candidate of it has.
_RELEASE: Final = 1_000_000
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:[-~+]?rc\.?(\d+))?")

#: Major, minor, patch, candidate.
Number = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Escape:
    """A known way out of a container."""

    cve: str
    #: The first version of each series that is mended; series after the last were mended from their start.
    mended: tuple[Number, ...]
    #: Packages of distributions that mended it in an older version.
    packages: str
    status: Literal["warning", "failed"]
    why: str


ESCAPES: Final = (
    # Fixed in 1.1.12: https://github.com/opencontainers/runc/security/advisories/GHSA-xr7r-f8xq-vfvv. Debian 12 mended
    # it in 1.1.5+ds1-1+deb12u1 (change log of that package, 2 Feb 2024; DSA-5615-1).
    Escape(
        "CVE-2024-21626",
        ((1, 1, 12, _RELEASE),),
        r"1\.1\.5\+ds1-1\+deb12u[1-9]\d*",
        "failed",
        "an image's working directory can lead out of the container",
    ),
    # These three were fixed in 1.2.8, 1.3.3 and 1.4.0-rc.3, of 5 Nov 2025, and nowhere before:
    # https://github.com/opencontainers/runc/blob/main/CHANGELOG.md, GHSA-9493-h29p-rfm2, GHSA-qw9x-cqr3-wc7r and
    # GHSA-cgrx-mc8f-2prm. They race with runc while it mounts, by what another container shares with the one that
    # starts. Sandboxes share no writable mount and have no terminal, so this is a warning.
    *(
        Escape(
            cve,
            ((1, 2, 8, _RELEASE), (1, 3, 3, _RELEASE), (1, 4, 0, 3)),
            "",
            "warning",
            "other containers on this engine can get out by mounts that they share; sandboxes share none",
        )
        for cve in ("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881")
    ),
    # Not here: CVE-2026-41579 (https://github.com/opencontainers/runc/releases/tag/v1.5.0-rc.3), which upstream calls
    # too limited to be a problem, and CVE-2026-119101 (…/v1.5.3), which needs a checkpoint to be restored.
)


@dataclass(frozen=True, slots=True)
class Runc:
    """The runc of an engine."""

    version: str
    #: Of the distribution; empty when that is not known.
    package: str = ""
    #: CVE numbers in the package's change log.
    mended: frozenset[str] = frozenset()


def of_engine(version: Mapping[str, Any], *, is_local: bool) -> Runc | None:
    """The runc that ``docker version`` tells of, and, if the engine is this host's, its package. None: it has none."""
    for part in version.get("Components") or ():
        text = f"{part.get('Name', '')} {part.get('Version', '')}"
        if "runc" in text and (found := re.search(r"\d+\.\d+\.\d+[^\s,)]*", str(part["Version"]))):
            number = found[0]
            commit = str((part.get("Details") or {}).get("GitCommit", ""))
            # Debian's runc says its package as its commit.
            told = commit if commit.startswith(f"{number}-") else ""
            package = _package(number) if is_local else ""
            return Runc(number, package or told, _mended() if package else frozenset())
    return None


def judge(runc: Runc) -> Finding:
    """Whether a known escape is open in it."""
    number = parse(runc.version)
    shown = f"runc {runc.version}" + (f", package {runc.package}" if runc.package else "")
    if number is None:
        return Finding("runc", "warning", f"{shown} is no version that can be compared", "see that it is a current one")
    unmended = [escape for escape in ESCAPES if not is_mended(escape, number, runc)]
    if not unmended:
        return Finding("runc", "ok", f"{shown}: {', '.join(escape.cve for escape in ESCAPES)} are mended")
    worst = next((escape for escape in unmended if escape.status == "failed"), unmended[0])
    names = ", ".join(escape.cve for escape in unmended)
    detail = f"{shown} is open to {names}, as far as its version and package tell: {worst.why}"
    step = "update the package runc or containerd.io; upstream is mended from 1.2.8, 1.3.3 and 1.4.0"
    return Finding("runc", worst.status, detail, step)


def is_mended(escape: Escape, number: Number, runc: Runc) -> bool:
    """By its number, by its package, or by the change log of that."""
    if escape.cve in runc.mended or (escape.packages and re.fullmatch(escape.packages, runc.package)):
        return True
    same_series = [mended for mended in escape.mended if mended[:2] == number[:2]]
    return number >= (same_series[0] if same_series else escape.mended[-1])


def parse(version: str) -> Number | None:
    """``1.4.0-rc.3`` → (1, 4, 0, 3); None for what is no version."""
    match = _VERSION.match(version)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3]), int(match[4]) if match[4] else _RELEASE


def _package(version: str) -> str:
    """The version of this host's package runc, if that is what the engine runs; empty: no dpkg, or another runc."""
    command = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Version}", "runc"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DPKG_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as e:
        events.RUNC_PACKAGE_UNKNOWN(error=e)
        return ""
    status, _, package = done.stdout.strip().partition(" ")
    package = package.strip()
    return package if status == "ii" and done.returncode == 0 and package.startswith(version) else ""


def _mended(changes: Path = _CHANGES) -> frozenset[str]:
    """The CVE numbers in a package's change log; none when it is not installed, as in slim containers."""
    try:
        with gzip.open(changes) as file:
            text = file.read(_CHANGES_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError) as e:
        events.RUNC_CHANGES_UNKNOWN(error=e)
        return frozenset()
    return frozenset(re.findall(r"CVE-\d{4}-\d{4,7}", text))
