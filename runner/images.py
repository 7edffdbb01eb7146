"""Which image runs which runtime, and how to make one here: `runner images build|ls`.

Never pulls: a missing image is an error that names the command to run. ``resolve`` and ``discover`` are called by
the runner at start and per deploy; ``build_from_host`` by the command line, the set-up scripts and the test suite.
An image says what it is in labels; one without them (pulled or made elsewhere) is asked once, by a probe container
that has no network and no rights.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.images import Image

from bananas.errors import BananasError, EngineUnavailable, ImageMissing, SandboxStartError
from bananas.runtimes import DEFAULT_RUNTIME, OLDEST_PYTHON, runtime_version
from bananas.spec import RuntimeInfo
from runner import hostimage, image_names
from runner.rootfs import Tree

log = logging.getLogger(__name__)

REPOSITORY = "bananas/python"
DEFAULT_IMAGE = f"{REPOSITORY}:default"
LABEL = "org.bananas."
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
ENGINE_TIMEOUT_S = 60
KNOCK_S = 5
PROBE_TIMEOUT_S = 30
PROBE_LOG_BYTES = 4096
_TAG = re.compile(rf"{REPOSITORY}:(3\.\d{{1,2}})(?:$|[.-])")
_PROBE = """
import json, os, platform, sys
libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
print(json.dumps(["%d.%d" % sys.version_info[:2], platform.machine(), (libc or "").replace(" ", "")]))
"""
#: What probes have answered: image id → (python, machine, libc). Ids never change their content; 64 is plenty.
_probed: dict[str, tuple[str, str, str]] = {}
_PROBED_MAX = 64


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One line of ``images ls``; ``python`` and what follows is empty for an image that does not say."""

    tags: tuple[str, ...]
    image_id: str
    size_bytes: int
    #: Unix seconds.
    created_at_s: int
    python: str
    machine: str
    libc: str
    #: ``host``, or empty for an image that was not built by us.
    source: str
    is_default: bool


def connect(timeout_s: int = ENGINE_TIMEOUT_S) -> docker.DockerClient:
    """A client of the engine that DOCKER_HOST or the usual socket names; raises EngineUnavailable."""
    with _engine(None):
        _knock(min(timeout_s, KNOCK_S))
        client = docker.from_env(timeout=timeout_s)
    try:
        with _engine(client):
            client.ping()
    except BaseException:
        client.close()
        raise
    return client


def _knock(timeout_s: float) -> None:
    """Raise DockerException when nobody listens at the engine's socket: docker-py would leave its own one open."""
    address = os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    if not address.startswith("unix:///"):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(address.removeprefix("unix://"))
        except OSError as e:
            raise DockerException(e.strerror or str(e)) from e


def build_from_host(
    client: docker.DockerClient,
    tag: str | None = None,
    python: str | None = None,
    *,
    force: bool = False,
    make_default: bool = True,
    say: Callable[[str], None] = log.info,
) -> RuntimeInfo:
    """Make the base image out of this host's interpreter and tag it ``bananas/python:<X.Y>-host`` and ``:default``.

    An image of the same files is kept unless ``force``. ``say`` gets a line per step and one per thing that the
    host could not give. Raises ConfigError for an unsuitable interpreter, EngineUnavailable for the engine.
    """
    interpreter = hostimage.inspect_interpreter(python)
    tree = hostimage.python_tree(interpreter)
    source = tree.digest()
    tag = tag or f"{REPOSITORY}:{interpreter.version}-host"
    for note in tree.notes:
        say(note)
    image = _find(client, tag)
    if image is not None and image.labels.get(f"{LABEL}source") == source and not force:
        say(f"{tag} is up to date ({interpreter.path}, Python {interpreter.full_version})")
    else:
        started = time.monotonic()
        image = _import(client, tag, tree, interpreter, source)
        say(f"{tag} built from {interpreter.path} in {time.monotonic() - started:.1f} s")
    if make_default:
        with _engine(client):
            image.tag(*DEFAULT_IMAGE.split(":"))
    return describe(client, tag)


def _import(
    client: docker.DockerClient, tag: str, tree: Tree, interpreter: hostimage.Interpreter, source: str
) -> Image:
    labels = {
        "runtime": "python",
        "python": interpreter.version,
        "machine": interpreter.machine,
        "libc": interpreter.libc,
        "from": "host",
        "source": source,
    }
    changes = [f"LABEL {LABEL}{name}={value}" for name, value in labels.items()]
    changes += ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "ENV LANG=C.UTF-8", 'CMD ["python3"]']
    with tempfile.TemporaryFile(prefix="bananas-image-") as file:
        hostimage.write_python(tree, interpreter, file)
        return import_tar(client, tag, file, changes)


