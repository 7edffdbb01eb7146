"""``bananas deploy``, ``validate`` and ``schema``: what has to do with bananas.yaml."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import rich_click as click

from bananas.cli.output import client, file_option, output_option, print_json, print_table


@click.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@file_option
@output_option
def deploy(names: tuple[str, ...], file: Path, output: str) -> None:
    """Deploy the functions of bananas.yaml, or only those named.

    What has not changed is left alone. When anything is wrong, nothing is deployed.

    \b
    Example:
      bananas deploy
      bananas deploy hello -f app/bananas.yaml
    """
    from bananas import manifest
    from bananas.cli.bars import Bars
    from bananas.deploy import deploy as run

    loaded = manifest.load(file, os.environ)
    with client() as gateway, Bars() as bars:
        done = run(gateway, loaded, set(names) or None, bars.say, bars.step)
    if output == "json":
        print_json([asdict(function) for function in done])
    else:
        rows = ((f.name, f.version, "deployed" if f.changed else "unchanged", f.calls) for f in done)
        print_table(("NAME", "VERSION", "STATE", "POST TO"), rows)


@click.command()
@file_option
@output_option
def validate(file: Path, output: str) -> None:
    """Check bananas.yaml without a gateway.

    Prints every problem at once, with its line and column.

    \b
    Example:
      bananas validate -f bananas.yaml
    """
    from bananas import manifest

    loaded = manifest.load(file, os.environ)
    if output == "json":
        print_json({"file": str(file), "functions": list(loaded.functions), "pools": list(loaded.pools)})
    else:
        counts = ((len(loaded.functions), "function"), (len(loaded.pools), "pool"))
        click.echo(f"{file} is valid: " + ", ".join(f"{count} {noun}{'s'[: count != 1]}" for count, noun in counts))


@click.command()
def schema() -> None:
    """Print the JSON Schema of bananas.yaml, for editors.

    \b
    Example:
      bananas schema > bananas.schema.json
      # first line of bananas.yaml:
      # yaml-language-server: $schema=bananas.schema.json
    """
    from bananas import manifest

    print_json(manifest.schema())
