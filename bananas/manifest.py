"""Read bananas.yaml into specs, or say everything that is wrong with it at once.

Decides what the file means: variables, defaults, and whether the folders, files and pools it names exist. Never
talks to a gateway and never runs the user's code. Called by the command line; the keys are in
``bananas.manifest_schema``, places in the text come from ``bananas.yamlmap``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from bananas import yamlmap
from bananas.errors import InvalidRequest, ManifestError
from bananas.manifest_schema import Root, problems, schema
from bananas.manifest_values import did_you_mean
from bananas.runtimes import parse_runtime
from bananas.spec import NAME_PATTERN, NOT_SINGLE_USE, FunctionSpec, PoolSpec
from bananas.targets import parse_target
from bananas.yamlmap import Loc, Node, Problem

__all__ = ["Manifest", "ManifestFunction", "load", "schema"]

_Finding = tuple[Loc, str]
#: What a handler's module may be called, after its own name.
_PYTHON_PLACES = (".py", "/__init__.py")
_NODE_PLACES = (".js", ".mjs", ".cjs")


@dataclass(frozen=True, slots=True)
class ManifestFunction:
    """One function of the file."""

    spec: FunctionSpec
    #: Absolute, with symbolic links resolved.
    folder: Path
    #: Absolute; None when it needs no packages.
    requirements: Path | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What bananas.yaml says, in the order in which it says it."""

    path: Path
    functions: dict[str, ManifestFunction]
    #: Only the pools that the file names.
    pools: dict[str, PoolSpec]


def load(path: Path, environ: Mapping[str, str]) -> Manifest:
    """Read and check the file; ``environ`` fills in ``${VAR}``.

    Raises ManifestError with every problem, sorted by place, each ``file:line:col: path: what is wrong and right``.
    """
    try:
        root, found = yamlmap.parse(_read(path))
    except yamlmap.Refused as e:
        raise ManifestError([e.problem.line(str(path))]) from e
    found += yamlmap.fill(root, environ)
    data = root.plain()
    model, wrong = problems(data)
    _add(found, root, wrong)
    _add(found, root, [(loc, what, False) for loc, what in _references(data, path.parent.resolve())])
    if found or model is None:
        raise ManifestError([problem.line(str(path)) for problem in sorted(found)])
    return _manifest(path, model)


