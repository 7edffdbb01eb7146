"""What a first call costs with a warm sandbox, with a spare stem and with neither, beside the engine alone."""

from __future__ import annotations

import subprocess
from itertools import count
from typing import Any

from runner import images
from tests.bench.bench import NOOP, Bench
from tests.bench.load import closed, request, timed_ms
from tests.bench.table import Row, interleaved
from tests.platform import Platform, until

_POOLS = "pools:\n  bare: {stems: 0}\n  spare: {}\n"
_NUMBERS = count()


def first_calls(bench: Bench) -> list[Row]:
    """warm, stem and cold first calls, beside docker run, docker exec and the engine's create and start"""
    client = images.connect()
    sleep = ["python3", "-c", "import time; time.sleep(900)"]
    container = client.containers.run(
        bench.image, sleep, detach=True, remove=True, init=True, network_mode="none", labels={"bananas.bench": "exec"}
    )
    options = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    run = ["docker", "run", *options, bench.image, "python3", "-c", "pass"]
    execute = ["docker", "exec", str(container.id), "python3", "-c", "pass"]
    try:
        references = {
            "docker run (python3 -c pass)": lambda: _command_ms(run),
            "docker exec (python3 -c pass) in a running container": lambda: _command_ms(execute),
            "container create + start": lambda: _create_and_start_ms(client.api, bench.image),
        }
        subjects: dict[str, Any] = {}
        for side, platform in bench.sides.items():
            tail = f" @{side}" if side else ""
            platform.deploy({"stays": NOOP}, "    pool: spare", _POOLS)  # so the pool keeps its spare ones
            for start, what in _STARTS.items():
                subjects[f"first call, {what}{tail}"] = _measure(platform, start)
        return interleaved(
            *("first-calls", "ms", {**references, **subjects}),
            bench.options.n(9, 1) if bench.options.rounds > 1 else 1,
            next(iter(references)),
        )
    finally:
        container.kill()
        client.close()


_STARTS = {
    "warm": "code loaded ahead (min_warm: 1)",
    "stem": "by a spare sandbox",
    "cold": "without one (stems: 0)",
}


def _measure(platform: Platform, start: str) -> Any:
    return lambda: _first_call_ms(platform, start)


def _first_call_ms(platform: Platform, start: str) -> float:
    """A new function's first call by HTTP; the runner's log must say that it started like that."""
    name = f"{start}{next(_NUMBERS)}"
    settings = {"warm": "    min_warm: 1", "stem": "    pool: spare", "cold": "    pool: bare"}[start]
    platform.deploy({name: NOOP}, settings, _POOLS)
    if start == "warm":
        until(lambda: _starts(platform, function=name), 60.0, f"the code of {name} to be loaded")
    elif start == "stem":
        until(lambda: _spares(platform) >= 2, 60.0, "two spare sandboxes")
    sample = closed(platform.port, request("POST", f"/functions/{name}/invoke", b"1"), 1, 1)
    told = _starts(platform, function=name)
    if sample.errors or (start != "warm" and [start] != [event["start"] for event in told]):
        raise SystemExit(f"the first call of {name} was to be a {start} start; the runner tells of {told}")
    platform.client.delete_function(name)
    return sample.latencies_ms[0]


def _spares(platform: Platform) -> int:
    """Stems of the pool that no function has taken."""
    return len(_starts(platform, pool="spare", start="spare")) - len(_starts(platform, pool="spare", start="stem"))


def _starts(platform: Platform, **wanted: str) -> list[dict[str, Any]]:
    """What the runners logged of sandboxes that started."""
    told = [event for process in platform.processes for event in process.events("sandbox.started")]
    return [event for event in told if wanted.items() <= event.items()]


def _command_ms(command: list[str]) -> float:
    (took_ms,) = timed_ms(lambda: subprocess.run(command, check=True, capture_output=True, timeout=60), 1)
    return took_ms


def _create_and_start_ms(api: Any, image: str) -> float:
    made: list[str] = []

    def create_and_start() -> None:
        host = api.create_host_config(network_mode="none", cap_drop=["ALL"], read_only=True)
        made.append(api.create_container(image, ["python3", "-c", "pass"], host_config=host)["Id"])
        api.start(made[0])

    (took_ms,) = timed_ms(create_and_start, 1)
    api.remove_container(made[0], force=True)
    return took_ms
