"""``bananas top`` against a real gateway: one frame for pipes, and a live screen on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from bananas.cli import top
from bananas.job import NewJob
from bananas.spec import PoolSpec
from tests.integration.gateway_player import Player
from tests.platform import Platform

pytestmark = pytest.mark.redis


@pytest.fixture
def player(platform: Platform, redis_url: str) -> Player:
    """A pool, a function and a runner with two sandboxes."""
    player = Player(platform.queue, platform.registry)
    platform.registry.put_pool("default", PoolSpec(concurrency=4))
    player.deploy("hello")
    player.announce(default_busy=1, default_stem=2)
    return player


def command(platform: Platform, *args: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-m", "bananas", "--url", platform.url, "top", *args], dict(os.environ)


def test_rates_are_what_happened_between_two_samples(platform: Platform, player: Player) -> None:
    """Jobs that were accepted, ran and wait are counted; a frame is at most 80 columns wide."""
    before = top.take(platform.client)
    for _ in range(3):
        player.queue.enqueue(NewJob("hello", b"{}"))
    player.settle(player.claim(), result=b"1")
    now = top.take(platform.client)
    told = top.frame(before, now)
    past_s = now.at_s - before.at_s
    [function] = told["functions"]
    assert function["accepted_per_s"] == pytest.approx(3 / past_s, rel=0.01)
    assert function["ok_per_s"] == pytest.approx(1 / past_s, rel=0.01)
    assert function["not_ok_per_s"] == 0
    [pool] = told["pools"]
    assert (pool["queued"]["normal"], pool["slots"], pool["runners"], pool["processing"]) == (2, 4, 1, 1)
    [runner] = told["runners"]
    assert runner["sandboxes"] == {"busy": 1, "stem": 2}
    assert max(map(len, top.lines(platform.url, told))) <= 80
    assert all(f["ok_per_s"] is None for f in top.frame(now, now)["functions"])


def test_a_pipe_gets_one_frame(platform: Platform, player: Player) -> None:
    """As text without colour or cursor, and as JSON."""
    args, env = command(platform, "--interval", "0.2")
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.count("POOL  ") == 2
    assert "1 busy 2 stem" in done.stdout
    args, env = command(platform, "--once", "--interval", "0.2", "-o", "json")
    told = json.loads(subprocess.run(args, env=env, capture_output=True, timeout=60, check=True).stdout)
    assert [pool["name"] for pool in told["pools"]] == ["default"]


def test_a_terminal_is_drawn_again_and_left_as_it_was(platform: Platform, player: Player) -> None:
    """Several frames on the other screen; Ctrl-C leaves with exit code 0 and gives the screen back."""
    args, env = command(platform, "--interval", "0.2")
    master, slave = pty.openpty()
    process = subprocess.Popen(args, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    deadline_s = time.monotonic() + 30
    try:
        while seen.count(b"\x1b[H") < 3:
            assert time.monotonic() < deadline_s, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        while select.select([master], [], [], 0)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:  # how Linux tells that nobody has the other end any more
                break
    finally:
        process.kill()
        process.wait(20)
        os.close(master)
    assert seen.startswith(b"\x1b[?1049h")
    assert b"FUNCTION" in seen
    assert seen.endswith(b"\x1b[?25h\x1b[?1049l")
