"""Pools, runtimes, runners, health and metrics: what an operator and their tools look at."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint

from bananas.health import Check, Health
from bananas.metrics import CONTENT_TYPE
from bananas.queue import LaneDepth, Queue
from bananas.registry import Registry, RunnerInfo
from bananas.spec import PoolSpec
from gateway import bodies, live
from gateway.answers import Answer, iso, json_answer
from gateway.guard import read_body
from gateway.metrics import Scraper
from gateway.problems import problem

_POOL_BYTES = 64 * 1024


class OperateRoutes:
    """The calls on the installation itself."""

    def __init__(self, queue: Queue, registry: Registry, health: Health, scraper: Scraper) -> None:
        self._queue = queue
        self._registry = registry
        self._health = health
        self._scraper = scraper

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("operate", __name__)
        routes.add_url_rule("/pools", view_func=self.pools, methods=["GET"])
        routes.add_url_rule("/pools/<name>", view_func=self.put_pool, methods=["PUT"])
        routes.add_url_rule("/runtimes", view_func=self.runtimes, methods=["GET"])
        routes.add_url_rule("/runners", view_func=self.runners, methods=["GET"])
        routes.add_url_rule("/healthz", view_func=self.healthz, methods=["GET"])
        routes.add_url_rule("/readyz", view_func=self.readyz, methods=["GET"])
        routes.add_url_rule("/metrics", view_func=self.metrics, methods=["GET"])
        return routes

    def pools(self) -> Answer:
        """Every pool with what waits and runs in it."""
        pools, runners = self._registry.pools(), self._registry.runners()
        queued: dict[str, dict[str, int]] = {name: {} for name in pools}
        depths = self._queue.depths(list(pools))
        for lane in depths:
            queued[lane.pool][lane.priority] = lane.queued
        unserved = live.unserved(_totals(depths), runners)
        listed = [
            {
                "name": name,
                "spec": spec,
                "queued": queued[name],
                "processing": sum(runner.busy_in(name) for runner in runners),
                "runners": sum(runner.serves(name) for runner in runners),
                "waits_for_runner": name in unserved,
            }
            for name, spec in pools.items()
        ]
        return json_answer({"pools": listed})

    def put_pool(self, name: str) -> Answer:
        """Create or change a pool."""
        bodies.checked_name(name, "pool")
        changed = self._registry.put_pool(name, PoolSpec.decode(read_body(_POOL_BYTES, what="pool")))
        return json_answer({"name": name, "changed": changed})

    def runtimes(self) -> Answer:
        """What runners can run each runtime with, and the ABI that deploys install for."""
        found = self._registry.runtimes()
        return json_answer({"runtimes": {k: {**msgspec.structs.asdict(v), "abi": v.abi} for k, v in found.items()}})

    def runners(self) -> Answer:
        """Every live runner."""
        return json_answer({"runners": [_public(runner) for runner in self._registry.runners()]})

    def healthz(self) -> Answer:
        """200 while this process answers, whatever Redis does."""
        return json_answer({"status": "ok"})

    def readyz(self) -> Answer:
        """200 when jobs can be taken and kept; warnings are told but do not count."""
        checks = self._health.check()
        if failed := [check for check in checks if check.status == "failed"]:
            return problem("not-ready", "; ".join(check.detail for check in failed), checks=checks)
        checks += self._runners()
        return json_answer({"status": "ready", "checks": checks})

    def _runners(self) -> list[Check]:
        """Warnings for jobs that wait for a runner, and for runners that are not there or have no engine."""
        runners = self._registry.runners()
        queued = _totals(self._queue.depths(list(self._registry.pools())))
        waiting = live.unserved(queued, runners)
        if not runners:
            what = f" ({_list(queued, waiting)})" if waiting else ""
            detail = f"no runner is live: jobs are taken and wait{what}; start one with `bananas runner`"
            return [Check("runners", "warning", detail)]
        found = []
        if away := [runner.id for runner in runners if "engine" in runner.held_up.values()]:
            detail = f"the Docker Engine of {', '.join(away)} does not answer; no job begins there until it does"
            found.append(Check("engine", "warning", detail))
        if waiting:
            steps = live.start_one(",".join(waiting))
            found.append(Check("runners", "warning", f"no live runner serves {_list(queued, waiting)}; {steps}"))
        return found

    def metrics(self) -> Answer:
        """Prometheus text, from Redis at this moment."""
        return Answer(self._scraper.text(), media=CONTENT_TYPE)


def _totals(depths: list[LaneDepth]) -> dict[str, int]:
    """Jobs in the lanes of each pool."""
    totals: dict[str, int] = {}
    for lane in depths:
        totals[lane.pool] = totals.get(lane.pool, 0) + lane.queued
    return totals


def _list(queued: dict[str, int], pools: list[str]) -> str:
    return ", ".join(f"pool {pool!r} with {queued[pool]} job{'s'[: queued[pool] != 1]}" for pool in pools)


def _public(runner: RunnerInfo) -> dict[str, Any]:
    return {
        "id": runner.id,
        "host": runner.host,
        "pid": runner.pid,
        "pools": runner.pools,
        "seen_at": iso(runner.seen_at_ms),
        "started_at": iso(runner.started_at_ms),
        "busy": runner.busy,
        "sandboxes": runner.sandboxes,
        "gpus": runner.gpus,
        "held_up": runner.held_up,
    }