def _add(found: list[Problem], root: Node, findings: Iterable[tuple[Loc, str, bool]]) -> None:
    """Give findings their places; one about a value that has a problem already would only say it twice."""
    taken = {(problem.mark, problem.loc) for problem in found}
    for loc, what, is_key in findings:
        mark, _ = root.locate(loc, key=is_key)
        if (mark, loc) not in taken:
            found.append(Problem(mark, loc, what))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(yamlmap.MAX_BYTES + 1)
    except OSError as e:
        raise ManifestError(
            [f"{path}: {(e.strerror or str(e)).lower()}; run this beside bananas.yaml, or name the file with -f"]
        ) from e
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before = raw[: e.start].decode(errors="replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ManifestError([f"{path}:{line}:{column}: not UTF-8; save the file in that encoding"]) from e


def _references(data: object, base: Path) -> Iterator[_Finding]:
    """What the file names and does not have: folders, handlers, requirements, pools."""
    functions, pools = (_mapping(_mapping(data).get(key)) for key in ("functions", "pools"))
    for name, function in functions.items():
        if function is None or isinstance(function, dict):
            yield from _pools(("functions", name), _mapping(function), ["default", *pools])
            yield from _egress(("functions", name), _mapping(function), pools)
            yield from _image(("functions", name), _mapping(function))
            yield from _sharing(("functions", name), _mapping(function))
            yield from _files(("functions", name), _mapping(function), base)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _pools(loc: Loc, keys: dict[str, Any], known: list[str]) -> Iterator[_Finding]:
    named: list[tuple[Loc, Any]] = [((*loc, "pool"), keys.get("pool"))]
    allowed = keys.get("allow_pools")
    if isinstance(allowed, list):
        named += [((*loc, "allow_pools", index), pool) for index, pool in enumerate(allowed)]
    for where, pool in named:
        if isinstance(pool, str) and pool not in known:
            hint = did_you_mean(pool, known) or f"; define it there, or write one of {', '.join(known)}"
            yield where, f"there is no pool {pool!r} under pools{hint}"


def _egress(loc: Loc, keys: dict[str, Any], pools: dict[str, Any]) -> Iterator[_Finding]:
    """Targets that the function's own pool does not have. In ``allow_pools`` it has what both lists have."""
    pool = keys.get("pool", "default")
    if isinstance(pool, str) and pool in pools:
        has = {_key(text) for text in _texts(_mapping(pools[pool]).get("egress"))}
        for index, target in enumerate(_texts(keys.get("egress"))):
            if target not in has:
                what = f"pool {pool!r} has no {target} in its egress; add it there, or leave it out here"
                yield (*loc, "egress", index), what


def _texts(value: object) -> list[str]:
    return [item if isinstance(item, str) else "" for item in value] if isinstance(value, list) else []


def _key(text: str) -> str:
    try:
        return parse_target(text).key
    except ValueError:
        return ""


def _image(loc: Loc, keys: dict[str, Any]) -> Iterator[_Finding]:
    """Keys that go together with an image of one's own, or do not."""
    contract = keys.get("contract", "handler")
    if "image" not in keys:
        if contract in ("http", "exec"):
            yield (*loc, "contract"), f"contract {contract} is of an image; write image: as well"
        if "command" in keys:
            yield (*loc, "command"), "is of an image; what a handler runs is its module"
        return
    if contract == "handler":
        yield (*loc, "image"), "an image needs a contract; write contract: http, or contract: exec"
    for key in ("runtime", "handler", "requirements", "calls_per_sandbox"):
        if key in keys:
            yield (*loc, key), "means nothing to an image of your own; leave one of the two out"


def _sharing(loc: Loc, keys: dict[str, Any]) -> Iterator[_Finding]:
    """What keeps a sandbox from running several calls at once; of an image it is said already."""
    is_shared = str(keys.get("calls_per_sandbox", 1)) != "1"
    if is_shared and keys.get("single_use") in (True, "true") and "image" not in keys:
        yield (*loc, "calls_per_sandbox"), NOT_SINGLE_USE


def _files(loc: Loc, keys: dict[str, Any], base: Path) -> Iterator[_Finding]:
    written = keys.get("path", f"functions/{loc[-1]}")
    if not isinstance(written, str) or ("path" not in keys and not re.fullmatch(NAME_PATTERN, str(loc[-1]))):
        return  # said already
    folder = base / written
    wrong = _outside(base, written, "the folder of bananas.yaml")
    if not wrong and not folder.is_dir() and not ("image" in keys and "path" not in keys):
        wrong = f"there is no folder {written}; create it" + ("" if "path" in keys else ", or write its path")
    if wrong:
        yield (*loc, "path"), wrong
    if wrong or "image" in keys:
        return
    handler = keys.get("handler", FunctionSpec().handler)
    language = _language(keys.get("runtime"))
    is_node = language == "node"
    if isinstance(handler, str) and language:
        module, _, function = handler.replace(".", "/").rpartition("/")
        places = _NODE_PLACES if is_node else _PYTHON_PLACES
        if not any((folder / (module + place)).is_file() for place in places):
            code = f"exports.{function} = async (event, context) => …" if is_node else f"def {function}(event, context)"
            what = f"there is no {module}{places[0]} in {written}; create it with {code}, or write module.function"
            yield (*loc, "handler"), what
    requirements = keys.get("requirements")
    if isinstance(requirements, str) and is_node:
        yield (*loc, "requirements"), "requirements are for python; packages of node are those in package.json"
    elif isinstance(requirements, str):
        wrong = _outside(folder.resolve(), requirements, f"the folder {written}")
        if not wrong and not (folder / requirements).is_file():
            wrong = f"there is no file {requirements} in {written}; create it, or leave the key out"
        if wrong:
            yield (*loc, "requirements"), wrong


def _language(runtime: object) -> str:
    """That of a runtime's name; empty for what is none, which is said elsewhere."""
    try:
        return parse_runtime(runtime)[0] if isinstance(runtime, str) else FunctionSpec().runtime
    except InvalidRequest:
        return ""


def _outside(base: Path, written: str, noun: str) -> str:
    """Why the path is not below ``base``, links followed; empty when it is."""
    right = "write a path below it"
    pure = PurePosixPath(written)
    if not written or "\0" in written:
        return f"{written!r} is not a path below {noun}; write one"
    if pure.is_absolute() or ".." in pure.parts:
        return f"{written} leads out of {noun}; {right}"
    if not (base / written).resolve().is_relative_to(base):
        return f"{written} is a link that leads out of {noun}; {right}"
    return ""


def _manifest(path: Path, model: Root) -> Manifest:
    base = path.parent.resolve()
    functions = {}
    for name, function in (model.functions or {}).items():
        fields = function.fields() if function else {}
        written = function and function.path
        folder = (base / (written or f"functions/{name}")).resolve()
        requirements = function and function.requirements
        functions[name] = ManifestFunction(
            spec=msgspec.convert(fields, FunctionSpec),
            folder=folder,
            requirements=folder / requirements if requirements else None,
        )
    pools = {
        name: msgspec.convert(pool.fields() if pool else {}, PoolSpec) for name, pool in (model.pools or {}).items()
    }
    return Manifest(path, functions, pools)
