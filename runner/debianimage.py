"""A Python root file system out of Debian's own packages: another Python than this host's, with no image registry.

mmdebstrap fetches and unpacks the packages from the mirrors that this host's apt knows, and checks their signatures; no
script of a package runs, so neither root nor a chroot is needed. What a function can use goes into the image: the
interpreter, its standard library, shared libraries, CA bundle and zone data. Talks to Docker through ``images.py``
only, whose command line calls this for ``images build --from debian``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from bananas.errors import ConfigError
from bananas.spec import RuntimeInfo
from runner import images
from runner.hostimage import CA_BUNDLE, SKIPPED_EXTENSIONS, SKIPPED_FILES, SKIPPED_FOLDERS, write_compiled
from runner.rootfs import Tree, base_tree, merged

#: Raised when this file makes another image of the same packages.
RECIPE: Final = 1
#: Debian's releases whose Python is new enough → their numbers.
SUITES: Final = {"bookworm": 12, "trixie": 13}
#: Their Pythons.
PYTHONS: Final = {"3.11": "bookworm", "3.13": "trixie"}
DEFAULT_SUITE: Final = "trixie"
PACKAGES: Final = "python3-minimal,libpython3-stdlib,libgcc-s1,libstdc++6,ca-certificates,tzdata,netbase,media-types"
#: Zones by their old names, such as US/Pacific, have a package of their own since.
MORE_PACKAGES: Final = {"trixie": ",tzdata-legacy"}
#: 20 MB from a mirror, and the package lists.
FETCH_TIMEOUT_S: Final = 300
ASK_TIMEOUT_S: Final = 30
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INSTALL: Final = "on Debian and Ubuntu: apt-get install --no-install-recommends mmdebstrap debian-archive-keyring"
#: What of apt's settings decides whether and how a mirror is reached.
_REACH: Final = ("http", "https", "Retries", "Check-Valid-Until", "Check-Date")
_REPOSITORY = re.compile(r"(\S+)\t[\w.]+?(-updates|-security|)\tmain\t(.*)")
_SAID_CHARS: Final = 2000
_SKIPPED_FOLDERS: Final = SKIPPED_FOLDERS - {"lib-dynload"}
_ETC: Final = ("/etc/debian_version", "/etc/mime.types", "/etc/protocols", "/etc/services", "/etc/ssl/openssl.cnf")
#: Also shows that what was unpacked is enough.
_ASK: Final = """
import asyncio, ctypes, decimal, hashlib, json, os, platform, sqlite3, ssl, sys, zlib
libc = os.confstr("CS_GNU_LIBC_VERSION").replace(" ", "")
print(json.dumps([list(sys.version_info[:3]), platform.machine(), libc]))
"""


@dataclass(frozen=True, slots=True)
class DebianPython:
    """The unpacked packages of one release, and how to run their Python on this host."""

    suite: str
    root: Path
    #: ``3.13.5``
    full_version: str
    machine: str
    #: ``glibc2.41``
    libc: str
    #: Paths in the image → targets.
    links: dict[str, str]

    @property
    def version(self) -> str:
        """``3.13``"""
        return ".".join(self.full_version.split(".")[:2])

    @property
    def command(self) -> list[str]:
        """Starts the interpreter with its own libraries."""
        return _command(self.root)


def build(
    client: Any,
    suite: str = DEFAULT_SUITE,
    tag: str | None = None,
    *,
    force: bool = False,
    make_default: bool = False,
    say: Callable[[str], None],
) -> RuntimeInfo:
    """Make the base image and tag it ``bananas/python:<X.Y>-debian<N>``; ``make_default``: ``:default`` as well.

    An image of the same packages is kept unless ``force``. Raises ConfigError as ``fetch`` does, EngineUnavailable.
    """
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bananas-debian-") as folder:
        python = fetch(suite, Path(folder))
        tree = python_tree(python)
        source = _fingerprint(tree)
        tag = tag or f"{images.REPOSITORY}:{python.version}-debian{SUITES[suite]}"
        image = images.find(client, tag)
        if image is not None and image.labels.get(f"{images.LABEL}source") == source and not force:
            say(f"{tag} is up to date (Debian {suite}, Python {python.full_version})")
        else:
            image = _import(client, tag, tree, python, source)
            say(f"{tag} built from Debian {suite} in {time.monotonic() - started_s:.1f} s")
    if make_default:
        images.name(client, image, images.DEFAULT_IMAGE)
    return images.describe(client, tag)


def _import(client: Any, tag: str, tree: Tree, python: DebianPython, source: str) -> Any:
    labels = {
        "runtime": "python",
        "python": python.version,
        "machine": python.machine,
        "libc": python.libc,
        "from": "debian",
        "source": source,
    }
    with tempfile.TemporaryFile(prefix="bananas-image-") as file:
        write_compiled(tree, python.command, file, environment(python.root))
        return images.import_tar(client, tag, file, images.changes(labels, "python3"))


def _fingerprint(tree: Tree) -> str:
    """Of what is in the files, not of when they were unpacked."""
    digest = hashlib.sha256()
    for path, entry in sorted(tree.entries.items()):
        data = hashlib.sha256(entry.source.read_bytes()).hexdigest() if entry.source else entry.fingerprint()
        digest.update(f"{path} {entry.mode:o} {data}\n".encode())
    return digest.hexdigest()


def fetch(suite: str, folder: Path) -> DebianPython:
    """Unpack Python and what it needs from that release's packages into ``folder``.

    Raises ConfigError for an unknown release, without mmdebstrap, and with its words when it fails.
    """
    if suite not in SUITES:
        raise ConfigError(f"images are made from Debian's {' and '.join(SUITES)}, not {suite!r}")
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ConfigError(f"mmdebstrap is not on PATH, which fetches Debian's packages; {INSTALL}")
    settings, archive, root = folder / "apt.conf", folder / "root.tar", folder / "root"
    settings.write_text(_apt_settings())
    # With this variant packages are unpacked only, in which mode ever; root's needs no user namespace.
    command = [
        program,
        "--variant=extract",
        f"--include={PACKAGES}{MORE_PACKAGES.get(suite, '')}",
        f"--aptopt={settings}",
        "--quiet",
    ]
    if os.geteuid() != 0:
        command.append("--mode=chrootless")
    if KEYRING.is_file():
        command.append(f"--keyring={KEYRING}")
    _run([*command, suite, str(archive), *mirrors(suite)], FETCH_TIMEOUT_S)
    try:
        links = _unpack(archive, root)
    except (OSError, tarfile.TarError) as e:
        raise ConfigError(f"what mmdebstrap unpacked from {suite} cannot be read: {e}") from e
    archive.unlink()
    said = _run([*_command(root), "-c", _ASK], ASK_TIMEOUT_S, environment(root))
    version, machine, libc = json.loads(said)
    return DebianPython(suite, root, ".".join(map(str, version)), machine, libc, links)


def mirrors(suite: str) -> list[str]:
    """apt's lines for a release, from where this host's apt gets its own; empty when it has no mirror of Debian.

    mmdebstrap then takes its default.
    """
    if shutil.which("apt-get") is None:
        return []
    fields = "\t".join(f"$({name})" for name in ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN"))
    said = _run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], ASK_TIMEOUT_S)
    return mirror_lines(said, suite)


def mirror_lines(said: str, suite: str) -> list[str]:
    """The lines for what ``apt-get indextargets`` said: URI, release, component and origin, tab-separated.

    >>> mirror_lines("http://mirror.test/debian/\\tbookworm\\tmain\\tDebian\\n", "trixie")
    ['deb http://mirror.test/debian/ trixie main']
    """
    lines: dict[str, None] = {}
    for line in said.splitlines():
        found = _REPOSITORY.fullmatch(line)
        # Before the first `apt-get update` the origin is not known.
        if found and (found[3] == "Debian" or re.search(r"/debian(-security)?/?$", found[1])):
            lines[f"deb {found[1]} {suite}{found[2]} main"] = None
    has_base = any(line.endswith(f" {suite} main") for line in lines)
    return list(lines) if has_base or not lines else []


def _apt_settings() -> str:
    if shutil.which("apt-config") is None:
        return ""
    said = _run(["apt-config", "dump", *(f"Acquire::{name}" for name in _REACH)], ASK_TIMEOUT_S)
    return "".join(f"{line}\n" for line in said.splitlines() if not line.endswith(' "";'))


def environment(root: Path) -> dict[str, str]:
    """All that an interpreter started here gets: its library's place, and one hash seed for equal bytecode."""
    return {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}


