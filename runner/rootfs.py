"""A root file system as a plan: what goes where, its digest, and a reproducible tar of it.

A plan is made from file names and ``stat`` alone, so asking "is the image still up to date?" reads no file. The
layout is always merged-/usr (``/bin``, ``/lib``, ``/lib64`` and ``/sbin`` are links), and every shared library lies
in the one directory where this host's loader looks for the C library: an RPATH of the host means nothing in the
image, and the loader's own directories need no cache file. Knows nothing of Python or of Docker; ``hostimage.py``
makes the plans.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from bananas.errors import ConfigError

#: 1980-01-01, the earliest time that zip files can hold; one time for all makes the tar reproducible.
MTIME_S = 315_532_800
LDD_TIMEOUT_S = 60
#: Of glibc, by architecture; below /.
LOADERS = ("lib64/ld-linux-*.so.*", "lib/ld-linux-*.so.*")
_MERGED = re.compile(r"^/(bin|sbin|lib|lib32|lib64|libx32)(?=/|$)")
_NEEDED = re.compile(r"^\s+(\S+) => (\S+|not found)(?: \(0x[0-9a-f]+\))?$")
_LOADER = re.compile(r"^\s+(/\S*/ld[-.\w]*\.so\.\d+)(?: => \S+)? \(0x[0-9a-f]+\)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of the image: a file of the host (``source``), bytes (``data``), a link (``target``) or a directory."""

    mode: int
    source: Path | None = None
    data: bytes | None = None
    target: str | None = None

    def fingerprint(self) -> str:
        """Changes whenever the content may have: size and mtime for a file of the host, the content otherwise."""
        if self.source is not None:
            stat = self.source.stat()
            return f"{self.mode:o} file {self.source} {stat.st_size} {stat.st_mtime_ns}"
        if self.data is not None:
            return f"{self.mode:o} data {hashlib.sha256(self.data).hexdigest()}"
        return f"{self.mode:o} link {self.target}" if self.target else f"{self.mode:o} dir"


