"""What runtime names and ABI strings mean. Pure: asks neither an engine nor a gateway.

A runtime name is what ``bananas.yaml`` says (``python``, ``python3.13``, ``node22``); an ABI string is what a runner
publishes for it (``cp311-x86_64-glibc2.36``) and what a deploy installs wheels for. ``runner.images`` finds the
image of a runtime; the deploy asks uv for wheels with ``Abi.uv_platform``.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass

from bananas.errors import ConfigError, InvalidRequest

#: The oldest Python that our code inside a sandbox runs on.
OLDEST_PYTHON = (3, 11)
DEFAULT_RUNTIME = "python"
#: The versions of Node that our code inside a sandbox is tested with.
NODE_MAJORS = ("22",)

_RUNTIME = re.compile(r"python(?:3\.(\d{1,2}))?|(node)(\d{1,2})?")
_ABI = re.compile(r"cp3(\d{1,2})-(\w+)-(glibc|musl)(\d+)\.(\d+)")
_LIBC = re.compile(r"(glibc|musl)\d+\.\d+")
#: The manylinux levels, as glibc 2.N, that uv takes for --python-platform.
_MANYLINUX = (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17)


def parse_runtime(name: str) -> tuple[str, str | None]:
    """The language of a runtime name and the version that it pins; None means: what the runner's default image has.

    Raises InvalidRequest for anything that is no runtime name or is too old.

    >>> parse_runtime("python3.13"), parse_runtime("python"), parse_runtime("node22")
    (('python', '3.13'), ('python', None), ('node', '22'))
    """
    match = _RUNTIME.fullmatch(name)
    if not match:
        raise InvalidRequest(f"runtime {name!r} is unknown; write python, python3.N, node or node{NODE_MAJORS[-1]}")
    if match[2]:
        if match[3] and match[3] not in NODE_MAJORS:
            known = " and ".join(f"node{major}" for major in NODE_MAJORS)
            raise InvalidRequest(f"runtime {name!r} is not supported; {known} and node for the default one are")
        return "node", match[3]
    if match[1] is None:
        return "python", None
    if (3, int(match[1])) < OLDEST_PYTHON:
        raise InvalidRequest(f"runtime {name!r} is too old; python{_dotted(OLDEST_PYTHON)} is the oldest")
    return "python", f"3.{int(match[1])}"


def build_hint(name: str) -> str:
    """The command that makes an image for a runtime, in backquotes, for messages.

    >>> build_hint("node"), build_hint("python")
    ('`bananas images build --runtime node22`', '`bananas images build`')
    """
    language, version = parse_runtime(name)
    if language == "node":
        return f"`bananas images build --runtime node{version or NODE_MAJORS[-1]}`"
    return f"`bananas images build --runtime python{version}`" if version else "`bananas images build`"


@dataclass(frozen=True, slots=True)
class Abi:
    """What compiled code must fit: interpreter, machine and C library."""

    #: ``3.11``
    python: str
    #: ``x86_64`` or ``aarch64``
    machine: str
    #: ``glibc`` or ``musl``
    libc: str
    libc_version: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> Abi:
        """Read ``cp311-x86_64-glibc2.36``; raises InvalidRequest for anything else.

        >>> Abi.parse("cp311-x86_64-glibc2.36").uv_platform
        'x86_64-manylinux_2_36'
        """
        match = _ABI.fullmatch(text)
        if not match:
            raise InvalidRequest(f"abi {text!r} is not valid; it looks like cp311-x86_64-glibc2.36")
        return cls(f"3.{match[1]}", match[2], match[3], (int(match[4]), int(match[5])))

    @property
    def uv_platform(self) -> str:
        """The newest ``--python-platform`` of uv whose wheels run here; raises InvalidRequest when none does."""
        if self.machine not in ("x86_64", "aarch64"):
            raise InvalidRequest(f"no wheels are resolved for {self.machine}; x86_64 and aarch64 are possible")
        if self.libc == "musl":
            return f"{self.machine}-unknown-linux-musl"
        level = next((n for n in _MANYLINUX if (2, n) <= self.libc_version), None)
        if level is None:
            raise InvalidRequest(f"glibc {_dotted(self.libc_version)} is too old for wheels; 2.17 is the oldest")
        return f"{self.machine}-manylinux_2_{level}"

    def __str__(self) -> str:
        return f"cp{self.python.replace('.', '')}-{self.machine}-{self.libc}{_dotted(self.libc_version)}"


def host_abi() -> Abi:
    """The ABI of the interpreter that runs this; raises ConfigError without glibc."""
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    return Abi.parse(f"cp{version}-{platform.machine()}-{host_libc()}")


def host_libc() -> str:
    """``glibc2.36``; raises ConfigError on a host without glibc."""
    try:
        libc = (os.confstr("CS_GNU_LIBC_VERSION") or "").replace(" ", "")
    except (ValueError, OSError):  # musl and macOS do not know the name
        libc = ""
    if not _LIBC.fullmatch(libc):
        raise ConfigError(f"this host ({platform.system()}) has no glibc that says its version; Linux with glibc can")
    return libc


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
