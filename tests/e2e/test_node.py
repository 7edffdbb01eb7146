"""Functions for Node, on a real platform: from bananas.yaml to the record of the job."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bananas import deploy, manifest
from bananas.spec import RuntimeInfo
from tests.platform import Platform

pytestmark = pytest.mark.docker

GUIDE = Path(__file__).parents[2] / "docs" / "node.md"


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo, node_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner that found both images."""
    with Platform(empty_redis, BANANAS_LEASE_S="2", BANANAS_GRACE_S="5") as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        yield platform


def put(app: Platform, name: str, files: dict[str, str], settings: str = "") -> list[str]:
    """Deploy one function for Node; returns what the deploy said."""
    folder = app.folder / "apps" / name
    for path, text in files.items():
        target = folder / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    file = folder / "bananas.yaml"
    file.write_text(f"version: 1\nfunctions:\n  {name}:\n    runtime: node22\n    path: {name}\n{settings}", "utf-8")
    said: list[str] = []
    deploy.deploy(app.client, manifest.load(file, {}), None, said.append)
    return said


def run(app: Platform, name: str, payload: Any = None) -> dict[str, Any]:
    """The record of one job that is over."""
    return app.finished(app.client.submit(name, payload)["id"])


def blocks(language: str) -> list[str]:
    """The examples of the guide in a language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)


def test_the_guides_example_works(app: Platform) -> None:
    """What is written there is deployed as it stands."""
    (source,) = blocks("js")
    put(app, "slugify", {"handler.js": source})
    assert run(app, "slugify", {"text": "Grüße aus Köln!"})["result"] == {"slug": "grusse-aus-koln"}
    failed = run(app, "slugify", {})
    assert (failed["status"], failed["reason"], failed["error"]["type"]) == ("failed", "permanent", "Error")
    assert "handler.js:" in failed["error"]["traceback"]


def test_packages_in_the_folder_are_deployed_with_it(app: Platform) -> None:
    """node_modules is packed, whatever a Python function would leave out."""
    files = {"handler.mjs": "import tiny from 'tiny'; export const handle = () => tiny"}
    said = put(app, "packed", {**files, "node_modules/tiny/index.js": "module.exports = 'packed'"})
    assert run(app, "packed")["result"] == "packed"
    assert not [line for line in said if "installing" in line]


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on PATH")
def test_packages_of_package_json_are_installed_at_deploy(app: Platform) -> None:
    """And come back as their own bundle, which the next version uses again."""
    files = {
        "handler.js": "exports.handle = () => require('tiny')",
        "lib/package.json": json.dumps({"name": "tiny", "version": "1.0.0"}),
        "lib/index.js": "module.exports = 'installed'",
        "package.json": json.dumps({"dependencies": {"tiny": "file:lib"}}),
    }
    said = put(app, "installs", files)
    assert any("installing package.json for node22-" in line for line in said)
    assert run(app, "installs")["result"] == "installed"
    assert [line for line in put(app, "installs", files) if "unchanged" in line]


def test_errors_output_progress_and_limits_are_in_the_record(app: Platform) -> None:
    """As of any other function."""
    source = """
    exports.handle = async (event, context) => {
      console.log('attempt', context.attempt);
      context.progress({ attempt: context.attempt });
      if (event === 'crash') process.exit(3);
      if (event === 'hang') for (;;) ;
      if (event === 'fill') { const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)); }
      throw new TypeError('no such banana');
    };
    """
    retries = "    retries: {max: 1, base: 100ms}\n"
    put(app, "fails", {"handler.js": source}, f"    timeout: 20s\n{retries}")
    put(app, "hangs", {"handler.js": source}, f"    timeout: 2s\n{retries}")
    for name, payload, outcome, kind in [
        ("fails", None, "error", "TypeError"),
        ("fails", "crash", "crashed", "Crashed"),
        ("hangs", "hang", "timeout", "Timeout"),
        ("fails", "fill", "oom", "OutOfMemory"),
    ]:
        record = run(app, name, payload)
        assert record["status"] == "failed"
        assert [attempt["outcome"] for attempt in record["history"]] == [outcome] * 2
        assert record["error"]["type"] == kind
        assert record["progress"] == {"attempt": 2}


def test_runners_publish_what_they_run_node_with(app: Platform, node_image: RuntimeInfo) -> None:
    """By version, for deploys."""
    info = app.client.runtimes()["node22"]
    assert (info["node"], info["python"], info["abi"]) == (node_image.node, "", node_image.abi)
    assert info["abi"].startswith("node22-")


def test_several_calls_run_at_once_in_one_sandbox(app: Platform) -> None:
    """Each waits inside for the three others; results and output are those of each."""
    source = """
        const waiting = [];
        exports.handle = async (event) => {
          await new Promise((resolve) => {
            waiting.push(resolve);
            if (waiting.length === 4) waiting.forEach((go) => go());
          });
          console.log('call', event);
          return event;
        };
        """
    put(app, "together", {"handler.js": source}, "    calls_per_sandbox: 4\n    retries: 0\n")
    jobs = [app.client.submit("together", n)["id"] for n in range(4)]
    records = [app.finished(job) for job in jobs]
    assert [record["result"] for record in records] == [0, 1, 2, 3]
    assert len({record["history"][0]["sandbox"] for record in records}) == 1
    assert [app.client.logs(job) for job in jobs] == [f"call {n}\n" for n in range(4)]
