"""``make bench``: what each thing costs, beside references measured in the same run and in turns with it.

    make bench                                  everything, about half an hour
    make bench ARGS="calls drain"               these scenarios
    make bench ARGS="--against HEAD~3 calls"    this checkout beside another revision of it, in the same run
    make bench ARGS="--quick calls"             does it work? The figures mean nothing

Absolute figures are of this machine at this moment; the ratios are the result. Each scenario ends by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.bench import calls, claims, cost, drains, growth, idle, memory, starts, stored, table, waiting
from tests.bench.bench import Bench, Options
from tests.bench.table import Row

Scenario = Callable[[Bench], list[Row]]
SCENARIOS: Final[dict[str, Scenario]] = {
    "calls": calls.calls,
    "open-loop": calls.open_loop,
    "payloads": calls.payloads,
    "submit": calls.submit,
    "drain": drains.drain,
    "flow": drains.flow,
    "cpu": cost.cpu,
    "first-calls": starts.first_calls,
    "burst": calls.burst,
    "waiting": waiting.waiting,
    "memory": memory.memory,
    "stored": stored.stored,
    "idle": idle.idle,
    "growth": growth.growth,
    "claim-cost": claims.claim_cost,
}
#: Those that set another revision beside this checkout.
COMPARING: Final = (
    "calls",
    "open-loop",
    "payloads",
    "submit",
    "drain",
    "flow",
    "cpu",
    "first-calls",
    "burst",
    "memory",
)


def main(argv: list[str]) -> int:
    """Measure and print; returns 0 unless a call failed."""
    chosen = arguments(argv)
    before = table.machine()
    print(" · ".join(f"{key} {value}" for key, value in before.items()) + "\n")
    rows: list[Row] = []
    took_s: dict[str, float] = {}
    with Bench(Options(chosen.rounds, chosen.quick, chosen.against)) as bench:
        for name in chosen.scenarios:
            began_s = time.monotonic()
            found = SCENARIOS[name](bench)
            took_s[name] = round(time.monotonic() - began_s, 1)
            print(f"{name}: {SCENARIOS[name].__doc__} [{took_s[name]:g} s]\n{table.header()}")
            print("\n".join(map(table.line, found)) + "\n", flush=True)
            rows += found
    after = table.machine()
    print(f"load of the last minute: {before['load_1m']} before, {after['load_1m']} after")
    if chosen.json:
        report: dict[str, Any] = {"before": before, "after": after, "arguments": argv, "took_s": took_s}
        chosen.json.write_text(json.dumps({**report, "rows": table.as_json(rows)}, indent=1) + "\n", "utf-8")
    return 1 if any(row.errors for row in rows) else 0


def arguments(argv: list[str]) -> argparse.Namespace:
    """What is asked for; ends the process with a usage message for what cannot be."""
    lines = [f"  {name:12} {scenario.__doc__}" for name, scenario in SCENARIOS.items()]
    parser = argparse.ArgumentParser(
        "make bench ARGS=…",
        description="Measure Bananas beside references.",
        epilog="scenarios:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="small numbers and one round: does it work?")
    parser.add_argument("--rounds", type=int, help="turns of everything that is compared (default: 5)")
    parser.add_argument("--against", default="", metavar="REVISION", help="a git revision to set beside this checkout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there")
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {unknown[0]!r}; known are {', '.join(SCENARIOS)}")
    chosen.scenarios = chosen.scenarios or list(COMPARING if chosen.against else SCENARIOS)
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 5)
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
