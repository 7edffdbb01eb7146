"""Base images made from this host: they run under the sandbox's rules, say what they are, and are found by name."""

from __future__ import annotations

import gc
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from bananas.errors import ConfigError, EngineUnavailable, ImageMissing, SandboxStartError
from bananas.runtimes import Abi, host_abi
from bananas.spec import RuntimeInfo
from runner import hostimage, images, images_cli
from runner.rootfs import base_tree
from tests.tools.leftovers import Run

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
DEBIAN = "/usr/bin/python3"
#: docker-py forgets to close the socket that could not connect; collected inside the test that made it.
LEAKS_WHEN_REFUSED = "ignore:unclosed <socket:ResourceWarning"

USE_THE_LIBRARY = """
import asyncio, bz2, ctypes, datetime, decimal, hashlib, json, lzma, os, pwd, sqlite3, ssl, sys, uuid, zoneinfo
async def work():
    return await asyncio.to_thread(sum, range(10))
berlin = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "prefix": sys.prefix,
    "executable": sys.executable,
    "foreign": sorted({p.split("/")[1] for p in sys.path} - {"usr"}),
    "packages": [p for p in sys.path if p.endswith("-packages") and os.path.isdir(p)],
    "sum": asyncio.run(work()),
    "sql": sqlite3.connect(":memory:").execute("select 6*7").fetchone()[0],
    "libc": ctypes.CDLL(None).getuid(),
    "summer_h": berlin.utcoffset().total_seconds() / 3600,
    "decimal": str(decimal.Decimal("0.1") + decimal.Decimal("0.2")),
    "sha": hashlib.sha256(b"").hexdigest()[:8],
    "uuid": uuid.UUID(int=uuid.uuid4().int).version,
    "packed": [len(bz2.decompress(bz2.compress(bytes(9)))), len(lzma.decompress(lzma.compress(bytes(9))))],
    "trusted": ssl.create_default_context().cert_store_stats()["x509_ca"] > 0,
    "user": pwd.getpwuid(os.getuid()).pw_name,
    "bytecode": os.path.isfile(json.__cached__),
}))
"""

Execute = Callable[[str, list[str]], tuple[int, str]]


@pytest.fixture
def execute(engine: docker.DockerClient, run: Run) -> Execute:
    """Run a command in a container with the sandbox's restrictions: (exit status, output)."""

    def execute(image: str, command: list[str]) -> tuple[int, str]:
        container = engine.containers.create(
            image,
            command,
            labels=run.labels,
            network_mode="none",
            user="65534:65534",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            tmpfs={"/tmp": "size=16m,mode=1777"},
            mem_limit="128m",
            pids_limit=64,
        )
        try:
            container.start()
            status = container.wait(timeout=30)["StatusCode"]
            return status, container.logs().decode()
        finally:
            container.remove(force=True)

    return execute


@pytest.fixture
def tag(engine: docker.DockerClient, run: Run) -> Iterator[str]:
    """A tag of our repository for one test."""
    tag = f"bananas/test-python:{run.id}"
    yield tag
    if engine.api.images(name=tag):
        engine.api.remove_image(tag, force=True)


def interpreters() -> list[object]:
    found = [pytest.param(sys.executable, id="running")]
    debian = Path(DEBIAN)
    usable = debian.exists() and debian.resolve() != Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    skip = pytest.mark.skipif(not usable, reason=f"{DEBIAN} is absent or the same interpreter")
    return [*found, pytest.param(DEBIAN, id="system", marks=skip)]


@pytest.mark.parametrize("python", interpreters())
def test_an_image_from_the_host_runs_the_standard_library_under_sandbox_rules(
    engine: docker.DockerClient, execute: Execute, tag: str, python: str
) -> None:
    """Any CPython of the host works moved to /usr: no network, no rights, read-only root, and none of its packages."""
    info = images.build_from_host(engine, tag, python, make_default=False)
    status, output = execute(tag, ["python3", "-I", "-c", USE_THE_LIBRARY])
    assert status == 0, output
    assert json.loads(output) == {
        "version": info.python,
        "prefix": "/usr",
        "executable": "/usr/bin/python3",
        "foreign": [],
        "packages": [],
        "sum": 45,
        "sql": 42,
        "libc": 65534,
        "summer_h": 2.0,
        "decimal": "0.3",
        "sha": "e3b0c442",
        "uuid": 4,
        "packed": [9, 9],
        "trusted": True,
        "user": "nobody",
        "bytecode": True,
    }


