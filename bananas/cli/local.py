"""``bananas invoke --local``: this process becomes ``python -m runner call``, which needs an engine and nothing else.

The payload travels as the standard input of that program, by way of a file that has no name.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from bananas.cli.services import become


def call(name: str, manifest: Path, payload: bytes) -> NoReturn:
    """Call the function of the manifest in a sandbox of its own; the exit code is that of the call."""
    with tempfile.TemporaryFile() as file:
        file.write(payload)
        file.seek(0)
        os.dup2(file.fileno(), 0)
        sys.stdout.flush()
        become("runner", "call", "--file", str(manifest), "--", name)
