"""Requirements are installed for the runtime's interpreter with the real uv, not for the interpreter at hand."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bananas import requirements
from bananas.errors import DeployError
from bananas.pack import pack
from bananas.requirements import install, target_of
from tests.tools import wheels

ABI = "cp311-x86_64-glibc2.36"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is the only place to look: set through the environment, as a user would."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def wanted(tmp_path: Path, text: str) -> Path:
    """A requirements file."""
    path = tmp_path / "requirements.txt"
    path.write_text(text)
    return path


def test_a_package_of_the_index_is_installed(tmp_path: Path) -> None:
    """With nothing but the machine's own index settings."""
    install(wanted(tmp_path, "six>=1.16\n"), ABI, tmp_path / "deps")
    assert (tmp_path / "deps" / "six.py").is_file()
    assert "__pycache__" not in os.listdir(tmp_path / "deps")
    assert not (tmp_path / "deps" / ".lock").exists()


def test_what_cannot_be_resolved_is_told_in_uvs_words(tmp_path: Path) -> None:
    """The file, the target, and the reason."""
    with pytest.raises(DeployError) as caught:
        install(wanted(tmp_path, "six==99.0\n"), ABI, tmp_path / "deps")
    assert "requirements.txt: uv could not install it for Python 3.11 on x86_64-manylinux_2_36" in str(caught.value)
    assert "there is no version of six==99.0" in " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    ("abi", "expected"),
    [
        ("cp311-x86_64-glibc2.36", "cp311 x86_64 new"),
        ("cp311-x86_64-glibc2.28", "cp311 x86_64 old"),
        ("cp313-aarch64-glibc2.41", "cp313 aarch64"),
    ],
)
def test_wheels_are_chosen_for_the_abi_that_was_published(tmp_path: Path, index: Path, abi: str, expected: str) -> None:
    """Another Python, another machine, another C library than the ones at hand."""
    wheels.build(index, "demo", "cp311-cp311-manylinux_2_34_x86_64", version="2.0", body="'cp311 x86_64 new'")
    wheels.build(index, "demo", "cp311-cp311-manylinux_2_17_x86_64", version="1.0", body="'cp311 x86_64 old'")
    wheels.build(index, "demo", "cp313-cp313-manylinux_2_17_aarch64", version="1.0", body="'cp313 aarch64'")
    install(wanted(tmp_path, "demo\n"), abi, tmp_path / "deps")
    assert (tmp_path / "deps" / "demo.py").read_text() == repr(expected)


def test_a_package_without_a_wheel_is_refused(tmp_path: Path, index: Path) -> None:
    """No build script of a package runs on the machine that deploys."""
    (index / "demo-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(DeployError, match=r"only wheels are used"):
        install(wanted(tmp_path, "demo\n"), ABI, tmp_path / "deps")


def test_installing_twice_packs_to_the_same_digest(tmp_path: Path, index: Path) -> None:
    """Nothing of the run, its time or its folder gets into the bundle."""
    wheels.build(index, "demo", body="x = 1\n")
    path = wanted(tmp_path, "demo\n")
    for name in ("a", "b"):
        install(path, ABI, tmp_path / name)
    assert pack(tmp_path / "a", ignore=()) == pack(tmp_path / "b", ignore=())


def test_an_empty_file_installs_nothing(tmp_path: Path, index: Path) -> None:
    """Only comments: no error."""
    install(wanted(tmp_path, "# nothing yet\n"), ABI, tmp_path / "deps")
    assert not (tmp_path / "deps").exists() or os.listdir(tmp_path / "deps") == []


@pytest.mark.parametrize(
    "abi", ["cp311-x86_64-musl1.2", "cp311-riscv64-glibc2.36", "cp311-x86_64-glibc2.5", "pp311", ""]
)
def test_an_abi_without_wheels_is_refused_before_anything_runs(tmp_path: Path, abi: str) -> None:
    """The message names it and the ways out."""
    with pytest.raises(DeployError, match=r"requirements cannot be installed for the runtime's ABI"):
        install(tmp_path / "requirements.txt", abi, tmp_path / "deps")


@pytest.mark.parametrize(
    ("libc", "platform"),
    [("2.17", "2_17"), ("2.27", "2_17"), ("2.30", "2_28"), ("2.31", "2_31"), ("2.40", "2_40"), ("2.99", "2_40")],
)
def test_the_platform_is_the_newest_that_the_runtimes_glibc_satisfies(libc: str, platform: str) -> None:
    """A wheel for a newer glibc would not load."""
    assert target_of(f"cp312-aarch64-glibc{libc}") == ("3.12", f"aarch64-manylinux_{platform}")


def test_a_missing_uv_and_a_slow_one_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install; and no wait without an end."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    path = wanted(tmp_path, "six\n")
    with pytest.raises(DeployError, match=r"uv is needed .* install it with: pip install uv"):
        install(path, ABI, tmp_path / "deps")
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(requirements, "TIMEOUT_S", 0.2)
    with pytest.raises(DeployError, match=r"installing took longer than 0.2 s"):
        install(path, ABI, tmp_path / "deps")
