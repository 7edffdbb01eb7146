"""The built wheel, installed into an environment of its own, is the whole product: commands, scripts, services."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import __version__
from bananas.ports import free_port
from tests.platform import ROOT, Process

INSTALL_S = 110


def run(*command: str | Path, cwd: Path) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("BANANAS_", "COVERAGE_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=plain, capture_output=True, text=True, timeout=INSTALL_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The python of an environment that holds the wheel and what it requires, and nothing of this checkout."""
    with tempfile.TemporaryDirectory(prefix="bn-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        assert wheel.name.startswith(f"bananas_faas-{__version__}-")
        venv.create(folder / "venv", with_pip=False)
        python = folder / "venv/bin/python"
        run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, wheel, cwd=folder)
        yield python


def test_the_command_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Version, and a check of the example's bananas.yaml."""
    bananas = installed.parent / "bananas"
    assert run(bananas, "--version", cwd=tmp_path).strip().endswith(__version__)
    assert "is valid" in run(bananas, "validate", "-f", ROOT / "bananas.yaml", cwd=tmp_path)


def test_scripts_and_shim_are_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    """What is not Python is packed too."""
    code = """
import pathlib, sys
import bananas.scripts, bananas_sdk, gateway, runner
assert len(bananas.scripts.load()) == len(bananas.scripts.NAMES)
root = pathlib.Path(runner.__file__).parent
assert not root.is_relative_to(sys.argv[1]), root
assert (root / "shim/python/keeper.py").is_file()
assert (root / "shim/node/keeper.cjs").is_file()
assert pathlib.Path(bananas_sdk.__file__) == root.parent / "bananas_sdk.py"
assert (pathlib.Path(gateway.__file__).parent / "gunicorn.conf.py").is_file()
print("all there")
"""
    assert run(installed, "-c", code, ROOT, cwd=tmp_path).strip() == "all there"


def test_the_gateway_starts_from_the_wheel(installed: Path, redis_url: str, tmp_path: Path) -> None:
    """Installed anywhere, started from anywhere."""
    env = {"BANANAS_REDIS_URL": redis_url, "BANANAS_PORT": str(free_port()), "PYTHONSAFEPATH": "1"}
    gateway = Process("gateway", [str(installed), "-m", "gateway"], env, tmp_path, "gateway listening on")
    assert gateway.stop() == 0