def test_the_base_image_says_what_it_is(base_image: RuntimeInfo) -> None:
    """Its labels give the ABI that deploys install for: the host's own."""
    assert base_image.abi == str(host_abi())
    assert base_image.python == VERSION
    assert base_image.machine == platform.machine()
    assert base_image.image_id.startswith("sha256:")


def test_an_unchanged_host_is_not_built_again_unless_forced(engine: docker.DockerClient, tag: str) -> None:
    """The second build says so and keeps the image; --force makes another one."""
    said: list[str] = []
    first = images.build_from_host(engine, tag, make_default=False, say=said.append)
    second = images.build_from_host(engine, tag, make_default=False, say=said.append)
    assert second == first
    assert "up to date" in said[-1]
    forced = images.build_from_host(engine, tag, make_default=False, force=True, say=said.append)
    assert " built from " in said[-1]
    assert forced.image_id != first.image_id
    engine.api.remove_image(first.image_id, force=True)


def test_a_runtime_name_finds_the_default_image_and_its_version(
    engine: docker.DockerClient, base_image: RuntimeInfo
) -> None:
    """`python` is the override or the default image; `python3.N` is the local image of that version."""
    assert images.resolve(engine, "python", base_image.image).image_id == base_image.image_id
    assert images.resolve(engine, "python").image == "bananas/python:default"
    assert images.resolve(engine, f"python{VERSION}").python == VERSION
    found = images.discover(engine, base_image.image)
    assert found["python"] == base_image
    assert found[f"python{VERSION}"].python == VERSION


def test_an_image_is_found_under_the_name_that_podman_gave_it(
    engine: docker.DockerClient, base_image: RuntimeInfo, run: Run
) -> None:
    """What is stored as `localhost/NAME` answers to NAME and is listed so; the image itself is the same one."""
    name = f"bananas/python:{VERSION}-{run.id}"
    engine.api.tag(base_image.image_id, "localhost/bananas/python", name.partition(":")[2])
    try:
        assert images.describe(engine, name).image_id == base_image.image_id
        assert name in {tag for row in images.list_images(engine) for tag in row.tags}
    finally:
        engine.api.remove_image(f"localhost/{name}")
    with pytest.raises(ImageMissing):
        images.describe(engine, name)


def test_an_import_names_nothing_but_its_tag(engine: docker.DockerClient, tag: str) -> None:
    """The tag moves to the image of the last import, and no other name is left, `latest` least of all."""
    found = []
    for path in ("one", "two"):
        with tempfile.TemporaryFile() as file:
            base_tree().write(file)
            found.append(images.import_tar(engine, tag, file, [f'CMD ["{path}"]']))
    assert found[0].id != found[1].id
    assert engine.api.inspect_image(tag)["Id"] == found[1].id
    repository = tag.partition(":")[0]
    named = {images.image_names.short(t) for i in engine.api.images(name=repository) for t in i["RepoTags"] or ()}
    assert f"{repository}:latest" not in named
    engine.api.remove_image(str(found[0].id), force=True)


def test_a_missing_image_is_an_error_that_names_the_command(engine: docker.DockerClient) -> None:
    """Nothing is pulled; the person is told what to run. Python 3.1 is not taken for 3.11."""
    with pytest.raises(ImageMissing, match="bananas images build"):
        images.resolve(engine, "python3.99")
    with pytest.raises(ImageMissing, match="docker pull bananas/no-such:image"):
        images.resolve(engine, "python", "bananas/no-such:image")
    assert "python3.1" not in images.discover(engine)


