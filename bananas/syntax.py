"""Find Python files that do not compile before they are deployed: no version that cannot be loaded takes over from one
that works. It compiles and never runs them. Called by ``bananas.deploy``.
"""

from __future__ import annotations

import io
import sys
import tarfile
import warnings
from pathlib import Path

from bananas.errors import DeployError
from bananas.pack import IGNORE_FILE, Bundle


def check(bundle: Bundle, folder: Path, python: str) -> None:
    """Compile every ``.py`` file in the bundle that was packed from ``folder`` for a runtime's Python, such as 3.11.

    Raises DeployError with ``file:line:column`` of each that does not. Nothing is said of code for a newer Python than
    this process runs on, whose grammar is unknown here.
    """
    major, minor = (int(part) for part in python.split(".")[:2])
    if (major, minor) > sys.version_info[:2]:
        return
    problems = []
    with tarfile.open(fileobj=io.BytesIO(bundle.data), mode="r:gz") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.name.endswith(".py") else None
            if source is not None:
                problems += _problem(source.read(), folder / member.name)
    if problems:
        hint = f"a file that is not meant to be imported can be listed in {IGNORE_FILE}"
        raise DeployError("\n".join([*problems, hint]))


def _problem(source: bytes, path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as e:
        where = f"{path}:{e.lineno or 1}:{e.offset or 1}"
        return [f"{where}: {type(e).__name__}: {e.msg}" + (f": {e.text.strip()}" if e.text else "")]
    except (ValueError, RecursionError, MemoryError) as e:  # null bytes, or nested too deeply for the compiler
        return [f"{path}:1:1: {type(e).__name__}: {e}"]
    return []
