"""``bananas completion``: the lines that make a shell complete our commands, options and choices.

click answers what can stand at a place of the line; the shell asks by calling ``bananas`` with _BANANAS_COMPLETE set.
"""

from __future__ import annotations

from typing import Final

import rich_click as click

_SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete bananas commands.

    For bash (4.4 or newer) and zsh, put the line of the example into ~/.bashrc or
    ~/.zshrc; for fish, write the output to the file of the example.

    \b
    Example:
      eval "$(bananas completion bash)"
      eval "$(bananas completion zsh)"
      bananas completion fish > ~/.config/fish/completions/bananas.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from bananas.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    # Not the shell's own source(), which looks for that shell on this machine first.
    click.echo(ShellComplete.source(kind(cli, {}, "bananas", "_BANANAS_COMPLETE")))
