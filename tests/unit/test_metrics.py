"""The catalogue of metrics, what is made of it, and the files for Prometheus and Grafana that name its metrics."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bananas import metrics
from bananas.job import Attempt, Outcome
from bananas.metrics import GATEWAY, RUNNER, Exposition
from runner.reasons import EndReason, Start, StartReason
from runner.tally import Tally

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/bananas.json"
TIMEOUT_S = 60


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def filled(catalogue: tuple[metrics.Measure, ...]) -> Exposition:
    """One value for each metric."""
    told = Exposition(catalogue)
    for measure in catalogue:
        labels = [f"some_{label}" for label in measure.labels]
        if not measure.field:
            told.set(measure.name, 1, *labels)
        elif measure.kind == "histogram":
            told.count({":".join([measure.field, *labels, "5"]): 1, ":".join([measure.sums, *labels]): 3})
        else:
            told.count({":".join([measure.field, *labels]): 1})
    return told


def test_names_are_unique_and_fields_lead_to_one_metric() -> None:
    """What is counted once is told once."""
    for catalogue in (GATEWAY, RUNNER):
        words = [word for measure in catalogue for word in (measure.field, measure.sums) if word]
        assert len(set(words)) == len(words)
    names = [measure.name for measure in (*GATEWAY, *RUNNER)]
    assert len(set(names)) == len(names)


def test_histograms_add_their_buckets_up() -> None:
    """Fields hold one bucket each, Prometheus wants all that are below; sums are told in seconds."""
    told = Exposition(GATEWAY)
    told.count({"queued:default:1": 2, "queued:default:10": 3, "queued:default:inf": 1, "queued_us:default": 2_500_000})
    found = samples(told.text())
    name = "bananas_attempt_queued_seconds"
    bounds = ("0.001", "0.005", "0.01", "300.0", "+Inf")
    assert [found[f"{name}_bucket", le, "default"] for le in bounds] == [2, 2, 5, 5, 6]
    assert (found[f"{name}_count", "default"], found[f"{name}_sum", "default"]) == (6, 2.5)


def test_what_is_not_in_the_catalogue_cannot_be_told() -> None:
    """A name or a label that nobody wrote down is a mistake; a field of another release is left out."""
    told = Exposition(GATEWAY)
    with pytest.raises(KeyError):
        told.set("bananas_surprise", 1)
    with pytest.raises(ValueError, match="bananas_running_jobs"):
        told.set("bananas_running_jobs", 1)
    told.count({"surprise:x": 1, "enqueued:too:many": 1})
    assert "surprise" not in told.text().decode()


def test_counters_begin_at_zero_where_their_labels_are_known() -> None:
    """Else the first dead letter of a reason would be no increase, and no alert."""
    told = Exposition(GATEWAY)
    told.count({})
    found = samples(told.text())
    assert found["bananas_dead_letters_total", "poisoned"] == 0
    assert found["bananas_leases_expired_total",] == 0


def test_a_tally_tells_what_is_new_once_and_its_totals_always() -> None:
    """What could not be told to Redis is told the next time; the runner's own page counts from its start."""
    tally = Tally()
    tally.started("default", "hello", "s1", Start.COLD, StartReason.NO_STEM, 200.0)
    attempt = Attempt(
        1, Outcome.OK, "r", 0, timings={"queued_ms": 3.0, "init_ms": 0.0, "run_ms": 7.5, "total_ms": 12.0}
    )
    tally.settled("default", attempt, accepted=True)
    tally.settled("default", attempt, accepted=False)
    tally.abandoned("lease lost")
    first = tally.take()
    assert first["start:default:hello:cold:no_stem"] == first["queued:default:5"] == first["run:default:10"] == 1
    assert first["run_us:default"] == 7500
    assert not any(name.startswith(("init", "attempt", "abandoned", "refused")) for name in first)
    tally.put_back(first)
    assert tally.take() == first
    tally.ended("default", "hello", "s1", 1, EndReason.IDLE)
    assert tally.take() == {"end:default:hello:idle": 1}
    totals = tally.totals()
    assert totals["queued:default:5"] == totals["end:default:hello:idle"] == totals["attempt:default:ok"] == 1
    assert totals["refused"] == totals["abandoned:lease_lost"] == 1


def test_a_tally_tells_only_so_many_functions_apart() -> None:
    """So a runner that lives long does not grow without end."""
    tally = Tally()
    for n in range(3000):
        tally.ended("default", f"f{n}", "s", 1, EndReason.IDLE)
    counts = tally.take()
    assert (len(counts), counts["end:default:_others:idle"]) == (2001, 1000)


@pytest.mark.parametrize("catalogue", [GATEWAY, RUNNER], ids=["gateway", "runner"])
def test_promtool_finds_nothing_to_say_about_the_metrics(promtool: str, catalogue: tuple[metrics.Measure, ...]) -> None:
    """Names, units and suffixes are those that Prometheus asks for."""
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=filled(catalogue).text(),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_accepts_configuration_and_alerts_and_their_tests_pass(
    promtool: str, arguments: tuple[str, ...]
) -> None:
    """Each alert is shown to be silent before its time, and to say what it should."""
    done = subprocess.run(
        [promtool, *arguments], cwd=RULES, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    """One that was never seen to fire may never do."""
    names = set(re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text("utf-8")))
    tests = (RULES / "alerts_test.yml").read_text("utf-8")
    fired = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\n", tests))
    assert fired == names
    assert names


def test_dashboard_and_alerts_name_metrics_of_the_catalogue() -> None:
    """A renamed metric would leave them empty and silent."""
    known = set()
    for measure in (*GATEWAY, *RUNNER):
        ends = ("_bucket", "_sum", "_count") if measure.kind == "histogram" else ("",)
        known |= {measure.name + end for end in ends}
    queries = [
        target["expr"]
        for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]
    used = set(re.findall(r"\bbananas_\w+", " ".join(queries)))
    used |= set(re.findall(r"\bbananas_\w+", (RULES / "alerts.yml").read_text("utf-8")))
    assert used - known == set()
    assert len(used) > 40
