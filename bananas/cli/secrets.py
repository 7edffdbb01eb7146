"""``bananas secret``: set, list and remove secrets. A value is read from a file, stdin or a hidden prompt, never from
the command line, where other users and the shell's history would see it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from bananas.cli.output import ago, client, output_option, print_json, print_table, remove_each
from bananas.errors import InvalidRequest
from bananas.settings import LIMITS


@click.group()
def secret() -> None:
    """Set, list and remove secrets of functions.

    \b
    Example:
      bananas secret set SMTP_PASSWORD
    """


@secret.command("set")
@click.argument("name", metavar="NAME")
@click.option("--from-file", type=click.Path(dir_okay=False, path_type=Path), help="Take the file's bytes as they are.")
@output_option
def put(name: str, from_file: Path | None, output: str) -> None:
    """Set a secret; the next call of a function has it.

    No deploy is needed. The value is asked for on a terminal, and else read from
    stdin, where one newline at the end does not count.

    \b
    Example:
      printf %s "$PASSWORD" | bananas secret set SMTP_PASSWORD
      bananas secret set TLS_KEY --from-file key.pem
    """
    value = _read(name, from_file)
    with client() as gateway:
        answer = gateway.put_secret(name, value)
    if output == "json":
        print_json(answer)
    else:
        click.echo(f"{name} {'set' if answer['changed'] else 'unchanged'}")


def _read(name: str, from_file: Path | None) -> bytes:
    try:
        if from_file is not None:
            with from_file.open("rb") as file:
                value = file.read(LIMITS.secret_bytes + 1)
        elif sys.stdin.isatty():
            value = str(click.prompt(f"Value of {name}", hide_input=True)).encode()
        else:
            value = sys.stdin.buffer.read(LIMITS.secret_bytes + 2).removesuffix(b"\n")
    except OSError as e:
        raise InvalidRequest(f"{from_file} cannot be read: {e.strerror}") from e
    if len(value) > LIMITS.secret_bytes:
        raise InvalidRequest(f"the value has more than {LIMITS.secret_bytes} bytes, the limit of a secret")
    return value


@secret.command("ls")
@output_option
def ls(output: str) -> None:
    """List secrets by name, and who needs them.

    \b
    Example:
      bananas secret ls -o json
    """
    with client() as gateway:
        found = gateway.secrets()
    if output == "json":
        print_json(found)
        return
    rows = ((s["name"], ago(s["updated_at"]), ",".join(s["functions"])) for s in found)
    print_table(("NAME", "SET", "FUNCTIONS"), rows)


@secret.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@output_option
def rm(names: tuple[str, ...], output: str) -> None:
    """Remove secrets that no deployed function needs.

    \b
    Example:
      bananas secret rm SMTP_PASSWORD
    """
    with client() as gateway:
        remove_each(names, gateway.delete_secret, output)


@secret.command("new-key")
def new_key() -> None:
    """Print a fresh key to seal secrets with.

    \b
    Example:
      bananas secret new-key > secret.key
    """
    from bananas.secrets import new_key as make

    click.echo(make())


@secret.command("callback-keys")
@output_option
def callback_keys(output: str) -> None:
    """Print what receivers of callbacks check the signature with.

    There is more than one while the key of secrets is being replaced; any of
    them will do, and the first is the latest.

    \b
    Example:
      bananas secret callback-keys
    """
    with client() as gateway:
        found = gateway.callback_keys()
    if output == "json":
        print_json(found)
        return
    for key in found:
        click.echo(key)
