"""What all commands have in common: the API they ask, ``--json``, and what a failure looks like."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llmproxy.cli.client import ApiError, connect

__all__ = ["Failed", "command", "say_json"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Failed(click.ClickException):
    """The command could not do what it was asked: status 1."""

    def __init__(self, message: str, hint: str | None, as_json: bool, body: dict[str, Any]) -> None:
        super().__init__(message)
        self._hint = hint
        self._as_json = as_json
        self._body = body

    def show(self, file: Any = None) -> None:
        """Tell the error: on standard error for a person, on standard output for a program."""
        if self._as_json:
            click.echo(json.dumps({"error": self._body or {"message": self.message, "hint": self._hint}}))
            return
        click.echo(f"error: {self.message}", err=True)
        if self._hint:
            click.echo(f"hint: {self._hint}", err=True)


def command(function: _Command) -> _Command:
    """Give a command its ``--json``, and turn what the API refuses into status 1."""

    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    @click.pass_context
    @functools.wraps(function)
    def run(context: click.Context, /, *args: Any, as_json: bool, **kwargs: Any) -> Any:
        as_json = as_json or bool(context.find_root().params.get("as_json"))
        try:
            api = connect(context.find_root().params.get("url"))
            return function(api, *args, as_json=as_json, **kwargs)
        except ApiError as wrong:
            raise Failed(str(wrong), wrong.hint, as_json, wrong.body) from None

    return run  # type: ignore[return-value]


def say_json(value: object) -> None:
    """One JSON document on a line."""
    click.echo(json.dumps(value))
