"""Shell completion: what is printed makes a real bash complete, and zsh and fish are answered in their form."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def run(*command: str, **env: str) -> str:
    """The output of a real process, with the installed command on its path."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**environ, "PATH": path, **env}, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("line", "expected"),
    [("bananas expl", ["explain"]), ("bananas jobs ca", ["cancel"]), ("bananas init --template no", ["node"])],
)
def test_bash_completes_commands_options_and_choices(line: str, expected: list[str]) -> None:
    """By the function that the printed lines define."""
    script = (
        'set -eu; eval "$(bananas completion bash)"; COMP_WORDS=($LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        'COMPREPLY=(); _bananas_completion bananas; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert run("bash", "--norc", "-c", script, LINE=line).split() == expected


@pytest.mark.parametrize(
    ("shell", "asks", "says"),
    [
        ("zsh", {"COMP_WORDS": "bananas expl", "COMP_CWORD": "1"}, "plain\nexplain\nSay where a job's time went"),
        ("fish", {"COMP_WORDS": "bananas expl", "COMP_CWORD": "expl"}, "explain"),
    ],
)
def test_zsh_and_fish_are_answered(shell: str, asks: dict[str, str], says: str) -> None:
    """As the lines printed for them ask; these shells need not be here."""
    source = run("bananas", "completion", shell)
    assert f"_BANANAS_COMPLETE={shell}_complete" in source
    assert says in run("bananas", _BANANAS_COMPLETE=f"{shell}_complete", **asks)
