"""Which image runs which runtime, and how to make one here; ``images_cli.py`` is the command for it.

Never pulls: a missing image is an error that names the command to run. ``resolve`` and ``discover`` are called by
the runner at start and per deploy; ``build_*`` by the command line, the set-up scripts and the test suite.
An image says what it is in labels; one without them (pulled or made elsewhere) is asked once, by a probe container
that has no network and no rights.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.images import Image

from bananas import events
from bananas.errors import EngineUnavailable, ImageMissing, SandboxStartError
from bananas.runtimes import DEFAULT_RUNTIME, NODE_MAJORS, OLDEST_PYTHON, build_hint, parse_runtime
from bananas.spec import RuntimeInfo
from runner import hostimage, image_names
from runner.rootfs import Tree

REPOSITORY = "bananas/python"
DEFAULT_IMAGE = f"{REPOSITORY}:default"
NODE_REPOSITORY = "bananas/node"
NODE_IMAGE = f"{NODE_REPOSITORY}:default"
_DEFAULTS = {"python": DEFAULT_IMAGE, "node": NODE_IMAGE}
LABEL = "org.bananas."
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
ENGINE_TIMEOUT_S = 60
KNOCK_S = 5
PROBE_TIMEOUT_S = 30
PROBE_LOG_BYTES = 4096
_TAGS = {
    "python": re.compile(rf"{REPOSITORY}:(3\.\d{{1,2}})(?:$|[.-])"),
    "node": re.compile(rf"{NODE_REPOSITORY}:(\d{{1,2}})(?:$|[.-])"),
}
_PROBE = """
import json, os, platform, sys
libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
print(json.dumps(["%d.%d" % sys.version_info[:2], platform.machine(), (libc or "").replace(" ", "")]))
"""
_NODE_PROBE = """
const libc = process.report.getReport().header.glibcVersionRuntime;
const machine = { x64: "x86_64", arm64: "aarch64" }[process.arch] || process.arch;
console.log(JSON.stringify([process.versions.node, machine, libc ? "glibc" + libc : ""]));
"""
_PROBES = {"python": ["python3", "-I", "-c", _PROBE], "node": ["node", "-e", _NODE_PROBE]}
#: What probes have answered: image id → (version, machine, libc). Ids never change their content; 64 is plenty.
_probed: dict[str, tuple[str, str, str]] = {}
_PROBED_MAX = 64


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One line of ``images ls``; ``python`` or ``node`` and what follows is empty for an image that does not say."""

    tags: tuple[str, ...]
    image_id: str
    size_bytes: int
    #: Unix seconds.
    created_at_s: int
    python: str
    node: str
    machine: str
    libc: str
    #: ``host``, ``npm``…, or empty for an image that was not built by us.
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
    say: Callable[[str], None] = lambda step: events.IMAGE_STEP(step=step),
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
    image = find(client, tag)
    if image is not None and image.labels.get(f"{LABEL}source") == source and not force:
        say(f"{tag} is up to date ({interpreter.path}, Python {interpreter.full_version})")
    else:
        started = time.monotonic()
        image = _import_python(client, tag, tree, interpreter, source)
        say(f"{tag} built from {interpreter.path} in {time.monotonic() - started:.1f} s")
    if make_default:
        name(client, image, DEFAULT_IMAGE)
    return describe(client, tag)


def changes(labels: dict[str, str], command: str) -> list[str]:
    """The Dockerfile lines of a base image with these facts, whose program is ``command``."""
    lines = [f"LABEL {LABEL}{name}={value}" for name, value in labels.items()]
    return [*lines, "ENV PATH=/usr/local/bin:/usr/bin:/bin", "ENV LANG=C.UTF-8", f'CMD ["{command}"]']


