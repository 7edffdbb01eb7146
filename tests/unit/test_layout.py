"""The shape of the code base: sizes, docstrings, what the shim may import, what no file may name.

Who may import whom is checked by import-linter (``make check``; contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bananas", "gateway", "runner")
FILE_LINES = 400
FUNCTION_LINES = 50
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: Written in pieces, so that this file does not contain what it looks for. Code must work with any registry or none.
REGISTRIES = re.compile(
    "|".join(
        re.escape(host + end)
        for host, end in [
            ("pypi", ".org"),
            ("pythonhosted", ".org"),
            ("npmjs", ".org"),
            ("registry-1.docker", ".io"),
            ("index.docker", ".io"),
            ("hub.docker", ".com"),
            ("ghcr", ".io"),
            ("gcr", ".io"),
            ("quay", ".io"),
            ("proxy.golang", ".org"),
            ("deb.debian", ".org"),
        ]
    )
)
#: Absolute paths that exist on one machine only.
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:" + "|".join(["ro" + "ot", "wo" + "rk", "Us" + "ers"]) + r")(?![\w-])")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from def to the end, the docstring left out."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def tracked_text_files() -> Iterator[tuple[str, str]]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            try:
                yield name, path.read_text()
            except UnicodeDecodeError:
                continue


def test_the_three_packages_are_there() -> None:
    """The tests below look at something."""
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(PACKAGES)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_small_and_say_what_they_are(path: Path) -> None:
    """A file is read in one sitting, a function on one screen, and a module opens with its purpose."""
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= FILE_LINES
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    assert {f.name: body_lines(f) for f in functions if body_lines(f) > FUNCTION_LINES} == {}
    assert not text.strip() or ast.get_docstring(tree), "no module docstring"


@pytest.mark.parametrize("path", [p for p in SOURCES if "/shim/" in name_of(p)], ids=name_of)
def test_the_shim_imports_the_standard_library_only(path: Path) -> None:
    """It runs beside user code, in any image: nothing of ours and nothing third-party is there."""
    siblings = {p.stem for p in path.parent.glob("*.py")}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) - siblings == set()


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    """A clone works anywhere; where packages come from is the business of pip's own configuration."""
    found = [
        f"{name}: {match[0]}"
        for name, text in tracked_text_files()
        for match in [*REGISTRIES.finditer(text), *MACHINE_PATHS.finditer(text)]
    ]
    assert found == []
