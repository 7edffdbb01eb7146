"""What goes wrong in a storm. Each runs in the caller's thread until ``stop`` is set or its own number is reached."""

from __future__ import annotations

import signal
import threading
import time

import redis

from bananas.job import Attempt, Claim, Decision, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from tests.chaos import plan
from tests.chaos.journal import Journal
from tests.chaos.storm import GRACE_S, LEASE_S, POOLS, Storm


def kills(storm: Storm, stop: threading.Event) -> int:
    """SIGKILL one runner and start another, again and again at random times; returns how often."""
    count = 0
    while not stop.wait(storm.rng.uniform(*plan.kill_every_s())):
        storm.kill9(storm.rng.choice(storm.runners))
        count += 1
        storm.runner()
    return count


def stalls(storm: Storm, stop: threading.Event, count: int) -> None:
    """SIGSTOP one runner for two leases, then SIGCONT."""
    for _ in range(count):
        victim = storm.rng.choice(storm.runners)
        found = storm.disrupt("stall", victim)
        victim.popen.send_signal(signal.SIGSTOP)
        stop.wait(2 * LEASE_S)
        victim.popen.send_signal(signal.SIGCONT)
        found.until_s = time.monotonic()
        if stop.wait(LEASE_S):
            return


def redis_kills(storm: Storm, stop: threading.Event, every_s: float, count: int) -> int:
    """SIGKILL Redis and start it on its files again."""
    done = 0
    while done < count and not stop.wait(every_s):
        found = storm.disrupt("redis")
        storm.redis.kill()
        storm.start_redis()
        found.until_s = time.monotonic()
        done += 1
    return done


def connection_storm(storm: Storm, stop: threading.Event) -> int:
    """CLIENT KILL for every connection and SCRIPT FLUSH, several times a second; returns how many were killed."""
    killed = 0
    with redis.Redis.from_url(storm.redis.url, socket_timeout=5) as client:
        while not stop.wait(storm.rng.uniform(0.1, 0.6)):
            storm.disrupt("clients")
            killed += int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            if storm.rng.random() < 0.5:
                client.script_flush()
    return killed


def partition(storm: Storm, stop: threading.Event, seconds: float) -> None:
    """The runners behind the proxy cannot reach Redis, nor it them; then what was held back arrives."""
    assert storm.behind_proxy, "no runner is behind the proxy"
    found = storm.disrupt("partition", *storm.behind_proxy)
    storm.proxy.stop()
    stop.wait(seconds)
    found.until_s = time.monotonic()
    storm.proxy.go()


def rolling_restarts(storm: Storm, count: int) -> None:
    """SIGTERM the oldest runner while a fresh one takes its place; its exit code must be 0."""
    for _ in range(count):
        storm.runner()
        oldest = storm.runners[0]
        storm.disrupt("restart")
        assert oldest.stop(GRACE_S + 15) == 0, oldest.text[-3000:]
        storm.bury(oldest)


class Zombie:
    """Somebody who claims jobs, extends no lease, and reports two leases later, and twice, what is long decided."""

    def __init__(self, storm: Storm, name: str) -> None:
        self._name = name
        self._connections = Connections(storm.redis.url)
        self._queue = Queue(self._connections)
        self._journal = Journal(storm.journal, name)
        self._storm = storm
        self.sent = 0
        self.accepted = 0

    def haunt(self, stop: threading.Event, places: int) -> None:
        """Once: claim up to ``places``, wait, report."""
        queue = self._queue
        claims, began_s = list[Claim](), time.monotonic()
        while len(claims) < places and time.monotonic() < began_s + LEASE_S / 2:
            free = places - len(claims)
            claims += queue.step(self._name, round(LEASE_S * 1000), [], [(pool, free) for pool in POOLS]).claims
            time.sleep(0.005)  # it competes with runners that wait for bells
        self._storm.disruptions.append(plan.Disruption("zombie", time.monotonic(), (self._name,)))
        reports = []
        for claim in claims:
            nonce = self._journal.begin(claim.id, claim.token, claim.failures + 1)
            attempt = Attempt(claim.token, Outcome.OK, self._name, 0)
            result = b'{"token":%d,"nonce":"%s"}' % (claim.token, nonce.encode())
            reports.append(Settlement(claim, attempt, Decision("complete"), result))
        stop.wait(2 * LEASE_S)
        for _ in range(2):
            settled = queue.step(self._name, round(LEASE_S * 1000), reports, []).settled
            extended = queue.extend(self._name, 60_000, [(claim.id, claim.token) for claim in claims])
            self.sent += len(settled) + len(extended)
            self.accepted += sum(settled) + sum(extended)
        self._connections.close()
