"""What all commands have in common: the API they ask, ``--json``, and what a failure looks like."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llmproxy.cli.client import ApiError, connect

__all__ = ["Failed", "Misconfigured", "command", "in_json", "json_option", "say_json"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


class Failed(click.ClickException):
    """The command could not do what it was asked: status 1.

    :param body: what --json shows of it.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        as_json: bool = False,
        body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self._hint = hint
        self._as_json = as_json
        self._body = body

    def show(self, file: Any = None) -> None:
        """Tell the error: on standard error for a person, on standard output for a program."""
        if self._as_json:
            say_json({"error": self._body or {"message": self.message, "hint": self._hint}})
            return
        click.echo(f"error: {self.message}", err=True)
        if self._hint:
            click.echo(f"hint: {self._hint}", err=True)


class Misconfigured(Failed):
    """The configuration is not right: status 2."""

    exit_code = 2


def in_json(context: click.Context, as_json: bool) -> bool:
    """Whether --json was said, before or after the command's name."""
    return as_json or bool(context.find_root().params.get("as_json"))


def command(function: _Command) -> _Command:
    """Give a command its ``--json``, and turn what the API refuses into status 1."""

    @json_option
    @click.pass_context
    @functools.wraps(function)
    def run(context: click.Context, /, *args: Any, as_json: bool, **kwargs: Any) -> Any:
        as_json = in_json(context, as_json)
        try:
            api = connect(context.find_root().params.get("url"))
            return function(api, *args, as_json=as_json, **kwargs)
        except ApiError as wrong:
            raise Failed(str(wrong), wrong.hint, as_json=as_json, body=wrong.view()) from None

    # click's decorators have made another type of it.
    return run  # type: ignore[return-value]


def say_json(value: object) -> None:
    """One JSON document on a line."""
    click.echo(json.dumps(value))
