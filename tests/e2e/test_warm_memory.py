"""The memory budget of a runner, on a real engine."""

from __future__ import annotations

from tests.e2e.test_warm import DEADLINE_S, ECHO, attempt, counted, stocked
from tests.platform import Platform, until


def test_memory_of_idle_sandboxes_goes_to_the_work_that_waits(redis_url, base_image):
    """Within BANANAS_SANDBOX_MEMORY the longest unused one ends for a function that needs a sandbox."""
    env = {"BANANAS_PYTHON_IMAGE": base_image.image, "BANANAS_SANDBOX_MEMORY": "300M"}
    with Platform(redis_url, **env) as platform:
        platform.gateway()
        runner = platform.runner()
        small = "pools:\n  default: {memory: 100M, concurrency: 8, stems: 1}"
        platform.deploy({f"m{n}": ECHO for n in range(4)}, pools=small)
        until(lambda: "may use 800 MiB together, this runner has 300 MiB" in runner.text, DEADLINE_S, "the warning")
        stocked(platform, "default", 1)
        used = []
        for n in range(3):
            used.append(attempt(platform, f"m{n}"))
            if n < 2:
                stocked(platform, "default", 1)
        assert [a["start"] for a in used] == ["stem"] * 3
        last = attempt(platform, "m3")
        assert (last["start"], last["start_reason"]) == ("cold", "no_stem")
        counted(platform, "end:default:m0:memory")
        assert attempt(platform, "m1")["start"] == "warm"
