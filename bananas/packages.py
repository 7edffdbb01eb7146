"""Install what a Node function's ``package.json`` asks for, for the machine that will run it.

Runs npm with its own settings, without the packages' scripts, so that nothing of theirs runs here. A function folder
that brings its ``node_modules`` is packed as it is and nothing is installed, unless its
``.bananasignore`` lists them. Called by ``bananas.deploy``; the services never install anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bananas.errors import DeployError
from bananas.pack import IGNORE, own_patterns

TIMEOUT_S: Final = 300
#: How much of npm's words an error shows.
_SAID_CHARS: Final = 4000
_ABI = re.compile(r"node\d+-(x86_64|aarch64)-(glibc|musl)\d+\.\d+")
_CPUS: Final = {"x86_64": "x64", "aarch64": "arm64"}
_MODULES: Final = "node_modules"
_LOCKS: Final = ("package-lock.json", "npm-shrinkwrap.json")
#: ``--install-links``: what a function keeps beside its code is copied, since a link out of node_modules is not packed.
_OPTIONS: Final = (
    *("--omit=dev", "--ignore-scripts", "--install-links"),
    *("--no-audit", "--no-fund", "--no-progress", "--loglevel=error"),
)


def wanted(folder: Path) -> bytes | None:
    """What decides about the packages, as one text; None when there is nothing to install.

    Raises DeployError for a ``package.json`` that cannot be read.
    """
    path = folder / "package.json"
    brings = (folder / _MODULES).exists() and _MODULES not in own_patterns(folder)
    if brings or not path.is_file():
        return None
    try:
        text = path.read_bytes()
        asked = json.loads(text)
        needs = asked.get("dependencies") or asked.get("optionalDependencies")
    except (OSError, ValueError, AttributeError) as e:
        raise DeployError(f"{path} cannot be read as a JSON object: {e}") from e
    return b"\0".join([text, *(other.read_bytes() for other in _locks(folder))]) if needs else None


def _locks(folder: Path) -> list[Path]:
    return [path for name in _LOCKS if (path := folder / name).is_file()]


def install(folder: Path, abi: str, target: Path) -> None:
    """Make ``target`` the ``node_modules`` for the folder's ``package.json``; by its lock file when it has one.

    ``abi`` is what a runner published, such as ``node22-x86_64-glibc2.36``. Takes at most 300 s. Raises DeployError
    with npm's own words.
    """
    match = _ABI.fullmatch(abi)
    if match is None:
        raise DeployError(f"packages cannot be installed for the runtime's ABI {abi}; bring them in node_modules")
    npm = shutil.which("npm")
    if npm is None:
        raise DeployError(
            f"npm is needed to install what {folder / 'package.json'} asks for and is not on PATH; "
            "install npm, or deploy from a folder that has its node_modules"
        )
    work = target.with_name(f"{target.name}.work")
    try:
        shutil.copytree(folder, work, symlinks=True, ignore=shutil.ignore_patterns(*IGNORE))
    except (OSError, shutil.Error) as e:
        raise DeployError(f"{folder} cannot be copied to install its packages: {e}") from e
    command = [npm, "ci" if _locks(folder) else "install", *_OPTIONS]
    platform = ("--os=linux", f"--cpu={_CPUS[match[1]]}", f"--libc={match[2]}")
    _run([*command, *platform], work, folder / "package.json")
    if (work / _MODULES).is_dir():
        (work / _MODULES / ".package-lock.json").unlink(missing_ok=True)  # differs from run to run
        (work / _MODULES).rename(target)


def _run(command: list[str], folder: Path, package: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "NO_UPDATE_NOTIFIER": "1"},
        )
    except subprocess.TimeoutExpired as e:
        raise DeployError(f"{package}: installing took longer than {TIMEOUT_S} s; is the registry slow?") from e
    except OSError as e:
        raise DeployError(f"{command[0]} does not start: {e.strerror or e}") from e
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-_SAID_CHARS:]
        raise DeployError(f"{package}: npm could not install it:\n{said or 'no output'}")
