"""Secrets of functions whose image is one's own: files in memory like everybody's, and seen nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bananas import deploy, manifest
from bananas.secrets import ensure_key_file
from bananas.spec import RuntimeInfo
from tests.platform import Platform, until
from tests.tools.leftovers import Run

pytestmark = pytest.mark.docker

IMAGE = "bananas-test/own-secrets:1"
FIRST, SECOND = "planted-own-secret-one", "planted-own-secret-two"
LOOK = """
import json, os
def look():
    value = open("/run/secrets/TOKEN").read()
    try:
        open("/run/secrets/other", "w")
        writes = True
    except OSError:
        writes = False
    print("printed " + value, file=__import__("sys").stderr, flush=True)
    return {"value": value[-3:], "uid": os.getuid(), "writes": writes, "files": os.listdir("/run/secrets"),
            "in_env": any(value in text for text in os.environ.values())}
"""
SERVER = """
import http.server, json, os
from look import look
started_with = look()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps({**look(), "at_start": started_with["value"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
PROCESS = "import json\nfrom look import look\nprint(json.dumps(look()))\n"
YAML = f"""
version: 1
functions:
  web: {{image: {IMAGE}, contract: http, path: app, command: [python3, /run/bananas/code/server.py], secrets: [TOKEN]}}
  tool: {{image: {IMAGE}, contract: exec, path: app, command: [python3, /run/bananas/code/tool.py], secrets: [TOKEN]}}
"""


@pytest.fixture(scope="module")
def own_image(engine: docker.DockerClient, base_image: RuntimeInfo, run: Run) -> Iterator[str]:
    """An image with a user of its own, who is not the one of sandboxes."""
    container = engine.containers.create(base_image.image, labels=run.labels)
    container.commit(*IMAGE.split(":"), changes="USER 1234:1234")
    container.remove()
    yield IMAGE
    engine.images.remove(IMAGE, force=True)


@pytest.fixture(scope="module")
def app(
    empty_redis: str, base_image: RuntimeInfo, own_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    folder: Path = tmp_path_factory.mktemp("app")
    (folder / "app").mkdir()
    for name, text in (("look.py", LOOK), ("server.py", SERVER), ("tool.py", PROCESS)):
        (folder / "app" / name).write_text(text)
    (folder / "bananas.yaml").write_text(YAML)
    with Platform(empty_redis) as platform:
        platform.env["BANANAS_SECRET_KEY_FILE"] = str(ensure_key_file(platform.folder / "secret.key"))
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        platform.client.put_secret("TOKEN", FIRST.encode())
        deploy.deploy(platform.client, manifest.load(folder / "bananas.yaml", {}), None, lambda _: None)
        yield platform


@pytest.mark.parametrize("function", ["web", "tool"])
def test_an_image_of_ones_own_finds_its_secrets_and_a_new_value_needs_no_deploy(
    app: Platform, engine: docker.DockerClient, function: str
) -> None:
    """Read-only files that its own user may read, there when its program starts; no value anywhere else."""
    app.client.put_secret("TOKEN", FIRST.encode())
    for secret in (FIRST, FIRST, SECOND):
        app.client.put_secret("TOKEN", secret.encode())
        record = app.finished(app.client.submit(function, None)["id"])
        seen = record["result"]
        assert (seen["value"], seen["uid"], seen["writes"], seen["files"]) == (secret[-3:], 1234, False, ["TOKEN"])
        assert (seen["in_env"], seen.get("at_start", secret[-3:])) == (False, secret[-3:])
    assert "printed ***" in app.client.logs(record["id"])
    label = {"label": f"bananas.instance={app.registry.instance()}"}
    containers = [engine.api.inspect_container(c.id) for c in engine.containers.list(all=True, filters=label)]
    volumes = [volume.attrs for volume in engine.volumes.list(filters=label)]
    assert volumes
    places = {
        "inspect": json.dumps([containers, volumes]),
        "record": json.dumps(record),
        "processes": app.logs(),
        "disk": "\n".join(p.read_bytes().decode("latin-1") for p in app.folder.rglob("*") if p.is_file()),
    }
    for place, text in places.items():
        assert FIRST not in text, place
        assert SECOND not in text, place


def test_volumes_go_with_their_sandboxes(app: Platform, engine: docker.DockerClient) -> None:
    """Nothing of a secret is left on the engine when its runner has stopped."""
    runner = app.processes[1]
    app.client.invoke("tool", None)
    label = {"label": f"bananas.instance={app.registry.instance()}"}
    assert engine.volumes.list(filters=label)
    runner.stop()
    until(lambda: not engine.volumes.list(filters=label), 20, "the volumes to be gone")