def test_an_image_without_labels_is_asked_what_it_is(
    engine: docker.DockerClient, base_image: RuntimeInfo, tag: str
) -> None:
    """An image made elsewhere runs one probe without network, and is known from then on."""
    repository, _, name = tag.rpartition(":")
    container = engine.containers.create(base_image.image_id, ["python3"])
    with tempfile.TemporaryFile() as file:
        for chunk in container.export():
            file.write(chunk)
        container.remove()
        images.import_tar(engine, f"{repository}:{name}", file, ['CMD ["python3"]'])
    info = images.resolve(engine, "python", tag)
    assert info.abi == base_image.abi
    assert info.image_id != base_image.image_id
    assert not engine.containers.list(all=True, filters={"ancestor": tag})


def test_an_image_without_python_is_refused_with_the_reason(engine: docker.DockerClient, tag: str) -> None:
    """An override that is no Python image fails when it is resolved, not at the first call, and is not offered."""
    with tempfile.TemporaryFile() as file:
        base_tree().write(file)
        images.import_tar(engine, tag, file, ['CMD ["python3"]'])
    with pytest.raises(SandboxStartError, match="does not start python3"):
        images.resolve(engine, "python", tag)
    assert "python" not in images.discover(engine, tag)


def test_the_list_shows_every_image_of_ours(engine: docker.DockerClient, base_image: RuntimeInfo) -> None:
    """`images ls` knows tag, version and origin."""
    row = next(row for row in images.list_images(engine) if row.image_id == base_image.image_id)
    assert base_image.image in row.tags
    assert (row.python, row.machine, row.libc, row.source) == (VERSION, base_image.machine, base_image.libc, "host")
    assert row.size_bytes > 10_000_000


def test_the_command_builds_and_lists(base_image: RuntimeInfo, tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`runner images build` prints image, id and ABI on stdout; `ls -o json` is machine-readable."""
    assert images_cli.main(["build", "--tag", tag, "--keep-default"]) == 0
    assert capsys.readouterr().out.split()[::2] == [tag, base_image.abi]
    assert images_cli.main(["ls", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["images"]
    assert any(tag in row["tags"] for row in listed)
    assert images_cli.main(["ls"]) == 0
    assert tag in capsys.readouterr().out


@pytest.mark.filterwarnings(LEAKS_WHEN_REFUSED)
def test_without_an_engine_the_error_names_the_address_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person who forgot to start Docker is told so."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineUnavailable, match=r"unix://.*/none.sock.*start it"):
        images.connect()
    assert images_cli.main(["ls"]) == 1
    assert "none.sock" in capsys.readouterr().err
    gc.collect()


@pytest.mark.filterwarnings(LEAKS_WHEN_REFUSED)
def test_an_engine_that_goes_away_is_an_engine_error(tmp_path: Path) -> None:
    """Every call to the engine is translated, not only the first."""
    client = docker.DockerClient(base_url=f"unix://{tmp_path}/gone.sock", version="1.41")
    for call in (images.discover, images.list_images):
        with pytest.raises(EngineUnavailable, match=r"gone\.sock"):
            call(client)
    client.close()
    gc.collect()


def test_an_interpreter_that_is_no_python_is_refused() -> None:
    """The error names the file and what would be right."""
    with pytest.raises(ConfigError, match=r"/nonexistent/python.*CPython 3\.11"):
        hostimage.inspect_interpreter("/nonexistent/python")
    with pytest.raises(ConfigError, match="/bin/false"):
        hostimage.inspect_interpreter("/bin/false")


def test_the_plan_of_one_host_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    """Equal files, equal tar: layers can be compared and shared."""
    server = hostimage.server_tree(Path(sys.executable).resolve())
    tars = [tmp_path / name for name in ("one", "two")]
    for path in tars:
        with path.open("wb") as file:
            server.write(file)
    assert tars[0].read_bytes() == tars[1].read_bytes()
    assert server.digest() == hostimage.server_tree(Path(sys.executable).resolve()).digest()


def test_the_abi_of_an_image_chooses_wheels(base_image: RuntimeInfo) -> None:
    """What a runner publishes is what the deploy can parse."""
    abi = Abi.parse(base_image.abi)
    assert str(abi) == base_image.abi
    assert abi.uv_platform.startswith(f"{base_image.machine}-manylinux_2_")
