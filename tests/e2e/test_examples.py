"""Every function of the example app, deployed by ``bananas dev`` from bananas.yaml and called over HTTP."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from bananas import manifest
from bananas.client import Client
from bananas.errors import ApiError
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.platform import ROOT, Process, until

DEADLINE_S = 30.0
#: thumbnail's packages come from a package index.
SETTLED_S = 300.0
SETTLED = "Ctrl-C stops everything"


class App:
    """The running example app."""

    def __init__(self, process: Process, client: Client, state: Path) -> None:
        self.process = process
        self.client = client
        self.mail = state / "mail"

    def invoke(self, name: str, payload: Any) -> Any:
        return json.loads(self.client.invoke(name, payload, timeout_s=DEADLINE_S))

    def run(self, name: str, payload: Any) -> dict[str, Any]:
        """The record of a job that is over."""
        record = self.client.job(self.client.submit(name, payload)["id"], wait_s=DEADLINE_S)
        assert record["finished_at"], record
        return record


@pytest.fixture(scope="module")
def app(base_image: RuntimeInfo) -> Iterator[App]:
    """``bananas dev`` with this repository's bananas.yaml; stopped at the end, with exit code 0."""
    state = Path(tempfile.mkdtemp(prefix="bn-"))
    port = free_port()
    settings = {
        "BANANAS_PORT": str(port),
        "BANANAS_STATE_DIR": str(state / "s"),
        "BANANAS_GATEWAY_WORKERS": "1",
        "BANANAS_PYTHON_IMAGE": base_image.image,
        "SMTP_PORT": str(free_port()),
    }
    process = Process("dev", [sys.executable, "-m", "bananas", "dev"], settings, state, "gateway listening on")
    try:
        until(lambda: SETTLED in process.text or process.popen.poll() is not None, SETTLED_S, "the deploys to be over")
        with Client(f"http://127.0.0.1:{port}", patience_s=0) as client:
            yield App(process, client, state / "s")
    finally:
        print(process.text[-6000:])
        code = process.stop(60)
        shutil.rmtree(state, ignore_errors=True)
    assert code == 0


def test_hello_greets(app: App) -> None:
    """The smallest function answers, with a default, in UTF-8, and says what it cannot use."""
    assert app.invoke("hello", {"name": "Ada"}) == {"message": "Hello, Ada!"}
    assert app.invoke("hello", {"name": "Zoë 🍌"}) == {"message": "Hello, Zoë 🍌!"}
    assert app.invoke("hello", {}) == {"message": "Hello, world!"}
    with pytest.raises(ApiError, match="name must be a text") as caught:
        app.invoke("hello", {"name": 3})
    assert caught.value.status == 500


def test_send_email_reaches_the_mail_server_through_the_pools_egress(app: App) -> None:
    """A mail leaves a sandbox without network, is taken by the sink, and keeps its job's id as its Message-ID."""
    record = app.run("send_email", {"to": ["a@x.example", "b@x.example"], "subject": "Größe", "body": "line\n.\nend"})
    assert (record["status"], record["pool"], record["priority"]) == ("completed", "email", "high"), record
    assert record["result"]["accepted"] == ["a@x.example", "b@x.example"]
    mails = [message_from_bytes(path.read_bytes(), policy=policy.default) for path in app.mail.glob("*.eml")]
    (mail,) = [mail for mail in mails if mail["Message-ID"] == record["result"]["message_id"]]
    assert record["id"] in mail["Message-ID"]
    assert mail["Subject"] == "Größe"
    assert mail.get_content().replace("\r\n", "\n") == "line\n.\nend\n"
    assert '"subject": "Gr\\u00f6\\u00dfe"' in app.process.text


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ([], "must be an object"),
        ({"subject": "x"}, "to must be an address"),
        ({"to": "nobody", "subject": "x"}, "'nobody' is not an address"),
        ({"to": "a@x.example\r\nBcc: b@x.example", "subject": "x"}, "is not an address"),
        ({"to": "a@x.example", "subject": "x\r\nBcc: b@x.example"}, "subject must be a single line"),
        ({"to": "a@x.example"}, "subject must be a text"),
        ({"to": "a@x.example", "subject": "x", "cc": "b@x.example"}, "unknown field 'cc'"),
    ],
)
def test_send_email_refuses_a_wrong_payload_at_once(app: App, payload: Any, says: str) -> None:
    """What no retry can mend is not retried, and header injection is not possible."""
    record = app.run("send_email", payload)
    assert (record["status"], record["reason"], record["attempts"]) == ("failed", "permanent", 1), record
    assert says in record["error"]["message"]


def test_flaky_is_tried_again_until_it_works(app: App) -> None:
    """The history shows two failures, each with its reason, then the success."""
    record = app.run("flaky", {"succeed_on": 3})
    assert (record["status"], record["result"]) == ("completed", {"attempts": 3}), record
    assert [a["outcome"] for a in record["history"]] == ["error", "error", "ok"]
    assert record["history"][0]["error"]["message"] == "attempt 1 fails on purpose; attempt 3 will work"


def test_flaky_out_of_retries_is_a_dead_letter(app: App) -> None:
    """After three more tries the job is failed and says why."""
    record = app.run("flaky", {"succeed_on": 20})
    assert (record["status"], record["reason"], record["attempts"]) == ("failed", "retries_exhausted", 4), record


def test_thumbnail_uses_its_own_packages(app: App) -> None:
    """A function with requirements.txt runs with what it pins: the README's sample comes back smaller, as a PNG."""
    if "thumbnail" not in {f["name"] for f in app.client.functions()}:
        assert "uv could not install" in app.process.text, app.process.text[-4000:]
        if os.environ.get("CI") and not os.environ.get("BANANAS_ALLOW_SKIP"):
            pytest.fail("no package index answers uv (BANANAS_ALLOW_SKIP=1 skips this test)")
        pytest.skip("no package index answers uv, so thumbnail is not deployed")
    result = app.invoke("thumbnail", json.loads((ROOT / "functions/thumbnail/sample.json").read_text()))
    png = base64.b64decode(result["image"])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (32, 21) == (result["width"], result["height"])
    record = app.run("thumbnail", {"image": "bm90IGFuIGltYWdl"})
    assert (record["status"], record["attempts"]) == ("failed", 1)
    assert record["error"]["message"] == "image is neither a PNG nor a JPEG"


def test_gpu_info_has_every_device_or_a_clear_reason(app: App) -> None:
    """Where there is no GPU the deploy warns once, and the job tells what is missing before it uses up a try."""
    if app.client.runners()[0]["gpus"]:
        assert app.invoke("gpu_info", None)["devices"]
        return
    warning = "no live runner has a GPU for pool gpu; jobs there fail and say so until one has"
    told = [line for line in app.process.text.splitlines() if warning in line]
    assert len(told) == 1, told
    job = app.client.submit("gpu_info", None)["id"]
    record = until(lambda: (r := app.client.job(job))["history"] and r, DEADLINE_S, "the first try to start")
    error = record["history"][0]["error"]
    assert (record["status"], error["type"]) == ("scheduled", "SandboxStartError"), record
    assert "pool 'gpu' asks for gpus: all and this runner has none; install NVIDIA's driver" in error["message"]
    app.client.cancel(job)


def test_every_example_has_a_readme_and_is_called_here() -> None:
    """No function is added to the app without being shown to work."""
    functions = manifest.load(ROOT / "bananas.yaml", {}).functions
    assert {path.name for path in (ROOT / "functions").iterdir() if path.is_dir()} == set(functions)
    text = Path(__file__).read_text()
    for name, function in functions.items():
        assert len((function.folder / "README.md").read_text().splitlines()) <= 12
        assert f'app.invoke("{name}"' in text or f'app.run("{name}"' in text
