"""A runner whose engine shares no files with it: the same platform over the standard streams of its sandboxes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bananas import deploy, manifest
from tests.platform import Platform, Process

pytestmark = pytest.mark.docker

HANDLER = """
import os, time
from bananas_sdk import progress

def handle(event, context):
    print("got", event)
    progress({"done": 1})
    if event == "sleep":
        time.sleep(60)
    return {"event": event, "secret": open("/run/secrets/TOKEN").read() if event == "secret" else None,
            "code": sorted(os.listdir(".")), "mounts": [l.split()[1] for l in open("/proc/mounts") if "bananas" in l]}
"""


@pytest.fixture
def platform(redis_url: str):
    with Platform(redis_url, BANANAS_LEASE_S="2", BANANAS_GRACE_S="5") as platform:
        platform.gateway()
        yield platform


def test_jobs_run_over_stdio(platform, base_image):
    """Result, log, progress, a warm second call; a timeout ends the sandbox."""
    platform.runner(BANANAS_PYTHON_IMAGE=base_image.image, BANANAS_TRANSPORT="stdio")
    platform.deploy({"f": HANDLER}, "    timeout: 2s\n    retries: 0")
    seen = json.loads(platform.client.invoke("f", "hi"))
    assert (seen["event"], seen["code"]) == ("hi", ["handler.py"])
    record = platform.finished(platform.client.submit("f", "again")["id"])
    assert (record["history"][-1]["start"], record["progress"]) == ("warm", {"done": 1})
    assert platform.client.logs(record["id"]) == "got again\n"
    record = platform.finished(platform.client.submit("f", "sleep")["id"])
    assert record["history"][-1]["outcome"] == "timeout"


def test_own_images_are_refused_over_stdio(platform, base_image, tmp_path: Path):
    """Their contracts share files with the engine; the error says what would help."""
    platform.runner(BANANAS_PYTHON_IMAGE=base_image.image, BANANAS_TRANSPORT="stdio")
    text = f'version: 1\nfunctions:\n  f: {{image: "{base_image.image}", contract: exec}}\n'
    (tmp_path / "bananas.yaml").write_text(text)
    deploy.deploy(platform.client, manifest.load(tmp_path / "bananas.yaml", {}), None, lambda _: None)
    job = platform.client.submit("f", None)["id"]
    record = platform.state(job, "scheduled")
    assert "BANANAS_TRANSPORT=socket" in record["history"][-1]["error"]["message"]


def test_a_runner_finds_out_by_itself(platform, base_image):
    """Where the engine does not see the runner's directory, the probe at the start says so, and stdio is taken."""
    hidden = platform.folder / "hidden"
    hidden.mkdir()
    script = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
        "path = sys.argv[1].encode()\n"
        "if libc.unshare(0x20000) or libc.mount(None, b'/', None, 0x44000, None)"
        " or libc.mount(b'none', path, b'tmpfs', 0, None): sys.exit(f'no mount: {ctypes.get_errno()}')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'runner'])"
    )
    env = {**platform.env, "BANANAS_STATE_DIR": str(hidden), "BANANAS_PYTHON_IMAGE": base_image.image}
    try:
        process = Process("hidden", [sys.executable, "-c", script, str(hidden)], env, platform.folder, "ready, pools:")
    except AssertionError as e:
        if "no mount" in str(e):
            pytest.skip("needs to be root, to hide a directory from the engine")
        raise
    platform.processes.append(process)
    assert "reached by their standard streams, since sockets do not work" in process.text
    platform.deploy({"f": HANDLER})
    assert json.loads(platform.client.invoke("f", 1))["event"] == 1
