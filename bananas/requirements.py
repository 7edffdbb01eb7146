"""Install a function's requirements for the interpreter that will run them, not for the one at hand.

Runs uv, which resolves and unpacks wheels for another Python version and platform without running either. Only wheels
are taken, so no package's build script runs here. Called by ``bananas.deploy``; the services never install anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bananas.errors import DeployError

TIMEOUT_S: Final = 300
#: How much of uv's words an error shows.
_SAID_BYTES: Final = 4000
#: glibc 2.x for which uv knows a manylinux platform.
_GLIBC_MINORS: Final = (17, 28, *range(31, 41))
_ABI = re.compile(r"cp(\d)(\d{1,2})-(x86_64|aarch64)-glibc2\.(\d{1,3})")


def target_of(abi: str) -> tuple[str, str]:
    """uv's Python version and platform for a published ABI; raises DeployError for one that uv has no wheels for.

    The platform is the newest that the runtime's glibc still satisfies.

    >>> target_of("cp311-x86_64-glibc2.36")
    ('3.11', 'x86_64-manylinux_2_36')
    >>> target_of("cp313-aarch64-glibc2.30")
    ('3.13', 'aarch64-manylinux_2_28')
    """
    match = _ABI.fullmatch(abi)
    minors = [minor for minor in _GLIBC_MINORS if match and minor <= int(match[4])]
    if not match or not minors:
        raise DeployError(
            f"requirements cannot be installed for the runtime's ABI {abi}: wheels are looked up for CPython on x86_64 "
            f"or aarch64 with glibc 2.{_GLIBC_MINORS[0]} or newer; use another base image, or vendor the packages"
        )
    return f"{match[1]}.{match[2]}", f"{match[3]}-manylinux_2_{minors[-1]}"


def install(requirements: Path, abi: str, target: Path) -> None:
    """Install the file's packages into ``target``, ready to be packed.

    ``abi`` is what a runner published, such as ``cp311-x86_64-glibc2.36``. The environment goes through to uv, so its
    index settings work. Takes at most 300 s. Raises DeployError with uv's own words.
    """
    python, platform = target_of(abi)
    command = [
        *(find_uv(), "pip", "install", "--target", str(target), "--python", sys.executable),
        *("--python-version", python, "--python-platform", platform, "--only-binary", ":all:"),
        *("--no-progress", "--color", "never", "--requirements", str(requirements)),
    ]
    status, said = _run(command, requirements)
    if status:
        raise DeployError(
            f"{requirements}: uv could not install it for Python {python} on {platform} (only wheels are used):\n{said}"
        )
    _tidy(target)


def _run(command: list[str], requirements: Path) -> tuple[int, str]:
    """The exit status, and the end of what the command wrote to stderr."""
    with tempfile.TemporaryFile() as said:  # a file, because a chatty uv must not fill the memory
        try:
            done = subprocess.run(
                command,
                timeout=TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        except subprocess.TimeoutExpired as e:
            raise DeployError(
                f"{requirements}: installing took longer than {TIMEOUT_S} s; is the package index slow?"
            ) from e
        except OSError as e:
            raise DeployError(f"{command[0]} does not start: {e.strerror or e}") from e
        size_bytes = said.seek(0, os.SEEK_END)
        said.seek(max(0, size_bytes - _SAID_BYTES))
        return done.returncode, said.read().decode(errors="replace").strip()


def find_uv() -> str:
    """The uv beside this Python, or else on PATH; raises DeployError."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if not found:
        raise DeployError("uv is needed to install requirements and is not here; install it with: pip install uv")
    return found


def _tidy(target: Path) -> None:
    """Remove what differs from run to run and serves nobody in a sandbox."""
    (target / ".lock").unlink(missing_ok=True)
    for cache in list(target.rglob("__pycache__")):
        shutil.rmtree(cache)
