"""The runner's cache of unpacked bundles, by digest, and their way into a sandbox's directory.

Files are linked, not copied, from the cache: a bundle of thousands of files costs milliseconds and no space. The
sandbox sees them through a read-only mount, so the cache cannot be changed from inside.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import gevent
from gevent.lock import BoundedSemaphore

from bananas import events
from bananas.errors import DeployError
from bananas.pack import unpack

#: Unpacked bundles kept on disk; the least lately used go first.
CACHE_BYTES = 4 * 1024**3
_PARTIAL, _TRASH = ".part", ".trash"
#: What a killed runner left half unpacked or half removed goes after this long.
_LEFTOVER_S = 3600


class BundleCache:
    """Unpacked bundles below one directory."""

    def __init__(self, directory: Path, fetch: Callable[[str], bytes]) -> None:
        """``fetch`` gets an archive by its SHA-256; raises UnknownBundle."""
        self._directory = directory
        self._fetch = fetch
        self._locks: dict[str, BoundedSemaphore] = {}
        self._sizes: dict[str, int] = {}
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def ensure(self, sha256: str) -> Path:
        """The folder with the bundle's files; fetched, checked and unpacked once, however many ask."""
        target = self._directory / sha256
        lock = self._locks.setdefault(sha256, BoundedSemaphore(1))
        with lock:
            if not target.is_dir():
                data = self._fetch(sha256)
                # Unpacking is CPU work: on a thread, so that heartbeats go on.
                gevent.get_hub().threadpool.apply(self._unpack, (sha256, data, target))
            with contextlib.suppress(FileNotFoundError):
                os.utime(target)
        return target

    def link_into(self, sha256: str, destination: Path) -> None:
        """Make the bundle's files appear in ``destination``, which must not exist."""
        source = self.ensure(sha256)
        try:
            gevent.get_hub().threadpool.apply(link_tree, (source, destination))
        except (FileNotFoundError, shutil.Error):
            # Another runner dropped it at this very moment: fetch it again, once.
            shutil.rmtree(destination, ignore_errors=True)
            gevent.get_hub().threadpool.apply(link_tree, (self.ensure(sha256), destination))

    def archive(self, sha256: str) -> bytes:
        """The bundle as it was uploaded, checked. Raises as ``ensure`` does."""
        self.ensure(sha256)  # unpacked once, it is known to hold plain files within the limits
        data = self._fetch(sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DeployError(f"bundle {sha256} in Redis has another digest; deploy the function again")
        return data

    def prune(self, most_bytes: int = CACHE_BYTES) -> int:
        """Drop the least lately used bundles over ``most_bytes``; returns how many. Linked files live on."""
        dropped: int = gevent.get_hub().threadpool.apply(self._prune, (most_bytes,))
        return dropped

    def _prune(self, most_bytes: int) -> int:
        """On a thread. Other runners use the same cache, so anything may be gone at any moment."""
        entries: list[tuple[float, Path]] = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                changed_s = path.stat().st_mtime
                if len(path.name) == 64:
                    entries.append((changed_s, path))
                elif time.time() - changed_s > _LEFTOVER_S:
                    shutil.rmtree(path, ignore_errors=True)
        total, dropped = 0, 0
        for _, path in sorted(entries, reverse=True):
            total += self._size(path)
            if total > most_bytes:
                events.BUNDLE_DROPPED(bundle=path.name)
                with contextlib.suppress(FileNotFoundError):
                    # Away in one step: nobody may find half of it under its name.
                    trash = path.with_name(f"{path.name}.{os.urandom(8).hex()}{_TRASH}")
                    path.rename(trash)
                    shutil.rmtree(trash, ignore_errors=True)
                    self._sizes.pop(path.name, None)
                    dropped += 1
        return dropped

    def _size(self, path: Path) -> int:
        """Bytes of one unpacked bundle; it never changes, so it is measured once."""
        if path.name not in self._sizes:
            size = 0
            with contextlib.suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            self._sizes[path.name] = size
        return self._sizes[path.name]

    def _unpack(self, sha256: str, data: bytes, target: Path) -> None:
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise DeployError(f"bundle {sha256} in Redis has the digest {actual}; deploy the function again")
        # Unguessable, not by process id: runners in containers share the cache and may have the same one.
        partial = target.with_name(f"{sha256}.{os.urandom(8).hex()}{_PARTIAL}")
        partial.mkdir()
        try:
            unpack(data, partial)
            partial.rename(target)
        except OSError as e:
            # Another runner on this host was quicker: its copy is as good.
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def link_tree(source: Path, destination: Path) -> None:
    """Hard-link every file of ``source`` to the new folder ``destination``; copies across file systems."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                raise
            shutil.copyfile(src, dst)
            shutil.copymode(src, dst)

    shutil.copytree(source, destination, copy_function=link)
