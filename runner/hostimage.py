"""Root file systems made of this host's own files, with no network: a Python runtime, or one server binary.

The Python runtime is the host's interpreter moved to ``/usr``: binary, standard library, extension modules, the
shared libraries they need, the libraries that manylinux wheels may expect, CA bundle and zone data. CPython finds
its library relative to its binary, so any prefix works. Nothing of the host's installed packages goes in. Never
talks to Docker; ``images.py`` and the test suite import what this builds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bananas.errors import ConfigError
from runner.rootfs import Closure, Tree, base_tree, closure

#: Raised when this file makes another image of the same host, so that "up to date" stays true.
RECIPE = 1
PROBE_TIMEOUT_S = 30
#: Compiling a whole standard library from nothing takes about 10 s on one slow core.
BYTECODE_TIMEOUT_S = 300

#: Folders of the standard library that no function needs; tests are left out at every depth.
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "site-packages", "test", "tests"}
    | {"tkinter", "turtledemo"}
)
#: ``sitecustomize`` is the host's, and an image has no pip to be kept away from.
SKIPPED_FILES = frozenset({"EXTERNALLY-MANAGED", "sitecustomize.py", "turtle.py", "usercustomize.py"})
SKIPPED_EXTENSIONS = ("_ctypes_test", "_test", "_tkinter", "_xx", "xx")

#: The list of PEP 513 and its successors, as far as it is not about desktops: wheels expect these from the system.
WHEEL_LIBRARIES = ("libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "libz.so.1")
#: Own files only before glibc 2.34, empty shells since; old wheels still ask for them by name.
GLIBC_LIBRARIES = (
    "libanl.so.1",
    "libdl.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libutil.so.1",
)

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CA_PLACES = (CA_BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")
ZONE_FOLDER = "/usr/share/zoneinfo"

# Runs in the interpreter that goes into the image, which may be older or newer than ours.
_ASK = """
import importlib, json, os, platform, sys, sysconfig, zoneinfo
lacking = []
for name in ("asyncio", "ctypes", "decimal", "hashlib", "sqlite3", "ssl", "zlib"):
    try:
        importlib.import_module(name)
    except ImportError:
        lacking.append(name)
ssl = sys.modules.get("ssl")
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (ValueError, OSError):
    libc = ""
print(json.dumps({
    "executable": os.path.realpath(sys._base_executable), "version": list(sys.version_info[:3]),
    "machine": platform.machine(), "libc": libc.replace(" ", ""), "prefix": sys.base_prefix,
    "stdlib": sysconfig.get_path("stdlib"), "platstdlib": sysconfig.get_path("platstdlib"),
    "dynload": sysconfig.get_config_var("DESTSHARED") or "", "lacking": lacking,
    "cafile": ssl.get_default_verify_paths().openssl_cafile if ssl else "", "tzpath": list(zoneinfo.TZPATH),
}))
"""

# Turns the host's own .pyc files into ones that are never checked against the source (the root is read-only), and
# compiles what has none. Input: one JSON list [source, path in the image, output] a line.
_BYTECODE = """
import importlib.util as util, json, marshal, os, sys
for line in sys.stdin:
    source, place, output = json.loads(line)
    with open(source, "rb") as file:
        text, stat = file.read(), os.fstat(file.fileno())
    digest, body = util.source_hash(text), None
    try:
        with open(util.cache_from_source(source, optimization=""), "rb") as file:
            cached = file.read()
    except OSError:
        cached = b""
    stamp = b"".join((n & 0xFFFFFFFF).to_bytes(4, "little") for n in (int(stat.st_mtime), stat.st_size))
    if cached[:4] == util.MAGIC_NUMBER and cached[4:16] in (bytes(4) + stamp, b"\\1\\0\\0\\0" + digest):
        body = cached[16:]
    else:
        body = marshal.dumps(compile(text, place, "exec", dont_inherit=True, optimize=0))
    with open(output, "wb") as file:
        file.write(util.MAGIC_NUMBER + b"\\1\\0\\0\\0" + digest + body)
