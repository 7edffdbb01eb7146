"""What the image made from the host can do: compiled packages as a user would have them, zone data, names, TLS."""

from __future__ import annotations

import datetime
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bananas import deploy, manifest
from bananas.errors import DeployError
from bananas.spec import RuntimeInfo
from tests.platform import Platform

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

HANDLER = """
import datetime, socket, ssl, urllib.request, zoneinfo
import numpy

def fetch(event, context):
    trusted = ssl.create_default_context(cadata=event["authority"])
    with urllib.request.urlopen(event["url"], timeout=20, context=trusted) as answer:
        text = answer.read().decode()
    try:
        urllib.request.urlopen(event["url"], timeout=20, context=ssl.create_default_context())
        stranger = "trusted"
    except OSError as e:
        stranger = type(e.reason).__name__
    try:
        with socket.create_connection(("nowhere.invalid", 443), timeout=20) as sock:
            unknown = sock.recv(1)
    except OSError as e:
        unknown = type(e).__name__
    address = socket.getaddrinfo("tls.example", None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    return {"text": text, "stranger": stranger, "unknown": unknown, "address": address}

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
pools:
  web: {egress: ["tls.example=127.0.0.1:${TLS_PORT}", "nowhere.invalid:443"]}
functions:
  algebra:
    requirements: requirements.txt
  fetcher:
    path: functions/algebra
    handler: handler.fetch
    requirements: requirements.txt
    pool: web
"""


@pytest.fixture
def platform(redis_url: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner with the image of the host."""
    with Platform(redis_url, BANANAS_PYTHON_IMAGE=base_image.image) as platform:
        platform.gateway()
        platform.runner()
        yield platform


class Page(http.server.BaseHTTPRequestHandler):
    """Says by which protocol it was asked."""

    def do_GET(self) -> None:
        body = self.connection.version().encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


def certify(folder: Path, host: str) -> tuple[str, Path]:
    """A certificate for ``host`` that is its own authority, as PEM, and the file of it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    # A day of margin on both sides: the clocks of containers may be anywhere.
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "server.pem").write_bytes(pem + secret)
    return pem.decode(), folder / "server.pem"


@contextmanager
def tls_server(certificate: Path) -> Iterator[int]:
    """Serves ``Page`` on this machine; gives the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    # The handshake is the handler's thread's, so that a client that breaks it off stops nobody.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def put(platform: Platform, name: str, requirements: str, tls_port: int = 443) -> None:
    """Deploy the function out of a folder of its own."""
    folder = platform.folder / name / "functions/algebra"
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text(HANDLER, "utf-8")
    (folder / "requirements.txt").write_text(requirements, "utf-8")
    path = platform.folder / name / "bananas.yaml"
    path.write_text(MANIFEST, "utf-8")
    deploy.deploy(platform.client, manifest.load(path, {"TLS_PORT": str(tls_port)}), None, lambda line: None)


def test_numpy_names_tls_and_zone_data_work_in_the_image_of_the_host(platform: Platform, tmp_path: Path) -> None:
    """Compiled code of the requirements runs; an unmodified client reaches a listed name by TLS: the name resolves
    inside, the relay connects, the certificate is checked against the name; the relay asks DNS for what has no address.
    A version that is not to be had is refused at deploy in the resolver's own words."""
    authority, certificate = certify(tmp_path, "tls.example")
    with tls_server(certificate) as port:
        put(platform, "good", "numpy>=2\n", port)
        event = {"url": f"https://tls.example:{port}/", "authority": authority}
        job = platform.client.submit("fetcher", event)["id"]
        seen = platform.finished(job, 60)["result"]
    assert seen["text"].startswith("TLSv1.")
    assert (seen["stranger"], seen["unknown"]) == ("SSLCertVerificationError", "ConnectionResetError")
    assert seen["address"].startswith("127.66.0.")
    log = platform.client.logs(job)
    assert "egress to nowhere.invalid:443: the name does not resolve" in log or "no answer from DNS" in log
    answer = json.loads(platform.client.invoke("algebra", [[2, 0], [0, 4]]))
    assert answer == {"inverse": [[0.5, 0.0], [0.0, 0.25]], "utc": 3, "authorities": True}
    with pytest.raises(DeployError) as caught:
        put(platform, "bad", "numpy==0.0.1\n")
    assert "there is no version of numpy==0.0.1" in " ".join(str(caught.value).split())
    assert json.loads(platform.client.invoke("algebra", [[1]]))["inverse"] == [[1.0]]
