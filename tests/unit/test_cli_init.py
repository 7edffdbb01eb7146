"""``bananas init``: what it writes is a valid app, and it never overwrites anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bananas.cli.templates import TEMPLATES

Cli = Callable[..., SimpleNamespace]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_a_valid_app(bananas: Cli, tmp_path: Path, template: str) -> None:
    """Its files are named as they are made, and three commands say how to go on."""
    done = bananas("init", "shop", "--template", template)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[:3] == [f"created shop/{name}" for name in TEMPLATES[template]]
    assert [line.split("  #")[0].strip() for line in lines[5:]][:2] == ["cd shop", "bananas dev"]
    assert len(lines) == 8
    assert max(map(len, lines)) <= 80
    assert bananas("validate", "-f", "shop/bananas.yaml").out == "shop/bananas.yaml is valid: 1 function, 0 pools\n"


def test_the_current_folder_needs_no_cd(bananas: Cli, tmp_path: Path) -> None:
    """And other files there are left alone."""
    (tmp_path / "notes.txt").write_text("mine")
    told = json.loads(bananas("init", "-o", "json").out)
    assert told["next"][0] == "bananas dev"
    assert told["files"] == list(TEMPLATES["python"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_in_the_way_is_listed_and_nothing_is_written(bananas: Cli, tmp_path: Path) -> None:
    """Also a link that leads nowhere, and a file where a folder is to be."""
    (tmp_path / "bananas.yaml").write_text("mine")
    (tmp_path / ".gitignore").symlink_to("nowhere")
    (tmp_path / "functions").write_text("mine too")
    done = bananas("init")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: bananas.yaml, functions, .gitignore are there already, and nothing is ever")
    assert (tmp_path / "bananas.yaml").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert bananas("init", "functions/app").err.startswith("error: functions is there already")
    assert bananas("init", "/proc/app").err.startswith("error: /proc/app/bananas.yaml cannot be written: ")
