"""docs/cli.md says what the commands say."""

from __future__ import annotations

import pytest

from tests.tools import cli_reference


def test_the_command_line_page_is_generated_from_the_commands() -> None:
    """When this fails, run ``python -m tests.tools.cli_reference``."""
    assert cli_reference.TARGET.read_text("utf-8") == cli_reference.text(), "python -m tests.tools.cli_reference"


def test_the_page_depends_neither_on_the_terminal_nor_on_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that everybody writes the same one."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("BANANAS_URL", "http://elsewhere:1")
    assert cli_reference.TARGET.read_text("utf-8") == cli_reference.text()
