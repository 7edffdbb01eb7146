"""``python -m bananas`` is the command ``bananas``."""

from __future__ import annotations

import sys

from bananas.cli import main

if __name__ == "__main__":
    sys.exit(main())
