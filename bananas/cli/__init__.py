"""The command ``bananas``: finds the subcommand, and turns an error of ours into one line and an exit code.

Starts fast: a command's module is imported when the command is asked for, and what those need (requests, pydantic,
docker) only inside the function that uses it. Exit codes, which scripts may rely on:

    0    done
    1    it did not work; the line on stderr says why (a deploy, a manifest, an answer of the gateway)
    2    wrong usage
    3    no gateway answers
    4    the job itself failed: the handler raised, crashed, ran out of memory or time, or was cancelled
    130  interrupted
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

import rich_click as click

import bananas
from bananas import errors

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_JOB_FAILED = 4
EXIT_INTERRUPTED = 130

#: Command → the module below this package that defines it, in the order of the help.
COMMANDS = {
    "init": "newapp",
    "up": "services",
    "dev": "services",
    "deploy": "manifests",
    "invoke": "jobs",
    "jobs": "jobs",
    "explain": "explain",
    "replay": "replay",
    "dead": "dead",
    "functions": "operate",
    "pools": "operate",
    "runners": "operate",
    "schedules": "schedules",
    "secret": "secrets",
    "token": "tokens",
    "validate": "manifests",
    "schema": "manifests",
    "gateway": "services",
    "runner": "services",
    "images": "services",
    "top": "top",
    "doctor": "doctor",
    "completion": "completion",
}
ALIASES = {"ps": "runners"}
#: What a command is called in its module, when that is something else.
_NAMES = {"explain": "explain_job"}

#: Problems of the API that say how a job ended, not that the call went wrong.
_JOB_CODES = frozenset({"handler-error", "sandbox-died", "sandbox-start", "timeout", "job-cancelled"})


class _Group(click.RichGroup):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Every command, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, or None when there is none of that name."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"bananas.cli.{COMMANDS[name]}"), _NAMES.get(name, name))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments; a usage error that names the nearest commands when there is none."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], [*COMMANDS, *ALIASES])
            hint = f"did you mean {' or '.join(near)}?" if near else "see all with `bananas --help`"
            raise click.UsageError(f"No such command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bananas.__version__, prog_name="bananas")
@click.option("--url", metavar="URL", help="The gateway; else BANANAS_URL, else http://127.0.0.1:8080.")
@click.pass_context
def cli(ctx: click.Context, url: str | None) -> None:
    """Functions on your own machines.

    Declare them in bananas.yaml, deploy them, call them.

    \b
    Example:
      bananas dev
      bananas invoke hello '{"name": "Ada"}'
    """
    ctx.obj = url


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see the module)."""
    try:
        # Not standalone, so that click neither prints nor exits and the codes are ours.
        result = cli.main(args=argv, prog_name="bananas", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python would complain again when it flushes at exit.
        sys.stderr.close()
        return 0
    except errors.BananasError as e:
        return _explain(e)


def _explain(error: errors.BananasError) -> int:
    """Print the error to stderr; returns the exit code."""
    if isinstance(error, errors.ManifestError):
        count = len(error.problems)
        print(*error.problems, f"error: {count} problem{'s'[: count > 1]} in the file", sep="\n", file=sys.stderr)
        return EXIT_FAILED
    if isinstance(error, errors.ApiError):
        return _explain_answer(error)
    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, errors.GatewayUnreachable):
        return EXIT_UNREACHABLE
    if isinstance(error, errors.JobFailed):
        _print_hint(error.job.get("error"))
        return EXIT_JOB_FAILED
    return EXIT_FAILED


def _explain_answer(error: errors.ApiError) -> int:
    """A problem from the gateway, with the traceback and the job that it tells of."""
    failure, job = error.problem.get("error"), error.problem.get("job")
    if isinstance(failure, dict) and isinstance(failure.get("traceback"), str):
        print(failure["traceback"].rstrip(), file=sys.stderr)
    more = f" (see `bananas jobs show {job}`)" if isinstance(job, str) else ""
    print(f"error: {error}{more}", file=sys.stderr)
    _print_hint(failure)
    return EXIT_JOB_FAILED if error.problem.get("code") in _JOB_CODES else EXIT_FAILED


def _print_hint(failure: object) -> None:
    from bananas.cli.hints import hint

    if isinstance(failure, dict) and (says := hint(failure)):
        print(f"hint: {says}", file=sys.stderr)
