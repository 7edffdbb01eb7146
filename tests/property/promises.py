"""What must hold in the model after every step, however it came about: written apart from the model's operations."""

from __future__ import annotations

from tests.property.model import LIVE, PRIORITIES, Model


def keeps_promises(m: Model) -> None:
    """What must hold whatever the model thinks: one place per job, no job without a future, no runner asleep."""
    places: dict[str, list[str]] = {}
    for (pool, prio), ids in m.lanes.items():
        for job_id in ids:
            places.setdefault(job_id, []).append(f"pending in {pool}:{prio}")
    for name, ids in (
        ("scheduled", m.schedule),
        ("processing", m.leases),
        ("failed", m.dead),
        ("failed", m.calls),
        ("done", m.done),
    ):
        for job_id in ids:
            places.setdefault(job_id, []).append(name)
    for tickets in m.parked.values():
        for ticket in tickets:
            places.setdefault(ticket[3], []).append("parked")
    twice = {job_id: found for job_id, found in places.items() if len(found) != 1}
    assert not twice, f"in more than one place: {twice}"
    for job_id, job in m.jobs.items():
        wanted = "done" if job.state in ("completed", "cancelled") else job.state
        found = places.get(job_id, ["nowhere"])[0]
        assert found == (f"pending in {job.pool}:{job.prio}" if wanted == "pending" else wanted), (job_id, job.state)
        assert not job.waiters or job.state in LIVE
    for fn, tickets in m.parked.items():
        for lane in {ticket[:2] for ticket in tickets}:
            coming = sum(ticket[:2] == lane for ticket in m.called[fn])
            assert m.room(fn) <= coming, f"jobs of {fn} wait in {lane} though there is room"
    for name, pool in m.pools.items():
        has_room = not pool.max_concurrency or len(m.busy(name)) < pool.max_concurrency
        if has_room and any(m.lanes[name, prio] for prio in PRIORITIES):
            assert name in m.bells, f"jobs wait in {name}, and nobody was told"
