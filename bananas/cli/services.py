"""``bananas gateway``, ``runner``, ``images``, ``up`` and ``dev``: start what serves.

The services are other programs (``python -m gateway``, ``python -m runner``), and this process becomes one of them:
signals and exit codes need no relay. Their settings travel as ``BANANAS_*`` environment variables.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, NoReturn

import rich_click as click

from bananas.cli.output import output_option
from bananas.errors import ConfigError


def become(module: str, *args: str, **settings: object) -> NoReturn:
    """Replace this process by ``python -m module``; settings that are None are left to the environment."""
    given = {f"BANANAS_{name.upper()}": str(value) for name, value in settings.items() if value is not None}
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: a folder of the user's that is called gateway or runner must not be taken for ours.
    command = [sys.executable, "-P", "-m", module, *args]
    os.execve(sys.executable, command, {**os.environ, **given})  # noqa: S606 - no shell is wanted


@click.command()
@click.option("--host", help="Address to bind; else BANANAS_HOST, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(1, 65535), help="Else BANANAS_PORT, else 8080.")
@click.option("--workers", type=click.IntRange(0, 64), help="Processes; 0 means one per core, at most 4.")
def gateway(host: str | None, port: int | None, workers: int | None) -> None:
    """Run a gateway: HTTP in, Redis out.

    \b
    Example:
      BANANAS_REDIS_URL=redis://localhost:6379/0 bananas gateway --port 8080
    """
    become("gateway", host=host, port=port, gateway_workers=workers)


@click.command()
@click.option("--pools", metavar="NAME,...", help="Serve only these; else BANANAS_POOLS, else every pool.")
@click.option(
    "--only",
    type=click.Choice(["maintenance"]),
    help="Take no jobs and need no engine: only schedules, delays, lost jobs, tidying and callbacks.",
)
def runner(pools: str | None, only: str | None) -> None:
    """Run a runner: Redis in, containers out.

    \b
    Example:
      BANANAS_REDIS_URL=redis://localhost:6379/0 bananas runner --pools gpu,default
      BANANAS_REDIS_URL=redis://localhost:6379/0 bananas runner --only maintenance
    """
    if pools and only:
        raise click.UsageError("--only maintenance serves no pools; leave --pools out")
    become("runner", *(["--only", only] if only else []), pools=pools)


@click.group()
def images() -> None:
    """Base images of sandboxes, made without a registry.

    \b
    Example:
      bananas images build
    """


@images.command()
@click.option("--runtime", metavar="NAME", help="python (the default), python3.13, node22…")
@click.option("--from", "source", metavar="SOURCE", help="host, debian, npm or wheel; else the first that works.")
@click.option("--suite", metavar="NAME", help="The Debian release to take Python from, such as trixie.")
@click.option("--python", metavar="PATH", help="The interpreter to take; else the one that runs bananas.")
@click.option("--tag", help="The image's name; else one that says its Python version.")
@click.option("--force", is_flag=True, help="Build even when nothing has changed.")
@click.option("--keep-default", is_flag=True, help="Leave the default image as it is.")
@output_option
def build(force: bool, keep_default: bool, **values: str | None) -> None:
    """Make an image of this host's Python, of Debian's, or of Node.

    \b
    Example:
      bananas images build --python /usr/bin/python3.11
      bananas images build --from debian --suite trixie
      bananas images build --runtime node22
    """
    values["from"] = values.pop("source")
    options = [part for name, value in values.items() if value is not None for part in (f"--{name}", value)]
    become("runner", "images", "build", *options, *["--force"] * force, *["--keep-default"] * keep_default)


@images.command("ls")
@output_option
def images_ls(output: str) -> None:
    """List the images.

    \b
    Example:
      bananas images ls -o json
    """
    become("runner", "images", "ls", "-o", output)


@images.command()
@click.option("--yes", is_flag=True, help="Remove them; without it they are only listed.")
@output_option
def prune(yes: bool, output: str) -> None:
    """Remove images built here that no runtime and no container uses.

    \b
    Example:
      bananas images prune --yes
    """
    become("runner", "images", "prune", "-o", output, *["--yes"] * yes)


@click.command()
@click.option("-f", "--file", type=click.Path(dir_okay=False, path_type=Path), help="Deploy this manifest too.")
def up(file: Path | None) -> int:
    """Run Redis, a gateway and a runner here, until interrupted.

    \b
    Example:
      bananas up
    """
    return _run("up", file)


@click.command()
@click.option(
    "-f", "--file", type=click.Path(dir_okay=False, path_type=Path), help="Else bananas.yaml, if there is one."
)
def dev(file: Path | None) -> int:
    """Like up, for development: deploys bananas.yaml.

    \b
    Example:
      bananas dev
    """
    default = Path("bananas.yaml")
    return _run("dev", file if file is not None or not default.is_file() else default)


def _run(mode: Literal["up", "dev"], manifest: Path | None) -> int:
    if manifest is not None and not manifest.is_file():
        raise ConfigError(f"there is no file {manifest}")
    from bananas.stack import run

    return run(mode, manifest)