def import_tar(client: docker.DockerClient, tag: str, file: Any, changes: list[str]) -> Image:
    """Turn a root file system's tar (a seekable binary file) into the image ``tag``; raises EngineUnavailable.

    ``changes`` are Dockerfile lines: CMD, ENV, LABEL, USER….
    """
    repository, _, name = tag.rpartition(":")
    file.seek(0)
    with _engine(client):
        # The client's own timeout holds here; docker-py's import_image_from_file would wait for ever.
        answer = client.api.import_image(src=file, changes=changes)
        last: dict[str, Any] = {}
        for line in answer.splitlines():
            last = json.loads(line)
            if problem := last.get("error"):
                raise EngineUnavailable(f"importing {tag} failed: {problem}; check the engine's disk space")
        # Named by its id: an import into a name would lose the part after the colon in Podman 4.3.
        image = client.images.get(last.get("status", ""))
        image.tag(repository, name)
        return image


def resolve(client: docker.DockerClient, runtime: str, override: str = "") -> RuntimeInfo:
    """The image of this engine for ``python`` or ``python3.N``.

    ``override`` is BANANAS_PYTHON_IMAGE. Raises ImageMissing naming what to run, EngineUnavailable, InvalidRequest
    for no runtime name, or SandboxStartError when an unlabelled image does not start.
    """
    version = runtime_version(runtime)
    if version is None:
        return describe(client, override or DEFAULT_IMAGE)
    for found, tag in _tags(client, version):
        if found == version:
            return describe(client, tag)
    if override and (info := describe(client, override)).python == version:
        return info
    raise ImageMissing(
        f"no image for runtime {runtime} on this engine: `bananas images build --python <path of a python{version}>`,"
        f" or tag one: `docker tag <image> {REPOSITORY}:{version}`"
    )


def discover(client: docker.DockerClient, override: str = "") -> dict[str, RuntimeInfo]:
    """Every runtime that this engine can run now. An image that does not start is logged and left out."""
    names = {f"python{version}" for version, _ in _tags(client) if int(version[2:]) >= OLDEST_PYTHON[1]}
    found: dict[str, RuntimeInfo] = {}
    for name in [DEFAULT_RUNTIME, *sorted(names)]:
        try:
            info = resolve(client, name, override)
        except (ImageMissing, SandboxStartError) as e:
            log.warning("runtime %s is not offered: %s", name, e)
            continue
        found[name] = info
        found.setdefault(f"python{info.python}", info)
    return found


def describe(client: docker.DockerClient, image: str) -> RuntimeInfo:
    """What a local image runs, from its labels or by one probe; raises ImageMissing, SandboxStartError."""
    found = _find(client, image)
    if found is None:
        raise ImageMissing(_missing(image))
    labels = found.labels
    facts = tuple(labels.get(LABEL + name, "") for name in ("python", "machine", "libc"))
    if not all(facts):
        facts = _ask(client, image, str(found.id))
    return RuntimeInfo(image=image, image_id=str(found.id), python=facts[0], machine=facts[1], libc=facts[2])


def _missing(image: str) -> str:
    if image == DEFAULT_IMAGE:
        return f"{image} is not on this engine; run `bananas images build`, or set BANANAS_PYTHON_IMAGE to another one"
    return f"{image} is not on this engine; `docker pull {image}`, or run `bananas images build` for one from this host"


def _find(client: docker.DockerClient, image: str) -> Image | None:
    for spelling in image_names.spellings(image):
        with _engine(client), suppress(ImageNotFound, NotFound):
            return client.images.get(spelling)
    return None


def _tags(client: docker.DockerClient, version: str = "3.") -> list[tuple[str, str]]:
    """(version, tag) of ours; the plain tag comes before ``-host``, so that a person's own choice wins."""
    with _engine(client):
        images = client.api.images(filters={"reference": f"{REPOSITORY}:{version}*"})
    tags = {image_names.short(tag) for image in images for tag in image["RepoTags"] or ()}
    return sorted(((m[1], tag) for tag in tags if (m := _TAG.match(tag))), key=lambda pair: (len(pair[1]), pair[1]))


def _ask(client: docker.DockerClient, image: str, image_id: str) -> tuple[str, str, str]:
    if image_id not in _probed:
        facts = _run_probe(client, image, image_id)
        if not re.fullmatch(r"glibc\d+\.\d+", facts[2]):
            raise SandboxStartError(f"{image} has no glibc; take one that has, such as python:{facts[0]}-slim")
        while len(_probed) >= _PROBED_MAX:
            _probed.pop(next(iter(_probed)), None)
        _probed[image_id] = facts
    return _probed[image_id]


def _run_probe(client: docker.DockerClient, image: str, image_id: str) -> tuple[str, str, str]:
    with _engine(client):
        container = client.containers.create(
            image_id,
            entrypoint=["python3"],
            command=["-I", "-c", _PROBE],
            labels={f"{LABEL}probe": "1"},
            network_mode="none",
            user="65534:65534",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=True,
            mem_limit="256m",
            pids_limit=64,
        )
        try:
            container.start()
            status = container.wait(timeout=PROBE_TIMEOUT_S)["StatusCode"]
            output = container.logs(tail=20)[:PROBE_LOG_BYTES].decode(errors="replace").strip()
        except requests.exceptions.Timeout as e:
            raise SandboxStartError(f"{image} did not say its Python version within {PROBE_TIMEOUT_S} s") from e
        except APIError as e:
            raise SandboxStartError(f"{image} does not start python3: {e.explanation}; is it a Python image?") from e
        finally:
            with suppress(NotFound):
                container.remove(force=True)
    try:
        if status != 0:
            raise ValueError(f"exit status {status}")
        python, machine, libc = json.loads(output)
    except (TypeError, ValueError) as e:
        raise SandboxStartError(f"{image} is no Python image: {e}; python3 said {output[-300:]!r}") from e
    return str(python), str(machine), str(libc)


