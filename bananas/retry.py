"""What happens to a job after an attempt, as pure functions. The move itself is ``scripts/step.lua``.

The table of outcomes:

| outcome | decision |
|---|---|
| ok | complete |
| error, timeout, oom, crashed | retry while ``failures < max``, else dead: retries_exhausted |
| permanent | dead: permanent |
| start | retry with backoff, nothing used up, at most 5 times, then dead: start_failed |
| handed_back, held_up | back to the head of its lane |
| displaced | likewise, counted with the starts: after 5 of these the runner says ``crashed`` |
| lost, cancelled, expired | decided in Redis (reap.lua, cancel.lua, step.lua), since no runner is there to tell |
"""

from __future__ import annotations

from random import Random

from bananas.job import DeadReason, Decision, Outcome
from bananas.settings import LIMITS
from bananas.spec import RetrySpec

#: Backoff of start-up failures: the engine's trouble, not the function's, so its own policy does not apply.
START_BACKOFF = RetrySpec(max=LIMITS.max_starts, base_ms=1000, factor=2, cap_ms=30_000)


def delay_ms(policy: RetrySpec, failures: int, rng: Random) -> int:
    """Milliseconds until the next attempt after ``failures`` failed ones (at least 1).

    ``min(cap, base * factor ** (failures - 1))``; with ``jitter: full`` uniform between 0 and that.
    Source of full jitter: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.

    >>> [delay_ms(RetrySpec(), n, Random(0)) for n in (1, 2, 3)]
    [2000, 4000, 8000]
    >>> delay_ms(RetrySpec(cap_ms=5000), 20, Random(0))
    5000
    """
    # The exponent is bounded so that a factor of 10 cannot overflow a float long after the cap is reached.
    full = min(policy.cap_ms, policy.base_ms * policy.factor ** min(failures - 1, 64))
    return round(rng.uniform(0, full)) if policy.jitter == "full" else round(full)


def decide(
    outcome: Outcome,
    policy: RetrySpec,
    failures: int,
    starts: int,
    rng: Random,
    *,
    retry_after_s: float | None = None,
) -> Decision:
    """The decision for an attempt that just ended.

    Args:
        failures: failed attempts before this one (the retry budget is ``policy.max``).
        starts: start-up failures before this one.
        retry_after_s: the handler's own wish for the delay, in seconds; capped by the policy's cap.
    """
    match outcome:
        case Outcome.OK:
            return Decision("complete")
        case Outcome.PERMANENT:
            return Decision("dead", reason=DeadReason.PERMANENT)
        case Outcome.START:
            if starts >= LIMITS.max_starts:
                return Decision("dead", reason=DeadReason.START_FAILED)
            return Decision("retry", delay_ms(START_BACKOFF, starts + 1, rng))
        case Outcome.ERROR | Outcome.TIMEOUT | Outcome.OOM | Outcome.CRASHED:
            if failures >= policy.max:
                return Decision("dead", reason=DeadReason.RETRIES_EXHAUSTED)
            if retry_after_s is not None:
                return Decision("retry", round(min(max(retry_after_s, 0) * 1000, policy.cap_ms)))
            return Decision("retry", delay_ms(policy, failures + 1, rng))
        case Outcome.HANDED_BACK | Outcome.HELD_UP | Outcome.DISPLACED:
            return Decision("back")
        case Outcome.LOST | Outcome.CANCELLED | Outcome.EXPIRED:
            raise ValueError(f"{outcome} is decided in Redis, not by a runner")
