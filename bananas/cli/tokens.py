"""``bananas token``: create, list and remove API tokens. The first one is made with --direct, straight in Redis, since
the gateway asks for a token already.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import rich_click as click

from bananas.cli.output import client, output_option, print_json, print_table, remove_each, time_option
from bananas.settings import Settings
from bananas.units import parse_time_ms

_SCOPES = ("invoke", "deploy", "admin")
_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def token() -> None:
    """Create, list and remove API tokens.

    \b
    Example:
      bananas token create ci --scope deploy --expires-in 30d
    """


@token.command()
@click.argument("name", metavar="NAME")
@click.option("--scope", "scopes", type=click.Choice(_SCOPES), multiple=True, default=("invoke",), show_default=True)
@click.option("--function", "functions", metavar="NAME", multiple=True, help="Only this function; may be repeated.")
@time_option("--expires-in", "When it ends, such as 30d; never unless given.")
@click.option("--rate", metavar="RATE", help="Jobs that it may submit, such as 10/s or 100/m; no limit unless given.")
@click.option("--burst", type=click.IntRange(1), help="So many of them at once; as many as --rate says unless given.")
@click.option("--direct", is_flag=True, help="Write to BANANAS_REDIS_URL, without a gateway; for the first token.")
@output_option
def create(name: str, direct: bool, output: str, **options: Any) -> None:
    """Make a token and print it, this once.

    invoke submits and looks at jobs, deploy also changes functions and pools,
    admin does everything.

    \b
    Example:
      bananas token create shop --scope invoke --function send_email --rate 10/s
      BANANAS_REDIS_URL=redis://localhost:6379/0 bananas token create me --scope admin --direct
    """
    if direct:
        made = _create_directly(name, **options)
    else:
        with client() as gateway:
            made = gateway.create_token(name, **options)
    if output == "json":
        print_json(made)
    else:
        click.echo(made["token"])


def _create_directly(
    name: str,
    scopes: tuple[Any, ...],
    functions: tuple[str, ...],
    expires_in: str | None,
    rate: str | None,
    burst: int | None,
) -> dict[str, Any]:
    from bananas.redis_client import Connections
    from bananas.spec import rate_of
    from bananas.tokens import Tokens

    try:
        limit = rate_of(rate, burst)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    connections = Connections(Settings.from_env().require_redis_url())
    try:
        ttl_s = None if expires_in is None else parse_time_ms(expires_in) / 1000
        made, text = Tokens(connections).create(name, scopes, functions, ttl_s, limit)
    finally:
        connections.close()
    return {"id": made.id, "name": made.name, "scopes": made.scopes, "functions": made.functions, "token": text}


@token.command("ls")
@output_option
def ls(output: str) -> None:
    """List tokens, without their texts.

    \b
    Example:
      bananas token ls -o json
    """
    with client() as gateway:
        found = gateway.tokens()
    if output == "json":
        print_json(found)
        return
    rows = (
        (t["id"], t["name"], ",".join(t["scopes"]), ",".join(t["functions"]) or "all", _rate(t), _end(t)) for t in found
    )
    print_table(("ID", "NAME", "SCOPES", "FUNCTIONS", "RATE", "ENDS"), rows)


def _rate(listed: dict[str, Any]) -> str | None:
    return None if listed["rate"] is None else str(listed["rate"]["limit"])


def _end(listed: dict[str, Any]) -> str:
    if listed["expires_at"] is None:
        return "never"
    return f"{datetime.fromisoformat(listed['expires_at']).astimezone(UTC):%Y-%m-%d %H:%M}"


@token.command("rm")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@output_option
def rm(ids: tuple[str, ...], output: str) -> None:
    """Take tokens back; gateways refuse them within seconds.

    \b
    Example:
      bananas token rm 0123456789ab
    """
    with client() as gateway:
        remove_each(ids, gateway.delete_token, output)
