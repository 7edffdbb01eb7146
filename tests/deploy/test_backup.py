"""Backups of a Redis that is at work, as docs/operations.md makes them, and what a new Redis made of them holds.

Everything of before the backup is there and goes on: jobs that wait, run, are delayed or failed, results, functions
with their archives, schedules, pools, tokens, secrets.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from bananas.embedded import EmbeddedRedis
from bananas.secrets import new_key
from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

WAIT_S = 60.0
NAP = "import time\n\n\ndef handle(event, context):\n    time.sleep(0.2)\n    return event\n"
BREAKS = "class Broken(Exception):\n    permanent = True\n\n\ndef handle(event, context):\n    raise Broken('so')\n"
TELL = "def handle(event, context):\n    return open('/run/secrets/WORD').read()\n"
POOLS = "pools:\n  default: {concurrency: 2, stems: 1}\n  few: {concurrency: 1, stems: 0}"
JOBS = 24
#: How a server with an append-only file is given a snapshot: it reads no dump.rdb beside it.
MANIFEST = "file appendonly.aof.1.base.rdb seq 1 type b\n"


@dataclass
class Copies:
    """Both kinds of backup of one moment, and what had been accepted before."""

    folder: Path
    env: dict[str, str]
    waiting: dict[str, int]
    done: str
    failed: str
    later: str


@pytest.fixture(scope="module")
def copies(base_image: RuntimeInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    """A platform at work, backed up twice in the middle of it, and then lost with its Redis."""
    folder = tmp_path_factory.mktemp("backup")
    # One for all: it is one installation, and the next runner removes what a killed one left.
    state = tempfile.mkdtemp(prefix="bn-")
    env = {
        "BANANAS_STATE_DIR": state,
        "BANANAS_LEASE_S": "3",
        "BANANAS_GRACE_S": "5",
        "BANANAS_PYTHON_IMAGE": base_image.image,
        "BANANAS_SECRET_KEY": new_key(),
    }
    with EmbeddedRedis(folder / "first") as server, Platform(server.url, **env) as platform:
        gateway, runner = platform.gateway(), platform.runner()
        client = platform.client
        client.put_secret("WORD", b"sesame")
        client.create_token("ci", ("deploy",), (), None)
        platform.deploy({"nap": NAP, "breaks": BREAKS}, pools=POOLS)
        platform.deploy({"tell": TELL}, "    secrets: [WORD]")
        platform.deploy({"report": NAP}, '    schedule: {cron: "0 4 * * *"}')
        client.pause_schedule("report")
        done = client.submit("nap", "kept")["id"]
        failed = client.submit("breaks", None)["id"]
        assert client.wait(done, timeout_s=WAIT_S)["status"] == "completed"
        assert client.wait(failed, timeout_s=WAIT_S)["status"] == "failed"
        later = client.submit("nap", "later", delay="1h")["id"]
        waiting = {client.submit("nap", n, unique_key=f"n{n}")["id"]: n for n in range(JOBS)}
        until(lambda: platform.queue.counts().leased, WAIT_S, "jobs to run")
        copy_append_only_file(server, folder / "aof")
        copy_snapshot(server, folder / "rdb")
        for process in (gateway, runner):
            process.kill9()
        yield Copies(folder, env, waiting, done, failed, later)
    shutil.rmtree(state)


def copy_append_only_file(server: EmbeddedRedis, target: Path) -> None:
    """While no rewrite can replace a file of the set."""
    with redis.Redis.from_url(server.url, socket_timeout=5) as client:
        [percentage] = client.config_get("auto-aof-rewrite-percentage").values()
        client.config_set("auto-aof-rewrite-percentage", 0)
        until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], WAIT_S, "the end of a rewrite")
        shutil.copytree(server.data_dir / "appendonlydir", target / "appendonlydir")
        client.config_set("auto-aof-rewrite-percentage", percentage)


def copy_snapshot(server: EmbeddedRedis, target: Path) -> None:
    """Written by the server at our word, made the base of a new append-only file."""
    with redis.Redis.from_url(server.url, socket_timeout=5) as client:
        client.bgsave()
        until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], WAIT_S, "the snapshot")
        assert client.info("persistence")["rdb_last_bgsave_status"] == "ok"
    files = target / "appendonlydir"
    files.mkdir(parents=True)
    shutil.copy(server.data_dir / "dump.rdb", target.parent)
    shutil.copy(server.data_dir / "dump.rdb", files / "appendonly.aof.1.base.rdb")
    (files / "appendonly.aof.manifest").write_text(MANIFEST)


def test_a_snapshot_alone_is_not_read(copies: Copies) -> None:
    """A server with an append-only file starts empty beside a dump.rdb, which is why the guide has another way."""
    folder = copies.folder / "alone"
    folder.mkdir()
    shutil.copy(copies.folder / "dump.rdb", folder / "dump.rdb")
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url, socket_timeout=5) as client:
        assert client.dbsize() == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["aof", "rdb"])
def test_a_restored_redis_goes_on_with_everything(copies: Copies, kind: str) -> None:
    """Each job of before the backup is there, what had not ended runs, and nothing that was deployed is missing."""
    with EmbeddedRedis(copies.folder / kind) as server, Platform(server.url, **copies.env) as platform:
        platform.gateway()
        platform.runner()
        client = platform.client
        assert client.job(copies.done)["result"] == "kept"
        assert client.job(copies.later)["status"] == "scheduled"
        results = {job: client.wait(job, timeout_s=WAIT_S) for job in copies.waiting}
        assert {record["status"] for record in results.values()} == {"completed"}
        assert {job: record["result"] for job, record in results.items()} == copies.waiting
        assert client.submit("nap", 0, unique_key="n0")["duplicate"]

        assert [letter["id"] for letter in client.dead()["letters"]] == [copies.failed]
        client.replay(copies.failed)
        assert client.wait(copies.failed, timeout_s=WAIT_S)["reason"] == "permanent"
        assert client.invoke("tell", None) == b'"sesame"'
        assert client.invoke("nap", "new") == b'"new"'
        assert [(each["function"], each["paused"]) for each in client.schedules()] == [("report", True)]
        assert [token["name"] for token in client.tokens()] == ["ci"]
        assert {"default", "few"} <= set(platform.registry.pools())
        assert platform.queue.counts().counters.get("orphans", 0) == 0
