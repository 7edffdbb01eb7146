"""One line of a diagnosis, as the looks of ``runner.doctor`` give it and ``bananas doctor`` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found; the fields are those of ``bananas.cli.checks.Finding``, as JSON between two processes."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    #: What to do; empty when there is nothing to do, or when ``detail`` says it.
    next: str = ""
