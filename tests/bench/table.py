"""What was measured, as rows; how several subjects are measured in turns, and how the table and the JSON look."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.bench.load import Sample, median

#: What a subject's round gives: a sample of calls, or one figure in the unit of its row.
Round = Sample | float
Kind = Literal["calls", "ms", "per_s", "mb"]


@dataclass(slots=True)
class Row:
    """One line. ``ratio`` is against the reference in the same round: above 1 is more ms, more per second, more MB."""

    scenario: str
    what: str
    n: int | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    per_s: float | None = None
    mb: float | None = None
    ratio: float | None = None
    #: Lowest and highest of the rounds' ratios.
    ratios: list[float] = field(default_factory=list)
    ratio_of: str = ""
    reference: str = ""
    errors: int = 0


def interleaved(
    scenario: str,
    kind: Kind,
    subjects: Mapping[str, Callable[[], Round]],
    rounds: int,
    reference: str | None,
    ratio_of: Literal["p50_ms", "per_s"] = "p50_ms",
) -> list[Row]:
    """Measure each subject once in each round, beginning with another one each time; ratios are within a round."""
    names = list(subjects)
    found: dict[str, list[Round]] = {name: [] for name in names}
    for turn in range(rounds):
        for at in range(len(names)):
            name = names[(at + turn) % len(names)]
            found[name].append(subjects[name]())
    rows = []
    for name in names:
        row = _row(scenario, name, kind, found[name])
        if reference is not None and name != reference:
            row.reference = reference
            row.ratio_of = ratio_of if kind == "calls" else kind
            pairs = zip(found[name], found[reference], strict=True)
            row.ratios = [_figure(mine, ratio_of) / _figure(other, ratio_of) for mine, other in pairs]
            row.ratio = median(row.ratios)
        rows.append(row)
    return rows


def _figure(value: Round, ratio_of: str) -> float:
    if isinstance(value, Sample):
        return value.percentile(50) if ratio_of == "p50_ms" else value.per_s
    return value


def _row(scenario: str, what: str, kind: Kind, values: list[Round]) -> Row:
    row = Row(scenario, what)
    samples = [value for value in values if isinstance(value, Sample)]
    if samples:
        every = Sample([ms for sample in samples for ms in sample.latencies_ms])
        row.n = len(every.latencies_ms)
        row.p50_ms = median([sample.percentile(50) for sample in samples])
        row.p99_ms = median([sample.percentile(99) for sample in samples])
        row.p999_ms = every.percentile(99.9)
        row.per_s = median([sample.per_s for sample in samples])
        row.errors = sum(sample.errors for sample in samples)
        return row
    figure = median([float(value) for value in values])  # type: ignore[arg-type]
    match kind:
        case "ms":
            row.p50_ms, row.n = figure, len(values)
        case "per_s":
            row.per_s = figure
        case _:
            row.mb = figure
    return row


_COLUMNS = (("p50_ms", "p50 ms"), ("p99_ms", "p99 ms"), ("p999_ms", "p99.9"), ("per_s", "per s"), ("mb", "MB"))


def line(row: Row) -> str:
    """The row as text."""
    cells = "".join(_cell(getattr(row, key)) for key, _ in _COLUMNS)
    spread = f" ({min(row.ratios):.2f}-{max(row.ratios):.2f})" if len(row.ratios) > 1 else ""
    ratio = f"{row.ratio:8.2f}{spread}" if row.ratio is not None else ""
    errors = f"  {row.errors} errors" if row.errors else ""
    return f"{row.what:58}{cells}{ratio}{errors}".rstrip()


def _cell(value: float | None) -> str:
    return f"{value:9.2f}" if value is not None and value < 1000 else f"{value:9,.0f}" if value is not None else " " * 9


def header() -> str:
    """The head of the table."""
    return f"{'':58}" + "".join(f"{title:>9}" for _, title in _COLUMNS) + "   ratio (lowest-highest of the rounds)"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [text.partition(":")[2].strip() for text in _lines("/proc/cpuinfo") if text.startswith("model name")]
    memory = [text.split()[1] for text in _lines("/proc/meminfo") if text.startswith("MemTotal")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int(memory[0]) // 1024 if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows without what they do not say."""
    return [{key: value for key, value in asdict(row).items() if value not in (None, "", [])} for row in rows]
