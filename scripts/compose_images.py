"""Put together what the images of docker-compose.yml are made of: packages for a base image, a server for Redis.

No file of an image is made by running something in it: the local base has no shell and no pip, and the classic builder
must do. So packages are installed on the host, for the interpreter that the base image says it has. Never pulls.
``scripts/compose-images`` calls ``main``; tests call ``prepare`` and ``build_redis``.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from contextlib import closing
from pathlib import Path

import docker
from packaging.requirements import Requirement

from bananas import embedded, requirements
from bananas.errors import BananasError, DeployError, EngineUnavailable
from bananas.spec import RuntimeInfo
from runner import hostimage, images
from runner.rootfs import closure

ROOT = Path(__file__).resolve().parent.parent
#: Below the root of the checkout, since that is the build context.
STAGE = ROOT / ".bananas/compose"
PACKAGES = ("bananas", "gateway", "runner")
SDK = "bananas_sdk.py"
BASE_IMAGE = "bananas/base:local"
REDIS_IMAGE = "bananas/redis:local"
#: For `bananas deploy` and `bananas dev`, on the machine of whoever develops; uv alone would double the image.
NOT_IN_SERVICES = ("uv", "watchfiles")
INSTALL_TIMEOUT_S = 300
BUILD_TIMEOUT_S = 300


def prepare(base: RuntimeInfo, stage: Path = STAGE) -> Path:
    """Fill ``stage``/site with our packages and what they need, for that base; returns it. Replaces an older one.

    Raises DeployError when a package cannot be had for the base's interpreter.
    """
    with tempfile.TemporaryDirectory(prefix="bananas-site-") as folder:
        site = Path(folder) / "site"
        native = _is_native(base)
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(dependencies(native)) + "\n", "utf-8")
        if native:
            _install(wanted, site)
        else:
            requirements.install(wanted, base.abi, site)
        for name in PACKAGES:
            shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / SDK, site / SDK)
        if native:
            # The containers' root is read-only, so they could never keep what they compile.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            compileall.compile_dir(site, quiet=2, stripdir=folder, prependdir="/opt", invalidation_mode=mode)
        else:
            print(f"no bytecode, so slower starts: {base.abi} is not this host's interpreter", file=sys.stderr)
        target = stage / "site"
        shutil.rmtree(target, ignore_errors=True)
        stage.mkdir(parents=True, exist_ok=True)
        shutil.move(site, target)
    return target


def dependencies(native: bool) -> list[str]:
    """The requirements of our distribution that a service needs; of the extra [fast] what this host could build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    built = [line for line in project["optional-dependencies"]["fast"] if native and _is_here(Requirement(line).name)]
    return [line for line in project["dependencies"] if Requirement(line).name not in NOT_IN_SERVICES] + built


def _is_here(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_native(base: RuntimeInfo) -> bool:
    """Does what this interpreter compiles and installs run in the base, too?"""
    here = hostimage.inspect_interpreter()
    same = (base.python, base.machine) == (here.version, here.machine)
    return same and _glibc(base.libc) >= _glibc(here.libc)


def _glibc(libc: str) -> list[int]:
    """``glibc2.36`` as numbers."""
    return [int(number) for number in re.findall(r"\d+", libc)]


def _install(wanted: Path, site: Path) -> None:
    """With this interpreter, which may build a package that has no wheel, as pip does in the set-up."""
    command = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--target", str(site)]
    command += ["--python", sys.executable, "--requirements", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise DeployError(f"{command[0]} could not install our packages: {e}; run scripts/setup first") from e
    if done.returncode:
        raise DeployError(f"uv could not install our packages: {done.stderr.strip()[-2000:]}")


def build_redis(client: docker.DockerClient, base_image: str, tag: str = REDIS_IMAGE, stage: Path = STAGE) -> str:
    """Build ``tag`` from this host's server on ``base_image``, which must be an image of this host; returns the tag.

    Raises ConfigError when no server is found, EngineUnavailable when the engine does not build.
    """
    server = embedded.find_server()
    rootfs = stage / "redis"
    shutil.rmtree(rootfs, ignore_errors=True)
    binary = rootfs / "usr/bin/redis-server"
    binary.parent.mkdir(parents=True)
    shutil.copyfile(server, binary)
    binary.chmod(0o755)
    data = rootfs / "data"
    data.mkdir()
    data.chmod(0o1777)  # a new volume takes its mode from here, and the server is not root
    needed = closure([server])
    for name, path in needed.libraries.items():
        library = rootfs / needed.library_dir.lstrip("/") / name
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, library)
        library.chmod(0o755)
    try:
        client.images.build(
            path=str(ROOT),
            dockerfile="deploy/redis/Dockerfile",
            tag=tag,
            buildargs={"BASE_IMAGE": base_image},
            pull=False,
            rm=True,
            timeout=BUILD_TIMEOUT_S,
        )
    except docker.errors.DockerException as e:
        raise EngineUnavailable(f"building {tag} on {base_image} failed: {e}") from e
    return tag


def main() -> int:
    """Returns the exit code."""
    chosen = os.environ.get("BASE_IMAGE", "")
    try:
        with closing(images.connect()) as client:
            base = images.describe(client, chosen or images.DEFAULT_IMAGE)
            prepare(base)
            settings = [f"BASE_IMAGE={chosen or BASE_IMAGE}"]
            if not chosen:
                # The default image may become another one; what was installed fits this one.
                client.images.get(base.image_id).tag(*BASE_IMAGE.split(":"))
                # Not on the default image, which may be of another system: the server brings this host's libraries.
                host = images.build_from_host(client, make_default=False)
                settings.append(f"REDIS_IMAGE={build_redis(client, host.image)}")
    except BananasError as e:
        print(f"compose-images: {e}", file=sys.stderr)
        return 1
    (STAGE / "env").write_text("\n".join(settings) + "\n", "utf-8")
    print(f"ready for {base.image} ({base.abi}). Next:")
    print("docker compose --env-file .bananas/compose/env up -d --build --wait")
    return 0


if __name__ == "__main__":
    sys.exit(main())
