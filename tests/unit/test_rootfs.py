"""What a root file system needs of this host, asked in both ways."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bananas.errors import ConfigError
from runner import rootfs
from runner.rootfs import closure


@pytest.fixture
def binaries() -> list[Path]:
    extensions = sorted(path for path in map(Path, sys.path) if path.name == "lib-dynload")
    return [Path(sys._base_executable).resolve(), *sorted(extensions[0].glob("_*.so"))[:5]]


def test_without_ldd_the_loader_is_asked_itself(binaries: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that we made has no ldd, and images can be made in it all the same, of the same libraries."""
    by_ldd = closure(binaries)
    assert by_ldd.loader
    assert "libc.so.6" in by_ldd.libraries
    monkeypatch.setenv("PATH", "/nonexistent")
    by_loader = closure(binaries)
    assert (by_loader.libraries, by_loader.loader, by_loader.broken) == (by_ldd.libraries, by_ldd.loader, by_ldd.broken)


def test_a_host_with_neither_says_what_it_lacks(binaries: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the package to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(rootfs, "LOADERS", ("nonexistent/ld-*",))
    with pytest.raises(ConfigError, match=r"no ldd on PATH.*libc-bin"):
        closure(binaries)
