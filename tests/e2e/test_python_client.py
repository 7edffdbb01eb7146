"""docs/python-client.md is true: its examples run in order, against a real gateway, runner and sandbox."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.platform import ROOT, Platform

pytestmark = [pytest.mark.redis, pytest.mark.docker]

PAGE = (ROOT / "docs/python-client.md").read_text("utf-8")
HELLO = """
def handle(event, context):
    if not event["name"]:
        raise ValueError("whom?")
    print("greeting", event["name"])
    return {"message": f"Hello, {event['name']}!"}
"""


def test_every_example_of_the_page_works_as_written(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, as a reader would type them; only the address is another."""
    platform.deploy({"hello": HELLO})
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) >= 10
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        source = block.replace("http://localhost:8080", platform.url)
        exec(compile(source, f"example {number} of the page:\n{block}", "exec"), names)
    told = capsys.readouterr().out
    assert "failed (retries_exhausted) after 1 attempt: ValueError: whom?" in told
    assert "greeting Ada\n" in told
    assert "did you mean 'hello'" in told