@dataclass(slots=True)
class Tree:
    """The plan: absolute image path → entry. Parents are added by themselves; everything belongs to root."""

    entries: dict[str, Entry] = field(default_factory=dict)
    #: What the host could not give, for people: "no zone data: …".
    notes: list[str] = field(default_factory=list)

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        """A directory; a mode given later for the same one wins over the default."""
        path = merged(path)
        if mode != 0o755 or path not in self.entries:
            self.entries[path] = Entry(mode)
        parent = str(PurePosixPath(path).parent)
        if parent not in self.entries:
            self.add_dir(parent)

    def add_file(self, path: str, source: Path) -> None:
        """A regular file of the host, links followed; executable exactly when it is so on the host."""
        mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
        self._add(path, Entry(mode, source=source))

    def add_data(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """A file with that content."""
        self._add(path, Entry(mode, data=data.encode() if isinstance(data, str) else data))

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, Entry(0o777, target=target))

    def _add(self, path: str, entry: Entry) -> None:
        path = merged(path)
        self.entries[path] = entry
        self.add_dir(str(PurePosixPath(path).parent))

    def digest(self) -> str:
        """SHA-256 (hex) over every path and fingerprint."""
        lines = (f"{path} {entry.fingerprint()}\n" for path, entry in sorted(self.entries.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def write(self, out: BinaryIO) -> None:
        """Write the tar: sorted, owned by 0:0, one mtime, so that equal files give equal bytes."""
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path, entry in sorted(self.entries.items()):
                if path != "/":
                    _write_entry(tar, path.lstrip("/"), entry)


def merged(path: str) -> str:
    """The place of an absolute path in a merged-/usr system: ``/lib64/ld.so`` → ``/usr/lib64/ld.so``."""
    return _MERGED.sub(r"/usr/\1", path)


def _write_entry(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = entry.mode, MTIME_S
    if entry.target is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
        tar.addfile(info)
    elif entry.data is not None:
        info.size = len(entry.data)
        tar.addfile(info, io.BytesIO(entry.data))
    elif entry.source is not None:
        with entry.source.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            tar.addfile(info, file)
    else:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)


@dataclass(frozen=True, slots=True)
class Closure:
    """The shared objects that some binaries need."""

    #: File name as the loader asks for it → where it is on this host.
    libraries: dict[str, Path]
    #: The dynamic loader's path as written into the binaries; None when all of them are static.
    loader: str | None
    #: Binaries that cannot run even here → names of the libraries that were not found.
    broken: dict[Path, list[str]]

    @property
    def library_dir(self) -> str:
        """The image directory for libraries: that of the C library, where the loader looks without being told."""
        libc = self.libraries.get("libc.so.6")
        if libc is None:
            raise ConfigError(f"no libc.so.6 among {sorted(self.libraries)}; images from the host need glibc")
        folder = merged(str(libc.parent)).split("/glibc-hwcaps/")[0]
        if not folder.startswith("/usr/lib"):
            raise ConfigError(f"libc.so.6 lies in {libc.parent}; images from the host need it below /lib or /usr/lib")
        return folder

    def add_to(self, tree: Tree) -> None:
        """Put the loader and every library into a plan."""
        if self.loader is None:
            return
        tree.add_file(self.loader, Path(self.loader))
        for name, path in self.libraries.items():
            tree.add_file(f"{self.library_dir}/{name}", path)


def closure(binaries: Iterable[Path]) -> Closure:
    """What the dynamic loader of this host would load for these executables and shared objects.

    The file found first stands for a name. Raises ConfigError when neither ldd nor the loader can be asked.
    """
    files = list(dict.fromkeys(binaries))
    libraries: dict[str, Path] = {}
    loader = None
    broken: dict[Path, list[str]] = {}
    current = files[0] if files else None
    for line in _ldd(files).splitlines():
        if line.endswith(":") and not line[0].isspace():
            current = Path(line[:-1])
        elif match := _LOADER.match(line):
            loader = match[1]
        elif (match := _NEEDED.match(line)) and current is not None:
            if match[2] == "not found":
                broken.setdefault(current, []).append(match[1])
            else:
                libraries.setdefault(match[1], Path(match[2]))
    return Closure(libraries, loader, broken)


def _ldd(files: Sequence[Path]) -> str:
    """What ldd prints for all of them. It is a shell script around the loader; an image of ours has only that."""
    if not files:
        return ""
    if shutil.which("ldd"):
        return _ask(["ldd", *map(str, files)])
    loader = next((path for place in LOADERS for path in sorted(Path("/").glob(place))), None)
    if loader is None:
        raise ConfigError(f"no ldd on PATH lists the libraries of {files[0]}; on Debian it is in libc-bin")
    return "".join(f"{file}:\n{_ask([str(loader), '--list', str(file)])}" for file in files)


def _ask(command: list[str]) -> str:
    try:
        # A static binary makes it exit with 1 and print a line that matches nothing: it needs nothing.
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LDD_TIMEOUT_S, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ConfigError(f"{command[0]} cannot list the libraries of {command[-1]}: {e}") from e
    return done.stdout


def base_tree() -> Tree:
    """An empty system: merged-/usr links, the users root and nobody (65534), name services, directories to mount on."""
    tree = Tree()
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.entries[f"/{name}"] = Entry(0o777, target=f"usr/{name}")
        tree.add_dir(f"/usr/{name}")
    for path in ("/dev", "/etc", "/proc", "/run", "/sys", "/usr/local/bin", "/var/lib"):
        tree.add_dir(path)
    for path in ("/tmp", "/var/tmp"):  # noqa: S108 - names inside the image
        tree.add_dir(path, 0o1777)
    tree.add_link("/var/run", "/run")
    tree.add_data(
        "/etc/passwd",
        "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    )
    tree.add_data("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
    tree.add_data("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    return tree
