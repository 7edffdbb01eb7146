"""The suite's own promises: a clean Redis for each test, and no container left behind, whoever dies."""

from __future__ import annotations

import docker
import pytest
import redis

from tests.tools.leftovers import LABEL, LOCKS, Run, remove_containers, sweep


def containers(engine: docker.DockerClient, run_id: str) -> int:
    return len(engine.api.containers(all=True, filters={"label": f"{LABEL}={run_id}"}))


def create(engine: docker.DockerClient, image: str, run_id: str) -> None:
    engine.containers.create(image, labels={LABEL: run_id}, network_mode="none")


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_redis(redis_url: str, turn: int) -> None:
    """What one test wrote, the next does not see."""
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        assert client.dbsize() == 0
        client.set("left behind by turn", turn)


def test_the_containers_of_a_dead_run_are_removed(engine: docker.DockerClient, redis_image: str) -> None:
    """A run whose lock is free was killed; the next run cleans up after it."""
    dead = "0-test-of-a-dead-run"
    create(engine, redis_image, dead)
    create(engine, redis_image, dead)
    (LOCKS / dead).touch()
    assert sweep(engine)[dead] == 2
    assert containers(engine, dead) == 0
    assert not (LOCKS / dead).exists()


def test_the_containers_of_a_live_run_are_left_alone(engine: docker.DockerClient, redis_image: str) -> None:
    """A run that holds its lock works on the same engine undisturbed, and ends clean."""
    live = Run()
    create(engine, redis_image, live.id)
    assert live.id not in sweep(engine)
    assert containers(engine, live.id) == 1
    assert remove_containers(engine, live.id) == 1
    live.close()
    assert not (LOCKS / live.id).exists()


def test_a_run_that_is_not_provably_dead_is_left_alone(engine: docker.DockerClient, redis_image: str) -> None:
    """Without its lock file there is no proof: the run may belong to another machine on the same engine."""
    elsewhere = "0-test-of-a-run-elsewhere"
    create(engine, redis_image, elsewhere)
    try:
        assert elsewhere not in sweep(engine)
        assert containers(engine, elsewhere) == 1
    finally:
        remove_containers(engine, elsewhere)
