"""Images from Debian's packages, as far as no mirror is needed: which mirrors, which files, which errors."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from bananas.errors import ConfigError
from runner import debianimage
from runner.debianimage import mirror_lines

BASE = "http://mirror.test/debian/\tbookworm\tmain\tDebian"
UPDATES = "http://mirror.test/debian/\tbookworm-updates\tmain\tDebian"
SECURITY = "http://mirror.test/security/\tstable-security\tmain\tDebian"


def test_a_release_comes_from_the_hosts_own_mirrors() -> None:
    """Base, updates and security each from where this host has its own, whichever release that is."""
    assert mirror_lines("\n".join((BASE, UPDATES, SECURITY, BASE)), "trixie") == [
        "deb http://mirror.test/debian/ trixie main",
        "deb http://mirror.test/debian/ trixie-updates main",
        "deb http://mirror.test/security/ trixie-security main",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "http://mirror.test/ubuntu/\tnoble\tmain\tUbuntu",
        "http://mirror.test/tools/\tbookworm\tmain\tSomebody",
        "http://mirror.test/debian/\tbookworm\tnon-free\tDebian",
        SECURITY,
        "",
    ],
)
def test_a_host_without_a_debian_mirror_leaves_the_choice_to_mmdebstrap(line: str) -> None:
    """Other distributions, components and repositories are none of it, nor is security alone."""
    assert mirror_lines(line, "trixie") == []


def test_a_mirror_is_known_before_the_first_update() -> None:
    """Without package lists apt does not know the origin; the address tells."""
    line = "http://mirror.test/debian\tbookworm\tmain\t$(ORIGIN)"
    assert mirror_lines(line, "bookworm") == ["deb http://mirror.test/debian bookworm main"]


def test_an_unknown_release_is_named_with_the_known_ones(tmp_path: Path) -> None:
    """Nothing is fetched for it."""
    with pytest.raises(ConfigError, match=r"images are made from Debian's bookworm and trixie, not 'buster'"):
        debianimage.fetch("buster", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_mmdebstrap_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is one command."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mmdebstrap is not on PATH.*apt-get install .*mmdebstrap"):
        debianimage.fetch("trixie", tmp_path)


def test_what_mmdebstrap_says_is_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that does not answer shows up with the tool's own words."""
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\necho 'E: no such mirror' >&2\nexit 25\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match=r"mmdebstrap failed: E: no such mirror"):
        debianimage.fetch("trixie", tmp_path)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("usr/bin/python3.13", True),
        ("lib/x86_64-linux-gnu/libc.so.6", True),
        ("lib64/ld-linux-x86-64.so.2", True),
        ("usr/lib/python3.13/asyncio/base_events.py", True),
        ("usr/lib/python3.13/lib-dynload/_ssl.cpython-313-x86_64-linux-gnu.so", True),
        ("usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so", True),
        ("usr/share/zoneinfo/Europe/Berlin", True),
        ("usr/bin/dpkg", False),
        ("usr/bin/openssl", False),
        ("usr/lib/x86_64-linux-gnu/gconv/IBM1399.so", False),
        ("usr/lib/python3.13/test/support.py", False),
        ("usr/lib/python3.13/sitecustomize.py", False),
        ("usr/lib/python3.13/lib-dynload/_testcapi.cpython-313-x86_64-linux-gnu.so", False),
        ("usr/share/zoneinfo/right/Europe/Berlin", False),
        ("usr/share/doc/tzdata/copyright", False),
        ("etc/shadow", False),
    ],
)
def test_only_what_functions_use_is_unpacked(tmp_path: Path, path: str, kept: bool) -> None:
    """The interpreter and what it needs, at its place in a merged /usr; no shell, no package manager."""
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(f"./{path}")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    debianimage._unpack(archive, tmp_path / "root")
    place = path if path.startswith(("usr/", "etc/")) else f"usr/{path}"
    assert (tmp_path / "root" / place).is_file() == kept


def test_nothing_is_unpacked_outside(tmp_path: Path) -> None:
    """A path that climbs out is left out."""
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("usr/share/zoneinfo/../../../../out"))
    assert debianimage._unpack(archive, tmp_path / "root") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["root.tar"]
