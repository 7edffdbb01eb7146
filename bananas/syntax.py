"""Find Python files that cannot work before they are deployed: no version that cannot be loaded takes over from one
that works. It compiles and reads them, and never runs them. Called by deploys and by ``bananas invoke --local``.
"""

from __future__ import annotations

import ast
import io
import sys
import tarfile
import warnings
from pathlib import Path

from bananas.errors import DeployError
from bananas.pack import IGNORE_FILE, Bundle


def check(bundle: Bundle, folder: Path, python: str, handler: str) -> None:
    """Compile every ``.py`` file in the bundle that was packed from ``folder`` for a runtime's Python, such as 3.11.

    And look for the handler, such as ``handler.handle``. Raises DeployError with ``file:line:column`` of each file that
    does not compile, or why the handler is none. Nothing is said of code for a newer Python than this process runs on,
    whose grammar is unknown here.
    """
    major, minor = (int(part) for part in python.split(".")[:2])
    if (major, minor) > sys.version_info[:2]:
        return
    module, _, name = handler.replace(".", "/").rpartition("/")
    problems = []
    wrong: str | None = None
    with tarfile.open(fileobj=io.BytesIO(bundle.data), mode="r:gz") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.name.endswith(".py") else None
            if source is None:
                continue
            raw, path = source.read(), folder / member.name
            found = _problem(raw, path)
            problems += found
            if not found and member.name in (f"{module}.py", f"{module}/__init__.py"):
                wrong = _handler_problem(raw, path, handler, name)
    if problems:
        hint = f"a file that is not meant to be imported can be listed in {IGNORE_FILE}"
        raise DeployError("\n".join([*problems, hint]))
    if wrong:
        raise DeployError(wrong)


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


class _Names(ast.NodeVisitor):
    """What a module binds at its top level, as far as reading it can tell."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        #: False when names may come from elsewhere too: ``import *``, ``globals()``, a module's ``__getattr__``.
        self.is_all = True

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bound.add(node.name)
        self.functions[node.name] = node
        self.is_all = self.is_all and node.name != "__getattr__"

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bound.add(node.name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Its names are its own."""

    def visit_alias(self, node: ast.alias) -> None:
        self.is_all = self.is_all and node.name != "*"
        self.bound.add(node.asname or node.name.partition(".")[0])

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bound.add(node.id)
        elif node.id in ("globals", "exec", "setattr"):
            self.is_all = False


def _handler_problem(source: bytes, path: Path, handler: str, name: str) -> str | None:
    """Why a module has no handler of that name, or one that cannot be called; None when nothing speaks against it."""
    found = _Names()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.visit(ast.parse(source))
    if name not in found.bound:
        has = ", ".join(sorted(found.functions)) or "no function"
        why = f"{path}:1:1: handler {handler} is not there; the file has {has}, so write def {name}(event, context)"
        return why if found.is_all else None
    function = found.functions.get(name)
    if function is None or function.decorator_list or _takes_two(function.args):
        return None
    return f"{path}:{function.lineno}:1: {name}() cannot be called with (event, context), and that is what it gets"


def _takes_two(args: ast.arguments) -> bool:
    places = len(args.posonlyargs) + len(args.args)
    needed = places - len(args.defaults)
    only_by_name = sum(default is None for default in args.kw_defaults)
    return needed <= 2 and (places >= 2 or args.vararg is not None) and not only_by_name
