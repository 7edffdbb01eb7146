"""Documents that cannot rot: what they name exists, what is generated is current, examples in docstrings are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests.tools import references

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("functions/**/*.md")])


def table_entries() -> list[str]:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text("utf-8")
    table = text.split("## Where is X decided")[1].split("\n## ")[0]
    return re.findall(r"`([\w./-]+(?:::\w+)?)`", table)


@pytest.mark.parametrize("entry", table_entries())
def test_every_place_in_the_where_is_x_decided_table_exists(entry):
    """A reader who follows the table finds the file and the symbol in it."""
    path, _, symbol = entry.partition("::")
    source = ROOT / path
    assert source.is_file(), f"{path} is not there"
    if symbol:
        names = set()
        for node in ast.parse(source.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
        assert symbol in names, f"{path} defines no {symbol}"


def test_the_table_covers_what_a_reader_looks_for():
    """The table is not emptied by accident."""
    assert len(table_entries()) >= 20


@pytest.mark.parametrize("page", references.PAGES, ids=lambda page: page.TARGET.name)
def test_pages_that_are_generated_are_current(page):
    """When this fails, run ``python -m tests.tools.references``."""
    assert page.TARGET.read_text("utf-8") == page.text(), "python -m tests.tools.references"


def test_every_table_of_the_manifests_page_is_generated():
    """None is written beside the keys."""
    page = (ROOT / "docs/bananas-yaml.md").read_text("utf-8")
    outside = re.sub(r"<!-- generated: \w+ -->.*?<!-- end -->", "", page, flags=re.S)
    assert "| key |" not in outside
    assert page.count("<!-- generated: ") == 8


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    """Every relative link in every document points to a file of the repository."""
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize(
    "module",
    [
        *("bananas.units", "bananas.retry", "bananas.cron", "bananas.codec", "bananas.redis_client"),
        *("bananas.webhooks", "bananas.addresses", "runner.maintenance.callbacks"),
    ],
)
def test_doctests(module):
    """Examples in docstrings are true."""
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
