"""Turn a folder into one content-addressed archive, and an archive back into a folder.

A bundle is a gzip-compressed tar whose bytes depend only on the names, contents and executable bits of the files:
equal folders have equal digests, whatever their times, owners or order of creation. ``pack`` is called by
``bananas.deploy`` on the user's own files; ``unpack`` by the runner on bytes it does not trust. Neither follows a
symbolic link out of the folder, and both stop at the bounds in ``bananas.settings.LIMITS`` while they stream.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, cast

from bananas.errors import DeployError
from bananas.settings import KIB, LIMITS, MIB

#: Left out of every bundle of code: caches, version control, environments of the developer's machine.
IGNORE = (
    *("__pycache__", "*.pyc", ".git", ".hg", ".svn", ".venv", "node_modules"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".DS_Store"),
)
#: The same for Node, whose packages lie in the function's folder.
NODE_IGNORE = tuple(name for name in IGNORE if name != "node_modules")
IGNORE_FILE = ".bananasignore"

_LEVEL = 6  # part of the digest: another level is another archive
_CHUNK_BYTES = 64 * KIB
# A tar header with long names takes a few KiB; what is larger is an attack on the reader's memory.
_HEADER_BYTES = 256 * KIB
_IGNORE_FILE_BYTES = 64 * KIB
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Bundle:
    """A packed folder."""

    #: SHA-256 of ``data``, in hex.
    digest: str
    #: The archive.
    data: bytes
    #: How many files are in it, and their sizes together.
    files: int
    unpacked_bytes: int


@dataclass(slots=True)
class _Files:
    """The files of a folder, sorted by name, with every bound checked on the way."""

    root: Path
    patterns: tuple[str, ...]
    count: int = 0
    total_bytes: int = 0
    #: Folders being walked, to notice a link back to one of them.
    ancestors: list[Path] = field(default_factory=list)

    def walk(self, folder: Path, prefix: str = "") -> Iterator[tuple[str, Path, os.stat_result]]:
        """``(name in the archive, file to read, its status)``."""
        real = folder.resolve()
        if real in self.ancestors:
            raise DeployError(
                f"{folder} is a link to a folder that it is in; remove the link or add it to {IGNORE_FILE}"
            )
        if len(self.ancestors) >= _MAX_DEPTH:
            raise DeployError(f"{folder} is nested deeper than {_MAX_DEPTH} folders")
        self.ancestors.append(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
            name = prefix + entry.name
            path = Path(entry.path)
            if self._is_ignored(entry.name, name):
                continue
            status = self._status(path, name)
            if stat.S_ISDIR(status.st_mode):
                yield from self.walk(path, name + "/")
            elif stat.S_ISREG(status.st_mode):
                yield self._count(name, path, status)
            else:
                raise DeployError(f"{path} is a socket, pipe or device; only files can be packed")
        self.ancestors.pop()

    def _is_ignored(self, base: str, name: str) -> bool:
        return name == IGNORE_FILE or any(
            fnmatchcase(name if "/" in pattern else base, pattern.lstrip("/")) for pattern in self.patterns
        )

    def _status(self, path: Path, name: str) -> os.stat_result:
        try:
            name.encode()
            if path.is_symlink() and not path.resolve(strict=True).is_relative_to(self.root):
                raise DeployError(f"{path} is a link that leads out of {self.root}; copy the file into the folder")
            return path.stat()
        except UnicodeEncodeError as e:
            raise DeployError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename the file") from e
        except (OSError, RuntimeError) as e:  # RuntimeError: a loop of links, from pathlib
            raise DeployError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}") from e

    def _count(self, name: str, path: Path, status: os.stat_result) -> tuple[str, Path, os.stat_result]:
        self.count += 1
        self.total_bytes += status.st_size
        if self.count > LIMITS.bundle_files:
            raise DeployError(
                f"{self.root} holds more than {LIMITS.bundle_files} files; list what is not needed in {IGNORE_FILE}"
            )
        if self.total_bytes > LIMITS.bundle_unpacked_bytes:
            raise DeployError(
                f"{self.root} holds more than {_mib(LIMITS.bundle_unpacked_bytes)} of files (the last one was {name}, "
                f"{_mib(status.st_size)}); list what is not needed in {IGNORE_FILE}"
            )
        return name, path, status


class _Bounded(io.BytesIO):
    """Memory for an archive that refuses to grow beyond what a gateway takes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def write(self, data: object) -> int:
        written = super().write(data)  # type: ignore[arg-type]  # any buffer; gzip passes bytes
        if self.tell() > LIMITS.bundle_bytes:
            raise DeployError(
                f"{self._folder} is larger than {_mib(LIMITS.bundle_bytes)} when packed; "
                f"list what is not needed in {IGNORE_FILE}"
            )
        return written


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB".replace(".0 MiB", " MiB") if size_bytes >= MIB / 10 else f"{size_bytes} bytes"


def pack(folder: Path, *, ignore: Sequence[str] = IGNORE, on_bytes: Callable[[int], None] = lambda _: None) -> Bundle:
    """Archive the folder's files.

    A link to a place inside the folder is stored as what it points to; empty folders are left out. Besides ``ignore``,
    the patterns in the folder's own ``.bananasignore`` apply: one fnmatch pattern a line, ``#`` begins a comment; a
    pattern without a slash is compared with the name of every file and folder, one with a slash with the whole path
    from the folder. ``on_bytes`` gets the size of each file that is in.

    Raises DeployError naming the file, its size and the limit.
    """
    files = _Files(folder.resolve(), (*ignore, *own_patterns(folder)))
    out = _Bounded(folder)
    try:
        # The name and time of a gzip header would make equal folders differ.
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=out, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive,
        ):
            for name, path, status in files.walk(folder):
                _add(archive, name, path, status)
                on_bytes(status.st_size)
    except OSError as e:
        raise DeployError(f"{e.filename or folder} cannot be packed: {e.strerror or e}") from e
    data = out.getvalue()
    return Bundle(hashlib.sha256(data).hexdigest(), data, files.count, files.total_bytes)