def _import_python(
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
    with tempfile.TemporaryFile(prefix="bananas-image-") as file:
        hostimage.write_python(tree, interpreter, file)
        return import_tar(client, tag, file, changes(labels, "python3"))


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


def name(client: docker.DockerClient, image: Image, tag: str) -> None:
    """Give an image one more name; raises EngineUnavailable."""
    with _engine(client):
        image.tag(*tag.split(":"))


def resolve(client: docker.DockerClient, runtime: str, override: str = "") -> RuntimeInfo:
    """The image of this engine for ``python``, ``python3.N``, ``node`` or ``node22``.

    ``override`` is BANANAS_PYTHON_IMAGE. Raises ImageMissing naming what to run, EngineUnavailable, InvalidRequest
    for no runtime name, or SandboxStartError when an unlabelled image does not start.
    """
    language, version = parse_runtime(runtime)
    override = override if language == "python" else ""
    if version is None:
        return describe(client, override or _DEFAULTS[language], language)
    for found, tag in tags(client, language):
        if found == version:
            return describe(client, tag, language)
    if override and (info := describe(client, override)).python == version:
        return info
    raise ImageMissing(
        f"no image for runtime {runtime} on this engine: {build_hint(runtime)}, or tag one: "
        f"`docker tag <image> bananas/{language}:{version}`"
    )


def discover(client: docker.DockerClient, override: str = "") -> dict[str, RuntimeInfo]:
    """Every runtime that this engine can run now. An image that does not start is logged and left out."""
    names = {f"python{version}" for version, _ in tags(client, "python") if int(version[2:]) >= OLDEST_PYTHON[1]}
    names |= {f"node{version}" for version, _ in tags(client, "node") if version in NODE_MAJORS}
    if find(client, NODE_IMAGE) is not None:
        names.add("node")  # it need not be there, so nothing is said when it is not
    found: dict[str, RuntimeInfo] = {}
    for name in [DEFAULT_RUNTIME, *sorted(names)]:
        try:
            info = resolve(client, name, override)
        except (ImageMissing, SandboxStartError) as e:
            events.RUNTIME_NOT_OFFERED(runtime=name, error=e)
            continue
        found[name] = info
        if info.python:
            found.setdefault(f"python{info.python}", info)
    return found


def describe(client: docker.DockerClient, image: str, language: str = "python") -> RuntimeInfo:
    """What a local image runs of that language, from its labels or by one probe; ImageMissing, SandboxStartError."""
    found = find(client, image)
    if found is None:
        raise ImageMissing(_missing(image))
    labels = found.labels
    facts = tuple(labels.get(LABEL + name, "") for name in (language, "machine", "libc"))
    if not all(facts):
        facts = _ask(client, image, str(found.id), language)
    version = {language: facts[0]}
    return RuntimeInfo(image=image, image_id=str(found.id), machine=facts[1], libc=facts[2], **version)


def _missing(image: str) -> str:
    if image == DEFAULT_IMAGE:
        return f"{image} is not on this engine; run `bananas images build`, or set BANANAS_PYTHON_IMAGE to another one"
    if image == NODE_IMAGE:
        return f"{image} is not on this engine; run {build_hint('node')}"
    return f"{image} is not on this engine; `docker pull {image}`, or run `bananas images build` for one from this host"


def find(client: docker.DockerClient, image: str) -> Image | None:
    """The local image of that name, however the engine spells it; raises EngineUnavailable."""
    for spelling in image_names.spellings(image):
        with _engine(client), suppress(ImageNotFound, NotFound):
            return client.images.get(spelling)
    return None


def id_of(client: docker.DockerClient, image: str) -> str | None:
    """The id of the local image of that name; raises EngineUnavailable."""
    found = find(client, image)
    return None if found is None else str(found.id)


def tags(client: docker.DockerClient, language: str) -> list[tuple[str, str]]:
    """(version, tag) of a language; the plain tag comes before ``-host``, so that a person's own choice wins."""
    with _engine(client):
        images = client.api.images(filters={"reference": f"bananas/{language}:*"})
    names = {image_names.short(tag) for image in images for tag in image["RepoTags"] or ()}
    found = [(match[1], tag) for tag in names if (match := _TAGS[language].match(tag))]
    return sorted(found, key=lambda pair: (len(pair[1]), pair[1]))


def _ask(client: docker.DockerClient, image: str, image_id: str, language: str) -> tuple[str, str, str]:
    if image_id not in _probed:
        facts = _run_probe(client, image, image_id, language)
        if not re.fullmatch(r"glibc\d+\.\d+", facts[2]):
            raise SandboxStartError(f"{image} has no glibc; take one that has, such as {language}:{facts[0]}-slim")
        while len(_probed) >= _PROBED_MAX:
            _probed.pop(next(iter(_probed)), None)
        _probed[image_id] = facts
    return _probed[image_id]


def _run_probe(client: docker.DockerClient, image: str, image_id: str, language: str) -> tuple[str, str, str]:
    program, *arguments = _PROBES[language]
    with _engine(client):
        container = client.containers.create(
            image_id,
            entrypoint=[program],
            command=arguments,
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
            raise SandboxStartError(f"{image} did not say its version within {PROBE_TIMEOUT_S} s") from e
        except APIError as e:
            raise SandboxStartError(f"{image} does not start {program}: {e.explanation}; has it {language}?") from e
        finally:
            with suppress(NotFound):
                container.remove(force=True)
    try:
        if status != 0:
            raise ValueError(f"exit status {status}")
        version, machine, libc = json.loads(output)
    except (TypeError, ValueError) as e:
        raise SandboxStartError(f"{image} is no image of {language}: {e}; {program} said {output[-300:]!r}") from e
    return str(version), str(machine), str(libc)


def list_images(client: docker.DockerClient) -> list[ImageRow]:
    """The images that are ours by label or by name, newest first."""
    with _engine(client):
        images = client.api.images(filters={"reference": f"{REPOSITORY}:*"})
        images += client.api.images(filters={"reference": f"{NODE_REPOSITORY}:*"})
        images += client.api.images(filters={"label": f"{LABEL}runtime"})  # after the ones above: with all their tags
    rows = [_row(image) for image in {image["Id"]: image for image in images}.values()]
    return sorted(rows, key=lambda row: row.created_at_s, reverse=True)


def unused(client: docker.DockerClient, override: str = "") -> list[ImageRow]:
    """Images that ``build`` made and that no runtime name and no container needs any more, newest first.

    An image without our label of where it is from is somebody's own, whatever its name, and never among them.
    """
    needed = {info.image_id for info in discover(client, override).values()}
    with _engine(client):
        needed |= {str(container["ImageID"]) for container in client.api.containers(all=True)}
    return [row for row in list_images(client) if row.source and row.image_id not in needed]


def remove(client: docker.DockerClient, row: ImageRow) -> None:
    """Remove an image with all its names; one that is gone is fine. Raises EngineUnavailable, also when it is used."""
    for reference in row.tags or (row.image_id,):
        with _engine(client), suppress(NotFound):
            client.api.remove_image(reference)


def _row(image: dict[str, Any]) -> ImageRow:
    labels = image["Labels"] or {}
    tags = tuple(image_names.short(tag) for tag in image["RepoTags"] or () if tag != "<none>:<none>")
    facts = {name: labels.get(LABEL + name, "") for name in ("python", "node", "machine", "libc")}
    return ImageRow(
        tags=tags,
        image_id=image["Id"],
        size_bytes=image["Size"],
        created_at_s=image["Created"],
        source=labels.get(f"{LABEL}from", ""),
        is_default=any(image in tags for image in _DEFAULTS.values()),
        **facts,
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