def _command(root: Path) -> list[str]:
    """The interpreter through its own dynamic loader: this host's C library may be older."""
    loaders = [path for path in root.glob("usr/lib*/ld-linux*.so.*") if path.exists()]
    loaders += sorted(root.glob("usr/lib/*/ld-linux*.so.*"))
    pythons = sorted(root.glob("usr/bin/python3.*"))
    libraries = sorted(root.glob("usr/lib/*/libc.so.6"))
    if not loaders or not pythons or not libraries:
        raise ConfigError("Debian's packages hold no Python, or no loader for it, where they did in earlier releases")
    return [str(loaders[0]), "--library-path", str(libraries[0].parent), str(pythons[0]), "-P", "-S"]


def _run(command: Sequence[str], timeout_s: int, env: dict[str, str] | None = None) -> str:
    """Standard output; ConfigError with the end of what it said."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=env or {**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as e:
        raise ConfigError(f"{name} took longer than {timeout_s} s") from e
    except OSError as e:
        raise ConfigError(f"{command[0]} does not start: {e.strerror or e}") from e
    if done.returncode:
        raise ConfigError(f"{name} failed: {(done.stderr or done.stdout).strip()[-_SAID_CHARS:] or 'no output'}")
    return done.stdout


def _unpack(archive: Path, root: Path) -> dict[str, str]:
    """Write the files that an image may need below ``root``; returns the links, by their paths in the image."""
    links: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = merged(f"/{PurePosixPath(member.name)}")
            if ".." in PurePosixPath(path).parts or not _is_wanted(path):
                continue
            target = root / path.lstrip("/")
            if member.issym():
                links[path] = member.linkname
                if "/" not in member.linkname:  # the names under which the loader looks for libraries
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(member.linkname)
            elif (file := tar.extractfile(member)) is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(file, out)
                target.chmod(0o755 if member.mode & 0o100 else 0o644)
    return links


def _is_wanted(path: str) -> bool:
    parts = PurePosixPath(path).parts[1:]
    if path in _ETC or parts[:3] in (("usr", "share", "zoneinfo"), ("usr", "share", "ca-certificates")):
        return "right" not in parts and "posix" not in parts
    if parts[:2] == ("usr", "bin"):
        return re.fullmatch(r"python3\.\d+", parts[-1]) is not None
    if parts[:2] == ("usr", "lib64"):
        return True
    if parts[:2] != ("usr", "lib") or len(parts) < 3:
        return False
    if re.fullmatch(r"python3\.\d+", parts[2]):
        return _is_library(parts[3:])
    is_shared = ".so" in parts[-1]
    return parts[2:4] == ("ssl", parts[-1]) or (is_shared and (len(parts) <= 4 or parts[3] == "ossl-modules"))


def _is_library(parts: tuple[str, ...]) -> bool:
    """Is it a file of the standard library that functions need, as ``hostimage`` decides it?"""
    if not parts or any(part in _SKIPPED_FOLDERS or part.startswith("config-") for part in parts[:-1]):
        return False
    name = parts[-1]
    if name in SKIPPED_FILES or name.endswith((".pyc", ".exe")):
        return False
    return not (name.endswith(".so") and name.startswith(SKIPPED_EXTENSIONS))


def python_tree(python: DebianPython) -> Tree:
    """The plan of the root file system, without bytecode."""
    tree = base_tree()
    for file in _files(python.root):
        tree.add_file(f"/{file.relative_to(python.root)}", file)
    for path, target in python.links.items():
        tree.add_link(path, target)
    for name in ("python3", "python"):
        tree.add_link(f"/usr/bin/{name}", f"python{python.version}")
    certificates = sorted(path for path in tree.entries if path.startswith("/usr/share/ca-certificates/"))
    bundle = [python.root / path.lstrip("/") for path in certificates if path.endswith(".crt")]
    for path in [path for path in tree.entries if path.startswith("/usr/share/ca-certificates")]:
        del tree.entries[path]
    tree.add_data(CA_BUNDLE, b"".join(path.read_bytes() for path in bundle))
    about = f"python {python.full_version} from debian {python.suite}, recipe {RECIPE}\n"
    tree.add_data("/etc/bananas-image", about)
    return tree


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path
