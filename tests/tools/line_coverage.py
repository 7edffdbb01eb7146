"""The share of lines that the tests ran, and whether it is enough; the last check of scripts/test.

Reads what ``coverage json -o -`` prints on stdin. Counts lines alone: the percentage of ``coverage report`` mixes in
branches, since pyproject.toml has them measured.
"""

from __future__ import annotations

import json
import sys
from typing import Final

WANTED_PERCENT: Final = 94
#: The exit code of scripts/test for it, beside those of scripts/setup.
TOO_LOW: Final = 21


def main() -> int:
    """Prints one line with the figure; ``TOO_LOW`` when it is below what is wanted."""
    totals = json.load(sys.stdin)["totals"]
    ran, lines = totals["covered_lines"], totals["num_statements"]
    if not lines:
        print("line coverage: nothing was measured")
        return TOO_LOW
    tenths = ran * 1000 // lines  # cut, not rounded: 93.96 is not 94.0
    enough = ran * 100 >= WANTED_PERCENT * lines
    print(
        f"line coverage: {tenths // 10}.{tenths % 10} %, {ran} of {lines} lines; "
        f"{'enough' if enough else 'too low'}, at least {WANTED_PERCENT} % are wanted"
    )
    return 0 if enough else TOO_LOW


if __name__ == "__main__":
    sys.exit(main())
