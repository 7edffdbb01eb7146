"""``bananas images build``, ``ls`` and ``prune``: the command line of ``images.py``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import msgspec

from bananas.cli.bars import Bars
from bananas.cli.output import print_json, print_table
from bananas.errors import BananasError, ConfigError
from bananas.runtimes import DEFAULT_RUNTIME, NODE_MAJORS, parse_runtime
from bananas.spec import RuntimeInfo
from runner import debianimage, hostimage, nodeimage
from runner.images import (
    DEFAULT_IMAGE,
    NODE_IMAGE,
    NODE_REPOSITORY,
    REPOSITORY,
    ImageRow,
    build_from_host,
    connect,
    find,
    list_images,
    remove,
    unused,
)

#: Where the files of an image may come from; None: the first that works.
_SOURCES = {"python": (None, "host", "debian"), "node": (None, *nodeimage.SOURCES)}
_ALL_SOURCES = ("host", "debian", "npm", "wheel")


def main(argv: Sequence[str]) -> int:
    """``images build``, ``ls`` or ``prune``; returns 0, or 1 after saying on stderr what went wrong (2: usage)."""
    options = _parser().parse_args(argv)
    try:
        with closing(connect()) as client:
            _COMMANDS[options.command](client, options)
    except BananasError as e:
        print(f"bananas images: {e}", file=sys.stderr)
        return 1
    return 0


def _build_command(client: Any, options: argparse.Namespace) -> None:
    language, version = parse_runtime(options.runtime)
    if options.source not in _SOURCES[language] or (options.python and language != "python"):
        sources = ", ".join(str(source) for source in _SOURCES[language][1:])
        raise ConfigError(f"--from for {language} is one of {sources}, and only python takes --python")
    if options.python and (options.suite or options.source == "debian"):
        raise ConfigError("--python names an interpreter of this host; leave it out, or --from debian and --suite")
    with Bars() as bars, bars.step(f"building an image of {options.runtime}"):
        info = _build(client, options, language, version, bars.say)
    if options.output == "json":
        print_json({**msgspec.to_builtins(info), "abi": info.abi})
        return
    print(f"{info.image} {info.image_id.removeprefix('sha256:')[:12]} {info.abi}")


def _build(
    client: Any, options: argparse.Namespace, language: str, version: str | None, say: Callable[[str], None]
) -> RuntimeInfo:
    common: dict[str, Any] = {"force": options.force, "make_default": not options.keep_default, "say": say}
    if language == "node":
        return nodeimage.build_node(client, version or NODE_MAJORS[-1], options.tag, options.source, **common)
    if suite := _suite(options, version):
        # Another Python beside the host's: only where there is no default yet does it become that.
        common["make_default"] = not options.keep_default and find(client, DEFAULT_IMAGE) is None
        return debianimage.build(client, suite, options.tag, **common)
    return build_from_host(client, options.tag, options.python, **common)


def _suite(options: argparse.Namespace, version: str | None) -> str | None:
    """The Debian release to build a Python from; None for this host's interpreter. Raises ConfigError."""
    suite: str | None = options.suite
    if suite or options.source == "debian":
        found = suite or debianimage.PYTHONS.get(version or "", debianimage.DEFAULT_SUITE)
        if version and debianimage.PYTHONS.get(version) != found:
            known = ", ".join(f"{python} in {name}" for python, name in debianimage.PYTHONS.items())
            raise ConfigError(f"Debian {found} has no Python {version}; there is {known}")
        return found
    if version is None or hostimage.inspect_interpreter(options.python).version == version:
        return None
    if options.python or options.source == "host" or version not in debianimage.PYTHONS:
        raise ConfigError(f"{options.python or sys.executable} is no Python {version}; give --python the path of one")
    return debianimage.PYTHONS[version]


def _ls_command(client: Any, options: argparse.Namespace) -> None:
    rows = list_images(client)
    if options.output == "json":
        print_json({"images": [asdict(row) for row in rows]})
        return
    lines = (
        (tag, _short(row), _runtime(row), row.libc, row.source, f"{row.size_bytes / 1_000_000:.0f}")
        for row in rows
        for tag in row.tags or ("<none>",)
    )
    print_table(("IMAGE", "ID", "RUNTIME", "LIBC", "FROM", "MB"), lines)


def _prune_command(client: Any, options: argparse.Namespace) -> None:
    rows = unused(client, os.environ.get("BANANAS_PYTHON_IMAGE", ""))
    for row in rows:
        if options.yes:
            remove(client, row)
        if options.output == "json":
            continue
        name = " ".join(row.tags) or _short(row)
        verb = "removed" if options.yes else "would remove"
        print(f"{verb} {name} ({_runtime(row)}, {row.size_bytes / 1_000_000:.0f} MB)")
    if options.output == "json":
        print_json({"images": [asdict(row) for row in rows], "removed": options.yes})
    elif not rows:
        print("nothing to remove: every image that was built here is in use")
    elif not options.yes:
        print(f"nothing was removed; bananas images prune --yes removes the {len(rows)} above")


def _short(row: ImageRow) -> str:
    return row.image_id.removeprefix("sha256:")[:12]


def _runtime(row: ImageRow) -> str:
    return f"python {row.python}" if row.python else f"node {row.node}" if row.node else ""


_COMMANDS = {"build": _build_command, "ls": _ls_command, "prune": _prune_command}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bananas images", description="Base images of sandboxes, without a registry.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make a base image: of this host's Python, of Debian's, or of Node")
    build.add_argument("--runtime", default=DEFAULT_RUNTIME, help="python (the default), python3.13, node22…")
    build.add_argument("--from", dest="source", choices=_ALL_SOURCES, help="default: the first that works")
    build.add_argument("--suite", choices=debianimage.SUITES, help="the Debian release to take Python from")
    build.add_argument("--python", metavar="PATH", help="the interpreter to take; default: the one that runs bananas")
    build.add_argument("--tag", help=f"default: {REPOSITORY}:<X.Y>-host, {NODE_REPOSITORY}:<N>-<source>…")
    build.add_argument("--force", action="store_true", help="build even when nothing has changed")
    build.add_argument("--keep-default", action="store_true", help=f"leave {DEFAULT_IMAGE} or {NODE_IMAGE} as it is")
    prune = commands.add_parser("prune", help="remove built images that no runtime and no container uses")
    prune.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    ls = commands.add_parser("ls", help="list the images")
    for command in (build, prune, ls):
        command.add_argument("-o", "--output", choices=["table", "json"], default="table")
    return parser
