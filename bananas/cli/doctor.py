"""``bananas doctor``: is everything there that Bananas needs on this machine, and what to do about what is not.

The looks themselves are in ``bananas.cli.checks``. What it prints holds no secret: URLs are shown without passwords,
and whatever is left of a secret setting in a message is blotted out.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import rich_click as click

from bananas.cli.output import cell, output_option, print_json
from bananas.errors import ConfigError
from bananas.settings import Settings

if TYPE_CHECKING:
    from bananas.findings import Finding

_SUBJECTS = ("python", "disk", "engine", "redis", "systemd", "gateway")
_WIDTH = 80
_INDENT = " " * 9


@click.command("doctor")
@click.option(
    "--skip",
    "skipped",
    metavar="SUBJECT",
    multiple=True,
    type=click.Choice(_SUBJECTS),
    help="Leave one out; repeatable.",
)
@output_option
@click.pass_context
def doctor(ctx: click.Context, skipped: tuple[str, ...], output: str) -> int:
    """Check what Bananas needs, and say what to do.

    Looks at python, disk, engine (runc, limits, images, and from inside a sandbox
    of its own: what that can see, write and reach), redis, systemd (units, if any)
    and gateway, by the BANANAS_ settings of this shell. On a machine that only
    calls a gateway, skip what it does not need. Exit code 1 when a check failed.

    \b
    Example:
      bananas doctor
      bananas doctor --skip engine --skip redis
    """
    findings = _look(ctx.obj, skipped)
    failed = sum(finding.status == "failed" for finding in findings)
    if output == "json":
        print_json({"failed": failed, "checks": [asdict(finding) for finding in findings]})
        return 1 if failed else 0
    for finding in findings:
        _print(finding)
    warned = sum(finding.status == "warning" for finding in findings)
    counts = ", ".join(f"{count} {word}" for count, word in ((failed, "failed"), (warned, "to look at")) if count)
    click.echo(f"\n{counts or 'all is well'}")
    return 1 if failed else 0


def _look(url: str | None, skipped: tuple[str, ...]) -> list[Finding]:
    from bananas.cli import checks
    from bananas.findings import Finding

    try:
        settings = Settings.from_env()
    except ConfigError as e:
        # Nothing else can be looked at by settings that are wrong.
        return [Finding("settings", "failed", str(e)), *checks.look_at_python(Settings())]
    found: list[Finding] = []
    for name, look in checks.LOOKS.items():
        if name not in skipped:
            found += look(settings)
    address = url or settings.url
    if "gateway" not in skipped:
        found += checks.look_at_gateway(settings, address)
    secrets = _secrets(settings, address)
    return [
        replace(finding, detail=_blot(finding.detail, secrets), next=_blot(finding.next, secrets)) for finding in found
    ]


def _secrets(settings: Settings, url: str) -> list[str]:
    """Texts that must not be printed, the longest first."""
    texts = {settings.token, *settings.secret_key.split(",")}
    for address in (url, settings.redis_url):
        password = urlsplit(address).password or ""
        texts |= {password, unquote(password)}
    return sorted((text.strip() for text in texts if len(text.strip()) > 2), key=len, reverse=True)


def _blot(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _print(finding: Finding) -> None:
    lines = _wrap(f"{finding.status:<8} {finding.name}: {cell(finding.detail)}")
    if finding.next:
        lines += _wrap(f"{_INDENT}next: {cell(finding.next)}")
    for line in lines:
        click.echo(line)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=_INDENT, break_on_hyphens=False, break_long_words=False)
