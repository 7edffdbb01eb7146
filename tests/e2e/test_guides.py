"""The guides are true: their files and commands are taken out of the text and run, in order, against a real stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas.spec import RuntimeInfo
from tests.e2e.test_readme import demo, environ
from tests.platform import ROOT

GUIDES = ("getting-started.md", "troubleshooting.md")
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>run|file: (?P<path>\S+)) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```", re.M | re.S
)


@pytest.fixture(scope="module")
def stack(base_image: RuntimeInfo) -> Iterator[str]:
    """The example app under ``bananas dev``; the URL of its gateway."""
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    with demo.DemoStack(folder / "s", environ(base_image)) as running:
        running.wait_live()
        yield running.stack.url
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_of_a_guide_works_as_written(guide: str, stack: str, tmp_path: Path) -> None:
    """Files are written as shown, commands run one after the other, and the first one that fails stops."""
    script = ["set -eu"]
    for block in _BLOCK.finditer((ROOT / "docs" / guide).read_text("utf-8")):
        if block["path"]:
            target = tmp_path / block["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block["text"], "utf-8")
        elif block["mark"] == "run":
            script.append(block["text"])
    assert len(script) > 1
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-xc", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "BANANAS_URL": stack},
        capture_output=True,
        text=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("guide", [*GUIDES, "concepts.md", "deployment.md"])
def test_no_shell_block_stands_unchecked(guide: str) -> None:
    """What is not marked to be run is a make target, which the README's tests check."""
    for block in _BLOCK.finditer((ROOT / "docs" / guide).read_text("utf-8")):
        if block["kind"] == "sh" and block["mark"] is None:
            makefile = (ROOT / "Makefile").read_text("utf-8")
            for line in block["text"].splitlines():
                assert re.fullmatch(r"make \w+", line), line
                assert f"\n{line.split()[1]}:" in makefile
