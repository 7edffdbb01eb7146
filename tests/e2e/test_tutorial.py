"""docs/tutorial.md is true: its commands run as they are written, in order, with the wheel of this checkout."""

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

from bananas.cli.templates import TEMPLATES
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.platform import ROOT

TUTORIAL = (ROOT / "docs/tutorial.md").read_text("utf-8")
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S)
BLOCKS = [(block["mark"] or "", block["kind"], block["text"]) for block in _BLOCK.finditer(TUTORIAL)]

#: Around a command that stays: started behind, waited for by what it says, ended when the script ends.
_STAYS = """\
{command} > stays.log 2>&1 &
stays=$!
trap 'kill $stays; wait $stays || true' EXIT
until grep -q 'Ctrl-C stops everything' stays.log; do kill -0 $stays || {{ cat stays.log; exit 1; }}; sleep 0.2; done
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="bn-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environ(folder: Path) -> dict[str, str]:
    """A shell with the interpreter of this environment, but nothing that is installed in it."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("BANANAS_", "COVERAGE_", "VIRTUAL_ENV"))}
    inside = str(Path(sys.executable).parent)
    path = [part for part in os.environ["PATH"].split(os.pathsep) if part != inside]
    port = free_port()
    return plain | {
        "PATH": os.pathsep.join([str(folder / "bin"), *path]),
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {folder / 'dist'}".strip(),
        "BANANAS_PORT": str(port),
        "BANANAS_URL": f"http://127.0.0.1:{port}",
        "BANANAS_STATE_DIR": str(folder / "s"),
    }


@pytest.mark.timeout(400)
def test_the_tutorial_works_as_it_is_written(base_image: RuntimeInfo, folder: Path) -> None:
    """From an empty folder to called functions; the only thing added is where pip finds the wheel of this checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=110)
    (folder / "bin").mkdir()
    (folder / "bin/python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    script = ["set -eu"]
    for mark, _, text in BLOCKS:
        if mark == "run":
            script.append(text)
        elif mark == "stays":
            script.append(_STAYS.format(command=text.strip()))
    done = subprocess.run(
        ["bash", "-xc", "\n".join(script)],
        cwd=folder,
        env=environ(folder),
        capture_output=True,
        text=True,
        timeout=380,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '{"message":"Hello, Ada!"}' in done.stdout.replace(": ", ":")
    # How old its runc is, is up to the machine; `bananas doctor` warns of that.
    assert "ok       sandbox memory: " in done.stdout
    assert set(re.findall(r"^(?:warning|failed)\s+(.+?): ", done.stdout, re.M)) <= {"runc"}
    assert "attempt 1: ok, the handler returned" in done.stdout
    assert "a new job with the same input" in done.stderr


def test_ten_commands_lead_to_a_deployed_function() -> None:
    """As the title says, counted up to the first call."""
    commands = [line for mark, kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    assert commands[9].startswith("bananas invoke hello")
    assert [command for command in commands[:9] if command.startswith("bananas invoke")] == []


def test_every_block_is_run_or_is_what_init_writes() -> None:
    """Nothing on the page stands unchecked."""
    for mark, kind, text in BLOCKS:
        if kind == "sh":
            assert mark in ("run", "stays"), text
        else:
            _, template, name = mark.split()
            assert text == TEMPLATES[template][name]