def list_images(client: docker.DockerClient) -> list[ImageRow]:
    """The images that are ours by label or by name, newest first."""
    with _engine(client):
        images = client.api.images(filters={"reference": f"{REPOSITORY}:*"})
        images += client.api.images(filters={"label": f"{LABEL}runtime"})  # after the ones above: with all their tags
    rows = [_row(image) for image in {image["Id"]: image for image in images}.values()]
    return sorted(rows, key=lambda row: row.created_at_s, reverse=True)


def _row(image: dict[str, Any]) -> ImageRow:
    labels = image["Labels"] or {}
    tags = tuple(image_names.short(tag) for tag in image["RepoTags"] or () if tag != "<none>:<none>")
    python, machine, libc, source = (labels.get(LABEL + name, "") for name in ("python", "machine", "libc", "from"))
    return ImageRow(
        tags=tags,
        image_id=image["Id"],
        size_bytes=image["Size"],
        created_at_s=image["Created"],
        python=python,
        machine=machine,
        libc=libc,
        source=source,
        is_default=DEFAULT_IMAGE in tags,
    )


def _address(client: docker.DockerClient | None) -> str:
    adapter = client.api.adapters.get("http+docker://") if client is not None else None
    if adapter is not None and (path := getattr(adapter, "socket_path", None)):
        return f"unix://{path}"
    return client.api.base_url if client is not None else os.environ.get("DOCKER_HOST", DEFAULT_SOCKET)


@contextmanager
def _engine(client: docker.DockerClient | None) -> Iterator[None]:
    """Turn what docker-py raises for an absent, deaf or failing engine into EngineUnavailable with the next step."""
    try:
        yield
    except APIError as e:
        raise EngineUnavailable(f"the Docker Engine at {_address(client)} refused: {e.explanation or e}") from e
    except (DockerException, requests.exceptions.RequestException) as e:
        if "Permission denied" in str(e):
            hint = "add yourself to the group docker, or run as root"
        else:
            hint = "start it (systemctl start docker, or sh scripts/setup), or set DOCKER_HOST"
        raise EngineUnavailable(f"no Docker Engine answers at {_address(client)}: {e}; {hint}") from e


def main(argv: Sequence[str]) -> int:
    """``images build`` and ``images ls``; returns 0, or 1 after saying on stderr what went wrong (2: usage)."""
    options = _parser().parse_args(argv)
    try:
        with closing(connect()) as client:
            _COMMANDS[options.command](client, options)
    except BananasError as e:
        print(f"bananas images: {e}", file=sys.stderr)
        return 1
    return 0


def _build_command(client: docker.DockerClient, options: argparse.Namespace) -> None:
    info = build_from_host(
        client,
        options.tag,
        options.python,
        force=options.force,
        make_default=not options.keep_default,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(f"{info.image} {info.image_id.removeprefix('sha256:')[:12]} {info.abi}")


def _ls_command(client: docker.DockerClient, options: argparse.Namespace) -> None:
    rows = list_images(client)
    if options.output == "json":
        print(json.dumps({"images": [asdict(row) for row in rows]}, indent=2))
        return
    print(f"{'IMAGE':<34}{'ID':<14}{'PYTHON':<8}{'LIBC':<12}{'FROM':<6}{'MB':>6}")
    for row in rows:
        for tag in row.tags or ("<none>",):
            short = row.image_id.removeprefix("sha256:")[:12]
            size_mb = row.size_bytes / 1_000_000
            print(f"{tag:<34}{short:<14}{row.python:<8}{row.libc:<12}{row.source:<6}{size_mb:>6.0f}")


_COMMANDS = {"build": _build_command, "ls": _ls_command}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bananas images", description="Base images of sandboxes, without a registry.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make a Python image from this host's interpreter")
    build.add_argument("--from", dest="source", choices=["host"], default="host", help="where the files come from")
    build.add_argument("--python", metavar="PATH", help="the interpreter to take; default: the one that runs bananas")
    build.add_argument("--tag", help=f"default: {REPOSITORY}:<X.Y>-host")
    build.add_argument("--force", action="store_true", help="build even when nothing has changed")
    build.add_argument("--keep-default", action="store_true", help=f"leave {DEFAULT_IMAGE} as it is")
    ls = commands.add_parser("ls", help="list the images")
    ls.add_argument("-o", "--output", choices=["table", "json"], default="table")
    return parser
