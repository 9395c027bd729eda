"""``llmproxy completion``: the shell's own words for it, from click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

_VARIABLE = "_LLMPROXY_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands and backends.

    Names of backends come from the running proxy; while it is away there are none.

    \b
    Examples:
      eval "$(llmproxy completion bash)"                  in ~/.bashrc
      eval "$(llmproxy completion zsh)"                   in ~/.zshrc, after compinit
      llmproxy completion fish > ~/.config/fish/completions/llmproxy.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    root = context.find_root().command
    # Not source(): that of bash asks the bash that is installed here whether it is new enough.
    made = kind(root, {}, "llmproxy", _VARIABLE)
    click.echo(made.source_template % made.source_vars())
