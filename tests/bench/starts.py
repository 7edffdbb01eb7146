"""What a first call costs with a spare stem, without one, and what the engine alone takes, side by side in one run."""

from __future__ import annotations

from typing import Any

from runner import images
from tests.bench.load import median, timed_ms
from tests.platform import Platform, until

FIRST_CALLS = 9
_POOLS = "pools:\n  bare: {stems: 0}"


def first_calls(platform: Platform, source: str, image: str) -> dict[str, float]:
    """Medians in ms: ``engine`` create and start of a container, ``cold`` and ``stem`` first calls by HTTP."""
    client = images.connect()
    try:
        engine = median([_create_and_start_ms(client.api, image) for _ in range(FIRST_CALLS)])
    finally:
        client.close()
    stem, cold = [], []
    for n in range(FIRST_CALLS):
        platform.deploy({f"stem{n}": source})
        platform.deploy({f"cold{n}": source}, "    pool: bare", _POOLS)
        _wait_for_stems(platform, 2 + n)
        stem.append(_call_ms(platform, f"stem{n}", "stem"))
        cold.append(_call_ms(platform, f"cold{n}", "cold"))
    return {"engine": engine, "stem": median(stem), "cold": median(cold)}


def _call_ms(platform: Platform, function: str, start: str) -> float:
    """One call; the counters must say afterwards that it started like that."""
    (took_ms,) = timed_ms(lambda: platform.client.invoke(function, 1), 1)
    log = "".join(process.text for process in platform.processes)
    if f"function={function} " not in log or f"start={start} " not in log.split(f"function={function} ")[1]:
        raise SystemExit(
            f"the first call of {function} was to be a {start} start; see the runner's log:\n{log[-2000:]}"
        )
    return took_ms


def _wait_for_stems(platform: Platform, number: int) -> None:
    """Until the runner has started so many spare ones in all."""
    until(
        lambda: sum(process.text.count("start=spare") for process in platform.processes) >= number,
        60.0,
        f"{number} stems to be started",
    )


def _create_and_start_ms(api: Any, image: str) -> float:
    made: list[str] = []

    def create_and_start() -> None:
        host = api.create_host_config(network_mode="none", cap_drop=["ALL"], read_only=True)
        made.append(api.create_container(image, ["python3", "-c", "pass"], host_config=host)["Id"])
        api.start(made[0])

    (took_ms,) = timed_ms(create_and_start, 1)
    api.remove_container(made[0], force=True)
    return took_ms
