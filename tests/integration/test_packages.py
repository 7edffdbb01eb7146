"""What package.json asks for is installed with the real npm, for the machine that runs it, and without scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bananas import packages
from bananas.errors import DeployError
from bananas.pack import pack

ABI = "node22-x86_64-glibc2.36"

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on PATH")


@pytest.fixture
def function(tmp_path: Path) -> Path:
    """A function whose one dependency lies beside its code, and would leave a mark if its script ran."""
    folder = tmp_path / "greet"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "package.json").write_text(
        json.dumps({"name": "tiny", "version": "1.0.0", "scripts": {"install": "touch ran"}})
    )
    (folder / "lib" / "index.js").write_text("module.exports = 'tiny'")
    (folder / "package.json").write_text(json.dumps({"dependencies": {"tiny": "file:lib"}}))
    return folder


@needs_npm
def test_dependencies_are_installed_and_can_be_packed(function: Path, tmp_path: Path) -> None:
    """The same text gives the same bytes; no script of a package runs."""
    digests = set()
    for n in range(2):
        target = tmp_path / f"deps{n}"
        packages.install(function, ABI, target)
        assert (target / "tiny" / "index.js").read_text() == "module.exports = 'tiny'"
        assert not list(target.rglob("ran"))
        digests.add(pack(target, ignore=()).digest)
    assert len(digests) == 1
    assert not (function / "node_modules").exists()


@needs_npm
def test_what_cannot_be_installed_is_told_in_npms_words(function: Path, tmp_path: Path) -> None:
    """The file, and the reason."""
    (function / "package.json").write_text(json.dumps({"dependencies": {"tiny": "file:gone.tgz"}}))
    with pytest.raises(DeployError, match=r"package\.json: npm could not install it:(.|\n)*gone\.tgz"):
        packages.install(function, ABI, tmp_path / "deps")


def test_only_packages_that_are_asked_for_and_not_there_are_wanted(function: Path) -> None:
    """node_modules in the folder is taken as it is; a lock file is part of what decides."""
    plain = packages.wanted(function)
    assert plain is not None
    (function / "package-lock.json").write_text("{}")
    assert packages.wanted(function) not in (None, plain)
    (function / "node_modules").mkdir()
    assert packages.wanted(function) is None
    (function / ".bananasignore").write_text("node_modules/\n")
    assert packages.wanted(function) is not None
    (function / "node_modules").rmdir()
    (function / "package.json").write_text('{"type": "module"}')
    assert packages.wanted(function) is None
    (function / "package.json").write_text("[1]")
    with pytest.raises(DeployError, match="JSON object"):
        packages.wanted(function)


def test_without_npm_the_error_says_what_to_do(function: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install it, or bring the packages."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeployError, match=r"npm is needed.*node_modules"):
        packages.install(function, ABI, tmp_path / "deps")