def _add(archive: tarfile.TarFile, name: str, path: Path, status: os.stat_result) -> None:
    info = tarfile.TarInfo(name)
    info.size = status.st_size
    info.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    with path.open("rb") as file:
        archive.addfile(info, file)  # a file that shrank since raises OSError here
        if file.read(1):
            raise DeployError(f"{path} grew while it was packed; deploy again when nothing writes to it")


def own_patterns(folder: Path) -> tuple[str, ...]:
    """What the folder's ``.bananasignore`` lists; raises DeployError."""
    path = folder / IGNORE_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(_IGNORE_FILE_BYTES + 1)
        text = raw.decode()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as e:
        raise DeployError(f"{path} cannot be read: {e}") from e
    if len(raw) > _IGNORE_FILE_BYTES:
        raise DeployError(f"{path} is larger than {_IGNORE_FILE_BYTES // KIB} KiB")
    lines = [line.strip() for line in text.splitlines()]
    patterns = tuple(line.rstrip("/") for line in lines if line and not line.startswith("#"))
    for pattern in patterns:
        if pattern.startswith("!"):
            raise DeployError(
                f"{path}: {pattern} begins with '!', which is not supported; write only what to leave out"
            )
    return patterns


class _Meter:
    """The archive's decompressed bytes; hands out no more than was allowed, so nobody can fill the memory."""

    def __init__(self, data: bytes) -> None:
        self._source = gzip.GzipFile(fileobj=io.BytesIO(data))
        self._allowed_bytes = 0

    def allow(self, size_bytes: int) -> None:
        """The next reads may take this much, and what a reader that works in blocks takes ahead."""
        self._allowed_bytes = size_bytes + _HEADER_BYTES

    def read(self, size_bytes: int) -> bytes:
        """At most ``size_bytes`` bytes."""
        data = self._source.read(size_bytes)
        self._allowed_bytes -= len(data)
        if self._allowed_bytes < 0:
            raise DeployError(f"the bundle has a header of more than {_HEADER_BYTES // KIB} KiB")
        return data

    def finish(self) -> None:
        """Read what follows the last entry, which also compares the checksum of the whole."""
        self.allow(0)
        while self.read(_CHUNK_BYTES):
            pass


def unpack(data: bytes, target: Path) -> None:
    """Write a bundle's files below ``target``, which must be empty or not exist yet.

    Files become 0444, or 0555 when executable; folders 0755. Only regular files and folders with plain relative names
    are accepted, each once, within the same limits as in ``pack``, which are checked while the bytes come out. tarfile
    only reads headers here: each file is created by us and must be new, so neither a link nor a later entry can lead
    a write elsewhere. Raises DeployError, and then leaves nothing behind.
    """
    if len(data) > LIMITS.bundle_bytes:
        raise DeployError(f"the bundle has {_mib(len(data))}; at most {_mib(LIMITS.bundle_bytes)} are taken")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise FileExistsError(errno.EEXIST, "is not empty", str(target))
        target.chmod(0o755)
    except OSError as e:
        raise DeployError(f"cannot unpack into {target}: {e.strerror or e}") from e
    is_done = False
    try:
        _extract(_Meter(data), target)
        is_done = True
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError) as e:
        raise DeployError(f"the bundle is damaged: {e}") from e
    except OSError as e:
        raise DeployError(f"cannot unpack {e.filename or 'the bundle'}: {e.strerror or e}") from e
    finally:
        if not is_done:
            shutil.rmtree(target, ignore_errors=True)


def _extract(meter: _Meter, target: Path) -> None:
    files = 0
    left_bytes = LIMITS.bundle_unpacked_bytes
    meter.allow(0)
    with tarfile.open(fileobj=cast("IO[bytes]", meter), mode="r|", encoding="utf-8", errors="strict") as archive:
        while (member := archive.next()) is not None:
            name = _safe_name(member)
            files += 1
            left_bytes -= member.size
            if files > LIMITS.bundle_files:
                raise DeployError(f"the bundle holds more than {LIMITS.bundle_files} entries")
            if left_bytes < 0:
                raise DeployError(f"the bundle holds more than {_mib(LIMITS.bundle_unpacked_bytes)} (at {name})")
            path = target / name
            if member.isdir():
                _make_folder(path, target)
            else:
                _make_folder(path.parent, target)
                meter.allow(member.size)
                _write(archive, member, path)
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
            meter.allow(0)
    meter.finish()


def _safe_name(member: tarfile.TarInfo) -> str:
    name = member.name
    if (
        member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
        or member.sparse is not None
        or member.size < 0
    ):
        raise DeployError(f"the bundle holds {name!r}, which is neither a file nor a folder")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name or len(parts) > _MAX_DEPTH + 1:
        raise DeployError(f"the bundle holds {name!r}, which is not a name below the folder")
    return name


def _make_folder(path: Path, target: Path) -> None:
    if path == target or path.is_dir():
        return
    _make_folder(path.parent, target)
    path.mkdir()
    path.chmod(0o755)  # not by mkdir, which the umask would restrict


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None, "a regular file"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as e:
        raise DeployError(f"the bundle holds {member.name!r} twice") from e
    with open(descriptor, "wb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if file.tell() != member.size:
            raise DeployError(f"the bundle ends within {member.name!r}")
        os.fchmod(descriptor, 0o555 if member.mode & stat.S_IXUSR else 0o444)