print(sys.implementation.cache_tag)
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython of this host, below any virtual environment or shim."""

    path: Path
    #: ``3.11.7``
    full_version: str
    machine: str
    #: ``glibc2.36``
    libc: str
    prefix: Path
    stdlib: Path
    #: The folder of extension modules.
    dynload: Path
    #: Where its OpenSSL looks for the CA bundle.
    cafile: str
    tzpath: tuple[str, ...]

    @property
    def version(self) -> str:
        """``3.11``"""
        return ".".join(self.full_version.split(".")[:2])

    def place(self, path: Path) -> str:
        """Where a file below the prefix goes: ``/opt/py/lib/python3.11/os.py`` → ``/usr/lib/python3.11/os.py``."""
        return f"/usr/{path.relative_to(self.prefix)}"


def inspect_interpreter(python: str | Path | None = None) -> Interpreter:
    """Ask an interpreter what it is; None means the one that runs this.

    Raises ConfigError when it does not start, lacks part of its standard library (Debian's python3-minimal), is
    older than 3.11 or does not use glibc.
    """
    command = [str(python or sys.executable), "-I", "-c", _ASK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)
        facts: dict[str, Any] = json.loads(done.stdout)
    except subprocess.CalledProcessError as e:
        last = (e.stderr.strip() or "no output").splitlines()[-1]
        raise ConfigError(f"{command[0]} cannot be used for an image: {last}; give a whole CPython 3.11+") from e
    except (OSError, ValueError, subprocess.TimeoutExpired) as e:
        raise ConfigError(f"{command[0]} did not say what it is: {e}; give the path of a CPython 3.11+") from e
    version = ".".join(map(str, facts["version"]))
    problem = ""
    if facts["version"] < [3, 11]:
        problem = f"is Python {version}; 3.11 or newer is needed"
    elif not facts["libc"].startswith("glibc"):
        problem = "does not use glibc; build on a glibc host or set BANANAS_PYTHON_IMAGE to an image of your own"
    elif facts["lacking"]:
        problem = f"lacks {', '.join(facts['lacking'])}; on Debian: apt-get install python3"
    if problem:
        raise ConfigError(f"{facts['executable']} {problem}")
    platstdlib, dynload = Path(facts["platstdlib"]), Path(facts["dynload"] or "/nonexistent")
    return Interpreter(
        path=Path(facts["executable"]),
        full_version=version,
        machine=facts["machine"],
        libc=facts["libc"],
        prefix=Path(facts["prefix"]),
        stdlib=Path(facts["stdlib"]),
        # A relocated build (python-build-standalone) remembers where it was compiled, not where it is.
        dynload=dynload if dynload.is_relative_to(facts["prefix"]) and dynload.is_dir() else platstdlib / "lib-dynload",
        cafile=facts["cafile"],
        tzpath=tuple(facts["tzpath"]),
    )


def python_tree(python: Interpreter) -> Tree:
    """The plan of a Python root file system, without bytecode (see ``write_python``). Reads names and stat only."""
    tree = base_tree()
    binary = f"/usr/bin/python{python.version}"
    tree.add_file(binary, python.path)
    for name in ("python3", "python"):
        tree.add_link(f"/usr/bin/{name}", f"python{python.version}")
    for path in _stdlib_files(python.stdlib):
        tree.add_file(python.place(path), path)
    _add_shared_objects(tree, python)
    add_certificates(tree, python.cafile)
    add_zones(tree, python.tzpath)
    tree.add_data("/etc/bananas-image", f"python {python.full_version} from host, recipe {RECIPE}\n")
    return tree


def _stdlib_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS and not path.name.startswith("config-"):
                yield from _stdlib_files(path)
        elif path.is_file() and path.name not in SKIPPED_FILES and path.suffix not in (".exe", ".pyc", ".pth"):
            yield path


def _add_shared_objects(tree: Tree, python: Interpreter) -> None:
    tree.add_dir(python.place(python.dynload))  # an absent one makes every start print a warning
    extensions = [path for path in sorted(python.dynload.glob("*.so")) if not path.name.startswith(SKIPPED_EXTENSIONS)]
    needed = closure([python.path])
    extra = [system_library(needed, name, required=True) for name in WHEEL_LIBRARIES]
    extra += [system_library(needed, name, required=False) for name in GLIBC_LIBRARIES]
    libraries = {path.name: path for path in extra if path is not None}
    whole = closure([python.path, *libraries.values(), *extensions])
    for path in extensions:
        if path in whole.broken:
            tree.notes.append(f"left out {path.name}: {', '.join(whole.broken[path])} is not on this host")
        else:
            tree.add_file(python.place(path), path)
    Closure({**libraries, **whole.libraries}, needed.loader, {}).add_to(tree)


def system_library(needed: Closure, name: str, *, required: bool) -> Path | None:
    """Where this host has a library that nothing links to; raises ConfigError for a required one."""
    folder = needed.library_dir
    for place in (folder, folder.removeprefix("/usr"), "/usr/lib64", "/usr/lib"):
        path = Path(place) / name
        if path.is_file():
            return path
    if required:
        raise ConfigError(f"{name} is not in {folder}; on Debian: apt-get install libgcc-s1 libstdc++6 zlib1g")
    return None


def add_certificates(tree: Tree, cafile: str) -> None:
    """The host's CA bundle, also under the name ``cafile`` unless that is empty."""
    bundle = next((Path(place) for place in (cafile, *CA_PLACES) if place and Path(place).is_file()), None)
    if bundle is None:
        tree.notes.append("no CA bundle on this host, so TLS will trust nobody; apt-get install ca-certificates")
        return
    tree.add_file(CA_BUNDLE, bundle)
    if cafile and cafile not in (CA_BUNDLE, ""):
        tree.add_link(cafile, CA_BUNDLE)


def add_zones(tree: Tree, tzpath: tuple[str, ...]) -> None:
    """The host's zone data, out of the first of these folders that has it."""
    folder = next((Path(place) for place in tzpath if (Path(place) / "Europe/Berlin").is_file()), None)
    if folder is None:
        tree.notes.append("no zone data on this host, so zoneinfo will know no zone; apt-get install tzdata")
        return
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        # "posix" repeats everything, "right" counts leap seconds, "localtime" is the host's own zone.
        if path.is_file() and inner.parts[0] not in ("localtime", "posix", "right"):
            tree.add_file(f"{ZONE_FOLDER}/{inner}", path)


def write_python(tree: Tree, python: Interpreter, out: BinaryIO) -> None:
    """Write the tar of a Python plan, with bytecode for every module: the read-only root can never keep its own."""
    write_compiled(tree, [str(python.path), "-I"], out)


def write_compiled(tree: Tree, command: Sequence[str], out: BinaryIO, env: dict[str, str] | None = None) -> None:
    """Write the tar of a plan whose Python ``command`` starts; raises ConfigError when that cannot compile it."""
    sources = {path: entry.source for path, entry in tree.entries.items() if entry.source and path.endswith(".py")}
    with tempfile.TemporaryDirectory(prefix="bananas-image-") as folder:
        outputs = {path: Path(folder) / f"{n}.pyc" for n, path in enumerate(sources)}
        orders = "".join(json.dumps([str(sources[path]), path, str(outputs[path])]) + "\n" for path in sources)
        tag = _compile([*command, "-c", _BYTECODE], orders, env)
        full = Tree(dict(tree.entries))
        for path, output in outputs.items():
            parent, _, name = path.rpartition("/")
            full.add_file(f"{parent}/__pycache__/{name[:-3]}.{tag}.pyc", output)
        full.write(out)


def _compile(command: list[str], orders: str, env: dict[str, str] | None) -> str:
    """Have the orders carried out; returns the tag in the names of that Python's bytecode files."""
    try:
        done = subprocess.run(
            command, input=orders, capture_output=True, text=True, timeout=BYTECODE_TIMEOUT_S, check=True, env=env
        )
    except subprocess.CalledProcessError as e:
        raise ConfigError(f"{command[0]} could not compile its standard library: {e.stderr.strip()[-500:]}") from e
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ConfigError(f"{command[0]} could not compile its standard library: {e}") from e
    return done.stdout.strip()


def server_tree(binary: Path) -> Tree:
    """The plan of a root file system that holds one server and the libraries it needs, at ``/usr/bin/<its name>``."""
    tree = base_tree()
    tree.add_dir("/data", 0o1777)
    tree.add_file(f"/usr/bin/{binary.name}", binary)
    needed = closure([binary])
    if needed.broken:
        raise ConfigError(f"{binary} does not run here: {', '.join(needed.broken[binary])} not found")
    needed.add_to(tree)
    return tree
