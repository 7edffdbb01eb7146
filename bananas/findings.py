"""One line of a diagnosis: what ``bananas.cli.checks`` and ``runner.doctor`` find, and ``bananas doctor`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found; JSON of these fields between the runner's looks and the command."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    #: What to do; empty when there is nothing to do, or when ``detail`` says it.
    next: str = ""
