"""A storm over the queue alone: real Redis, real runner processes without containers, real kills.

``Storm`` starts and ends things, sends the jobs and waits until all of them are over; what goes wrong meanwhile is
decided by ``tests.chaos.disruptors``, what that did to the jobs is judged by ``tests.chaos.verdict``.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from bananas import errors, keys
from bananas.embedded import EmbeddedRedis
from bananas.job import NewJob
from bananas.ports import free_port
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import PRIORITIES, Bundles, Deployment, FunctionSpec, PoolSpec, RetrySpec
from tests.chaos import plan
from tests.chaos.plan import Disruption, JobPlan, Sent
from tests.platform import Process, until
from tests.tools.tcp_proxy import TcpProxy

LEASE_S = 2.0
REAP_S = LEASE_S / 6
GRACE_S = 1.0
SLOTS = 8
POOLS = ("default", "gpu", "email")
#: Until an acknowledgement, whatever happens meanwhile.
ACK_S = 120.0
_CODE = b"nothing"
_BATCH = 50


class Storm:
    """Redis with AOF, any number of light runners, and the jobs that were sent."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="bn-storm-"))
        self.journal = self.folder / "journal"
        self.journal.mkdir()
        self.redis = EmbeddedRedis(self.folder / "redis", port=free_port())
        # The kernel ends the server with the thread that started it, so that thread must stay.
        self._keeper = ThreadPoolExecutor(1)
        self.start_redis()
        self.proxy = TcpProxy(int(self.redis.url.rpartition(":")[2].partition("/")[0]))
        self.connections = Connections(self.redis.url)
        self.queue = Queue(self.connections)
        self.runners: list[Process] = []
        self.behind_proxy: list[Process] = []
        self.gone: list[Process] = []
        self.sent: list[Sent] = []
        self.disruptions: list[Disruption] = []
        #: How much is where, when last looked.
        self.left: dict[str, int] = {}
        self._numbers = itertools.count()
        self._deploy()

    def _deploy(self) -> None:
        registry = Registry(self.connections)
        for pool in POOLS:
            registry.put_pool(pool, PoolSpec(concurrency=SLOTS))
        sha = hashlib.sha256(_CODE).hexdigest()
        registry.put_bundle(sha, _CODE)
        retries = RetrySpec(max=plan.RETRIES, base_ms=100)
        functions = {
            "work": FunctionSpec(retries=retries, allow_pools=POOLS[1:]),
            "narrow": FunctionSpec(retries=retries, max_concurrency=plan.NARROW),
        }
        for name, spec in functions.items():
            registry.deploy(name, Deployment(spec=spec, bundles=Bundles(code=sha), abi="any"))

    def start_redis(self) -> None:
        """Start Redis on its files; returns when it answers."""
        self._keeper.submit(self.redis.start).result(timeout=60)

    # -- runners ----------------------------------------------------------------------------------------------

    def runner(self, *, behind_proxy: bool = False, module: Sequence[str] = ("tests.chaos.light_runner",)) -> Process:
        """Start another one; returns when it serves."""
        url = f"redis://127.0.0.1:{self.proxy.port}/0" if behind_proxy else self.redis.url
        env = {
            "BANANAS_REDIS_URL": url,
            "BANANAS_LEASE_S": str(LEASE_S),
            "BANANAS_GRACE_S": str(GRACE_S),
            "BANANAS_STATE_DIR": str(self.folder / "state"),
            "PYTHONUNBUFFERED": "1",
        }
        args = [sys.executable, "-m", *module, str(self.journal)]
        process = Process(f"runner{next(self._numbers)}", args, env, self.folder, "ready, pools:")
        self.runners.append(process)
        if behind_proxy:
            self.behind_proxy.append(process)
        return process

    def start(self, count: int, *, behind_proxy: int = 0) -> None:
        """Start many at once, the last ones behind the proxy."""
        threads = [
            threading.Thread(target=self.runner, kwargs={"behind_proxy": i >= count - behind_proxy})
            for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(self.runners) == count, f"{len(self.runners)} of {count} runners started"

    def kill9(self, process: Process) -> None:
        """SIGKILL, written down with its time."""
        self.disrupt("kill", process)
        process.kill9()
        self.bury(process)

    def bury(self, process: Process) -> None:
        """It is not one of the runners any more."""
        self.runners.remove(process)
        self.gone.append(process)

    def disrupt(self, kind: str, *processes: Process) -> Disruption:
        """Write down that this happens now."""
        found = Disruption(kind, time.monotonic(), tuple(name_of(p) for p in processes))
        self.disruptions.append(found)
        return found

    # -- jobs -------------------------------------------------------------------------------------------------

    def send(self, jobs: Sequence[JobPlan], spread_s: float) -> None:
        """Send them, evenly over ``spread_s`` seconds, alone or in batches; then withdraw those to be cancelled.

        One that may or may not have arrived is sent again under its id until it is acknowledged.
        """
        began_s = time.monotonic()
        # A run apart from that of the disruptors: how often they draw must not change the jobs.
        rng = Random(self.rng.random())
        at = 0
        while at < len(jobs):
            due = len(jobs) * (time.monotonic() - began_s) / spread_s if spread_s else len(jobs)
            if at >= due:
                time.sleep(min(0.05, spread_s / len(jobs)))  # the pace is what is asked for
                continue
            count = rng.choice((1, 1, _BATCH)) if due - at < 2 * _BATCH else _BATCH
            self._send([_sent(job) for job in jobs[at : at + count]])
            at += count
        for sent in [s for s in self.sent if s.plan.end == "cancelled"]:
            self._withdraw(sent.job.id)

    def _send(self, batch: list[Sent]) -> None:
        self.sent += batch
        left, deadline_s = list(batch), time.monotonic() + ACK_S
        while left:
            assert time.monotonic() < deadline_s, f"{len(left)} jobs were not acknowledged within {ACK_S:g} s"
            answers = self.queue.enqueue_many([sent.job for sent in left])
            now_s = time.monotonic()
            for sent, answer in zip(left, answers, strict=True):
                if not isinstance(answer, errors.BananasError):
                    sent.acked_s = now_s
                elif not isinstance(answer, errors.RedisUnavailable):
                    raise answer
            left = [sent for sent in left if sent.acked_s is None]
            if left:
                time.sleep(0.1)  # Redis is away; a client would wait as well

    def _withdraw(self, job_id: str) -> None:
        deadline_s = time.monotonic() + ACK_S
        while True:
            try:
                self.queue.cancel(job_id)
            except errors.RedisUnavailable:
                assert time.monotonic() < deadline_s, f"cancel of {job_id} was not acknowledged within {ACK_S:g} s"
                time.sleep(0.1)
            except (errors.JobFinished, errors.UnknownJob):
                return  # an earlier try arrived; or it was lost, which the verdict tells
            else:
                return

    def settle_down(self, deadline_s: float) -> None:
        """Wait until nothing waits or runs any more; what is left at the deadline is told."""
        places = [keys.SCHEDULE, keys.LEASES, keys.EXPIRING]
        lanes = [keys.lane(pool, priority) for pool in POOLS for priority in PRIORITIES]

        def is_quiet() -> bool:
            try:
                with self.connections.guard():
                    pipe = self.connections.commands.pipeline(transaction=True)
                    for key in (*places, keys.parked("narrow")):
                        pipe.zcard(key)
                    for key in lanes:
                        pipe.llen(key)
                    self.left = dict(zip((*places, "parked", *lanes), pipe.execute(), strict=True))
            except errors.RedisUnavailable:
                return False
            return not any(self.left.values())

        try:
            until(is_quiet, deadline_s, "every job to be over")
        except AssertionError as e:
            left = {key: n for key, n in self.left.items() if n}
            raise AssertionError(f"{e}; left: {left}\n{self.logs()}") from None

    # -- the end ----------------------------------------------------------------------------------------------

    def logs(self) -> str:
        """The last output of every runner that is still there."""
        return "\n".join(f"--- {p.name}\n{p.text[-1500:]}" for p in self.runners)

    def close(self) -> None:
        """End every process and remove every file."""
        self.proxy.go()
        for process in self.runners:
            process.popen.send_signal(signal.SIGCONT)
            process.kill9()
        self.proxy.close()
        self.connections.close()
        self.redis.stop()
        self._keeper.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.logs())
        self.close()


def name_of(process: Process) -> str:
    """What a light runner calls itself."""
    return f"light-{process.popen.pid}"


def _sent(job: JobPlan) -> Sent:
    import msgspec

    payload = msgspec.json.encode(job.event)
    new = NewJob(job.function, payload, pool=job.pool, priority=job.priority, delay_ms=job.delay_ms)  # type: ignore[arg-type]
    return Sent(job, new)
