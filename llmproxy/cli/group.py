"""A group whose commands are imported when they are asked for, so that each costs only what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

__all__ = ["Later", "LazyGroup"]

_OTHERS = "Others"


class Later(NamedTuple):
    """A command that is imported when it is asked for.

    :ivar module: where it is.
    :ivar help: what the list of commands says of it: the first sentence of its own help.
    :ivar attribute: its name there, where that is not its own (``import`` is a word of Python's).
    """

    module: str
    help: str
    attribute: str | None = None


class LazyGroup(click.Group):
    """A group of commands in sections.

    :param sections: for each section's title its commands by name.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Later]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self.later = {name: one for commands in sections.values() for name, one in commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, as they are listed."""
        return [*self.later, *(name for name in self.commands if name not in self.later)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """That command, imported now."""
        if cmd_name not in self.commands and cmd_name in self.later:
            later = self.later[cmd_name]
            found = getattr(import_module(later.module), later.attribute or cmd_name)
            self.add_command(found, cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for; what is none is told with those that it may be meant for."""
        if not ctx.resilient_parsing and args and self.get_command(ctx, args[0]) is None:
            self._unknown(ctx, args[0])
        return super().resolve_command(ctx, args)

    def _unknown(self, ctx: click.Context, name: str) -> NoReturn:
        near = get_close_matches(name, self.list_commands(ctx), n=2, cutoff=0.7)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        ctx.fail(f"There is no command {name!r}.{meant}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, which imports none of them."""
        rest = {
            name: command.get_short_help_str(limit=200)
            for name, command in self.commands.items()
            if name not in self.later and not command.hidden
        }
        told = {
            title: {name: one.help for name, one in commands.items()}
            for title, commands in self.sections.items()
        }
        for title, commands in {**told, _OTHERS: rest}.items():
            if commands:
                with formatter.section(title):
                    # One column for all sections.
                    widest = max(map(len, self.list_commands(ctx)))
                    formatter.write_dl([(f"{name:<{widest}}", text) for name, text in commands.items()])
