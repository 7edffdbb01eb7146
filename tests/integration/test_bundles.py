"""The bundle cache: shared by runners that may do the same thing at the same moment."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bananas import pack
from bananas.errors import DeployError
from runner.bundles import BundleCache

FILES = 300


@pytest.fixture
def bundle(tmp_path: Path) -> pack.Bundle:
    source = tmp_path / "src"
    source.mkdir()
    for n in range(FILES):
        (source / f"m{n}.py").write_text(f"x = {n}\n")
    return pack.pack(source)


def test_runners_that_unpack_the_same_bundle_at_once_leave_a_whole_one(tmp_path: Path, bundle: pack.Bundle) -> None:
    """Whoever is first wins, and nobody sees half a tree, also with equal process ids as in containers."""
    for round_ in range(5):
        folder = tmp_path / f"cache{round_}"
        caches = [BundleCache(folder, {bundle.digest: bundle.data}.__getitem__) for _ in range(3)]
        problems: list[BaseException] = []

        def unpack(cache: BundleCache, folder: Path = folder, problems: list[BaseException] = problems) -> None:
            try:
                cache._unpack(bundle.digest, bundle.data, folder / bundle.digest)
                assert len(list((folder / bundle.digest).iterdir())) == FILES
            except BaseException as e:
                problems.append(e)

        threads = [threading.Thread(target=unpack, args=(cache,)) for cache in caches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert [path.name for path in folder.iterdir()] == [bundle.digest]


def test_linked_files_are_read_only_and_survive_the_cache(tmp_path: Path, bundle: pack.Bundle) -> None:
    """A sandbox keeps its files when the cache drops theirs."""
    cache = BundleCache(tmp_path / "cache", {bundle.digest: bundle.data}.__getitem__)
    cache.link_into(bundle.digest, tmp_path / "code")
    assert cache.prune(most_bytes=0) == 1
    assert (tmp_path / "code/m7.py").read_text() == "x = 7\n"
    assert (tmp_path / "code/m7.py").stat().st_mode & 0o222 == 0
    cache.link_into(bundle.digest, tmp_path / "again")
    assert len(list((tmp_path / "again").iterdir())) == FILES


def test_prune_keeps_what_fits_and_drops_leftovers_of_killed_runners(tmp_path: Path, bundle: pack.Bundle) -> None:
    """Half-unpacked folders go after an hour, not before."""
    cache = BundleCache(tmp_path / "cache", {bundle.digest: bundle.data}.__getitem__)
    cache.ensure(bundle.digest)
    old, new = (tmp_path / "cache" / f"{bundle.digest}.{name}.part" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    assert cache.prune() == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([bundle.digest, new.name])


def test_a_bundle_that_is_not_what_it_says_is_refused(tmp_path: Path, bundle: pack.Bundle) -> None:
    """The digest is checked by whoever uses it."""
    cache = BundleCache(tmp_path / "cache", lambda _: bundle.data)
    with pytest.raises(DeployError, match="digest"):
        cache.ensure("0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []
