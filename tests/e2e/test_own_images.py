"""Images of one's own, through the whole platform: contracts http and exec, what they reach, what they say."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bananas import deploy, manifest
from bananas.errors import ApiError
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

IMAGE = "bananas-test/own:1"
SERVER = r"""
import http.server, json, os, socket, sys, time

def reach(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
        return "connected"
    except OSError as e:
        return type(e).__name__

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = 200, None
        if event["do"] == "who":
            names = ("Bananas-Job-Id", "Bananas-Attempt", "Bananas-Function", "Bananas-Deadline-Ms", "Content-Type")
            answer = {"uid": os.getuid(), "env": dict(os.environ), "headers": [self.headers[n] for n in names],
                      "files": sorted(os.listdir("/run/bananas/code")), "interfaces": os.listdir("/sys/class/net"),
                      "path": self.path}
            print("asked who", flush=True)
        elif event["do"] == "reach":
            answer = {f"{host}:{port}": reach(host, port) for host, port in event["targets"]}
        elif event["do"] == "teapot":
            status, answer = 418, "short and stout"
        elif event["do"] == "eat":
            kept = bytearray(event["bytes"])
        elif event["do"] == "sleep":
            time.sleep(60)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *words):
        pass

if os.environ.get("FAIL"):
    sys.exit("no database")
if os.environ.get("EAT"):
    kept = bytearray(int(os.environ["EAT"]))
print("listening soon", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
EATEN = 1_000_000_000
PIPE = "import json, sys; print(json.dumps({'sum': sum(json.load(sys.stdin))}))"
CONNECT = (
    "import json, socket, sys; host, port = json.load(sys.stdin); "
    "sock = socket.create_connection((host, port), timeout=10); "
    "sock.sendall(b'GET /healthz HTTP/1.0' + bytes([13, 10, 13, 10])); print(json.dumps(sock.recv(8).decode()))"
)
YAML = f"""
version: 1
pools:
  mail: {{egress: ["127.0.0.1:${{PORT}}"]}}
functions:
  web: {{image: {IMAGE}, contract: http, env: {{GREETING: hi}}}}
  broken: {{image: {IMAGE}, contract: http, env: {{FAIL: "1"}}, retries: 0}}
  slow: {{image: {IMAGE}, contract: http, timeout: 1s, retries: 0}}
  mailer: {{image: {IMAGE}, contract: http, pool: mail}}
  eater: {{image: {IMAGE}, contract: http, env: {{EAT: "{EATEN}"}}, retries: 0}}
  glutton: {{image: {IMAGE}, contract: exec, command: [python3, -c, "bytearray({EATEN})"], retries: 0}}
  pipe: {{image: {IMAGE}, contract: exec, command: [python3, -c, "{PIPE}"], retries: 0}}
  fetch: {{image: {IMAGE}, contract: exec, pool: mail, command: [python3, -c, "{CONNECT}"]}}
  barred: {{image: {IMAGE}, contract: exec, pool: mail, egress: [], command: [python3, -c, "{CONNECT}"]}}
  absent: {{image: "bananas-test/absent:1", contract: exec, retries: 0}}
"""


@pytest.fixture(scope="module")
def own_image(engine: docker.DockerClient, base_image, run) -> Iterator[str]:
    """An image with a program, a user and a variable of its own."""
    container = engine.containers.create(base_image.image, labels=run.labels)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        info = tarfile.TarInfo("srv/server.py")
        info.size, info.mode = len(SERVER.encode()), 0o644
        out.addfile(info, io.BytesIO(SERVER.encode()))
    container.put_archive("/", tar.getvalue())
    changes = ['ENTRYPOINT ["python3"]', 'CMD ["/srv/server.py"]', "USER 1234:1234", "ENV BAKED=in"]
    container.commit(*IMAGE.split(":"), changes="\n".join(changes))
    container.remove()
    yield IMAGE
    engine.images.remove(IMAGE, force=True)


@pytest.fixture(scope="module")
def app(platform: Platform, own_image: str, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    folder: Path = tmp_path_factory.mktemp("app")
    (folder / "functions" / "web").mkdir(parents=True)
    (folder / "functions" / "web" / "table.csv").write_text("1,2\n")
    (folder / "bananas.yaml").write_text(YAML)
    deploy.deploy(
        platform.client, manifest.load(folder / "bananas.yaml", {"PORT": str(platform.port)}), None, lambda _: None
    )
    return platform


def test_an_http_container_gets_one_request_for_each_job(app):
    """Its own program and user, the function's variables and files, headers about the job; output becomes the log."""
    job = app.client.submit("web", {"do": "who"})["id"]
    record = app.finished(job)
    seen = record["result"]
    assert (seen["uid"], seen["path"], seen["files"], seen["interfaces"]) == (1234, "/", ["table.csv"], ["lo"])
    env = seen["env"]
    assert (env["GREETING"], env["BAKED"], env["PORT"]) == ("hi", "in", "8080")
    assert not [name for name in env if name.startswith(("BANANAS", "REDIS"))]
    assert seen["headers"][:3] == [job, "1", "web"]
    assert abs(int(seen["headers"][3]) / 1000 - time.time()) < 60
    assert seen["headers"][4] == "application/json"
    assert app.client.logs(job) == "listening soon\nasked who\n"
    again = app.finished(app.client.submit("web", {"do": "who"})["id"])
    assert again["history"][-1]["start"] == "warm"


def test_from_an_http_container_nothing_else_can_be_reached(app, engine):
    """Redis, the gateway, the machine, another sandbox, the cloud's metadata: loopback is its own, and all there is."""
    bridge = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    redis_port = int(app.redis_url.rsplit(":", 1)[1].split("/")[0])
    targets = [["127.0.0.1", redis_port], ["127.0.0.1", app.port], [bridge, redis_port], [bridge, app.port]]
    targets += [[bridge, 22], ["169.254.169.254", 80], ["10.0.0.1", 80], ["1.1.1.1", 443]]
    seen = json.loads(app.client.invoke("web", {"do": "reach", "targets": targets}))
    assert len(seen) == len(targets)
    assert set(seen.values()) <= {"ConnectionRefusedError", "OSError"}, seen


def test_egress_of_the_pool_works_in_an_http_container(app):
    """The listed address can be reached, another port of the same machine cannot."""
    targets = [["127.0.0.1", app.port], ["127.0.0.1", app.port + 1]]
    seen = json.loads(app.client.invoke("mailer", {"do": "reach", "targets": targets}))
    assert list(seen.values()) == ["connected", "ConnectionRefusedError"]


def test_egress_of_the_pool_works_in_an_exec_process(app):
    """Through a helper's network; what is refused is a broken connection, with the reason in the log."""
    for _ in range(2):
        assert json.loads(app.client.invoke("fetch", ["127.0.0.1", app.port])) == "HTTP/1.0"
    record = app.finished(app.client.submit("barred", ["127.0.0.1", app.port], retries=0)["id"])
    assert record["error"]["type"] == "ExitStatus"
    assert "ConnectionResetError" in record["error"]["message"]
    said = f"bananas: egress to 127.0.0.1:{app.port}: the target is not in the egress list of function 'barred'\n"
    assert said in app.client.logs(record["id"])
    nowhere = app.finished(app.client.submit("fetch", ["127.0.0.1", app.port + 1], retries=0)["id"])
    assert "ConnectionRefusedError" in nowhere["error"]["message"]


def test_an_error_status_is_the_functions_error(app):
    """With the status and what the body says."""
    with pytest.raises(ApiError, match='HTTP 418: "short and stout"'):
        app.client.invoke("web", {"do": "teapot"})


def test_a_container_that_does_not_start_says_why(app):
    """The error has its status, the log what it printed."""
    job = app.client.submit("broken", None)["id"]
    record = app.finished(job)
    assert record["status"] == "failed"
    assert "exited with status 1 before it listened on port 8080" in record["error"]["message"]
    assert app.client.logs(job) == "no database\n"


def test_a_timeout_kills_the_container(app, engine):
    """When the job has timed out, nothing of it runs any more."""
    record = app.finished(app.client.submit("slow", {"do": "sleep"})["id"])
    assert record["history"][-1]["outcome"] == "timeout"
    label = f"bananas.instance={app.registry.instance()}"

    def running() -> list[object]:
        found = engine.api.containers(filters={"label": label, "ancestor": IMAGE})
        return [c for c in found if "slow" in str(c)]

    until(lambda: not running(), 5, "the container to be gone")


@pytest.mark.parametrize(("function", "event"), [("web", {"do": "eat", "bytes": EATEN}), ("eater", 1), ("glutton", 1)])
def test_a_container_that_takes_too_much_memory_is_oom(app, function, event):
    """While it answers, while it starts, and as a process per job: with the limit, also when the engine misses it."""
    record = app.finished(app.client.submit(function, event, retries=0)["id"])
    assert record["history"][-1]["outcome"] == "oom", record
    assert record["error"]["message"] == "the function used more memory than its limit of 256 MiB (pool 'default')"


def test_an_exec_function_is_a_process_per_job(app):
    """Payload on standard input, result on standard output."""
    for numbers, total in (([1, 2, 3], 6), ([], 0)):
        assert json.loads(app.client.invoke("pipe", numbers)) == {"sum": total}
    record = app.finished(app.client.submit("pipe", "no list")["id"])
    assert record["error"]["type"] == "ExitStatus"
    assert "exited with status 1: " in record["error"]["message"]
    assert "TypeError" in record["error"]["message"]


def test_an_image_that_is_not_there_is_named_with_the_next_step(app):
    """Nothing is ever pulled."""
    job = app.client.submit("absent", None)["id"]
    record = until(lambda: (r := app.client.job(job)) and r["history"] and r, 30, "an attempt")
    error = record["history"][-1]["error"]
    assert error["type"] == "ImageMissing"
    assert "docker pull bananas-test/absent:1" in error["message"]
    app.client.cancel(job)
