"""``bananas init``: writes a small app that works. It never overwrites: when anything is in the way, nothing is
written at all. It asks no gateway.
"""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import rich_click as click

from bananas.cli.output import output_option, print_json
from bananas.cli.templates import TEMPLATES
from bananas.errors import InvalidRequest

#: What is called first, by template.
_CALLS = {"cron": "bananas schedules"}
_CALL = """bananas invoke hello '{"name": "Ada"}'"""
#: What is said beside a command, by its first word after ``bananas``.
_NOTES = {
    "dev": "# runs everything here until Ctrl-C",
    "invoke": "# in another terminal",
    "schedules": "# in another terminal",
}


@click.command("init")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--template", type=click.Choice(list(TEMPLATES)), default="python", show_default=True, help="Which app.")
@output_option
def init(folder: Path, template: str, output: str) -> None:
    """Write a small app that works: bananas.yaml and a function.

    python is a function that is called, cron one that a schedule calls, node is
    one for Node. Files that are there are never changed: it says which are in
    the way, and writes nothing.

    \b
    Example:
      bananas init shop
      bananas init shop --template cron
    """
    files = TEMPLATES[template]
    try:
        _refuse(in_the_way(folder, list(files)))
    except OSError as e:
        raise InvalidRequest(f"{folder} cannot be looked into: {e.strerror}; name a folder that is yours") from e
    write(folder, files)
    following = _next(folder, template)
    if output == "json":
        print_json({"dir": str(folder), "template": template, "files": list(files), "next": following})
        return
    for name in files:
        click.echo(f"created {folder / name}")
    click.echo("\nnext:")
    for command in following:
        note = _NOTES.get(command.split()[1], "")
        click.echo(f"  {command:<40}  {note}".rstrip())


def in_the_way(folder: Path, names: list[str]) -> list[Path]:
    """What is there already: a file of the same name, or a file where a folder is to be."""
    found: dict[Path, None] = {}
    for name in names:
        for place in (*reversed(folder.parents), *(folder / part for part in reversed(Path(name).parents))):
            if _is_there(place) and not place.is_dir():
                found[place] = None
        if _is_there(folder / name):
            found[folder / name] = None
    return list(found)


def _is_there(path: Path) -> bool:
    """Also for a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def write(folder: Path, files: dict[str, str]) -> None:
    """Create the files; raises InvalidRequest, which names what could not be made, when one cannot be."""
    for name, text in files.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Exclusive: what appeared since we looked is not overwritten either.
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as e:
            if e.errno == errno.EEXIST:
                _refuse([target])
            raise InvalidRequest(f"{target} cannot be written: {e.strerror}; name a folder that is yours") from e


def _refuse(paths: list[Path]) -> None:
    if paths:
        listed = ", ".join(map(str, paths))
        raise InvalidRequest(
            f"{listed} {'is' if len(paths) == 1 else 'are'} there already, and nothing is ever overwritten; move what "
            "is in the way, or name another folder: `bananas init DIR`"
        )


def _next(folder: Path, template: str) -> list[str]:
    """The three commands to go on with."""
    call = _CALLS.get(template, _CALL)
    if folder.resolve() == Path.cwd():
        return ["bananas dev", call, "bananas functions ls"]
    return [f"cd {shlex.quote(str(folder))}", "bananas dev", call]
