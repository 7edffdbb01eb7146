"""A compiled package in the image made from the host: resolved, downloaded and run as a user would have it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bananas import deploy, manifest
from bananas.errors import DeployError
from bananas.spec import RuntimeInfo
from tests.platform import Platform

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

HANDLER = """
import datetime, ssl, zoneinfo
import numpy

def handle(event, context):
    matrix = numpy.array(event, dtype=float)
    noon = datetime.datetime(2026, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Asia/Tokyo"))
    return {
        "inverse": numpy.linalg.inv(matrix).tolist(),
        "utc": noon.astimezone(datetime.timezone.utc).hour,
        "authorities": ssl.create_default_context().cert_store_stats()["x509_ca"] > 0,
    }
"""
MANIFEST = """
version: 1
functions:
  algebra:
    requirements: requirements.txt
"""


@pytest.fixture
def platform(redis_url: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner with the image of the host."""
    with Platform(redis_url, BANANAS_PYTHON_IMAGE=base_image.image) as platform:
        platform.gateway()
        platform.runner()
        yield platform


def put(platform: Platform, name: str, requirements: str) -> None:
    """Deploy the function out of a folder of its own."""
    folder = platform.folder / name / "functions/algebra"
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text(HANDLER, "utf-8")
    (folder / "requirements.txt").write_text(requirements, "utf-8")
    path = platform.folder / name / "bananas.yaml"
    path.write_text(MANIFEST, "utf-8")
    deploy.deploy(platform.client, manifest.load(path, {}), None, lambda line: None)


def test_numpy_of_the_requirements_runs_in_the_image_of_the_host(platform: Platform) -> None:
    """Its compiled code, the zone data and the certificate authorities are there; a version that is not to be had is
    refused at deploy in the resolver's own words."""
    put(platform, "good", "numpy>=2\n")
    answer = json.loads(platform.client.invoke("algebra", [[2, 0], [0, 4]]))
    assert answer == {"inverse": [[0.5, 0.0], [0.0, 0.25]], "utc": 3, "authorities": True}
    with pytest.raises(DeployError) as caught:
        put(platform, "bad", "numpy==0.0.1\n")
    assert "there is no version of numpy==0.0.1" in " ".join(str(caught.value).split())
    assert json.loads(platform.client.invoke("algebra", [[1]]))["inverse"] == [[1.0]]
