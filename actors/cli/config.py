"""`oncemq config`, and the options that all commands take from the one table of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..runtime.settings import SPECS, Settings
from .output import print_json, print_table

_DEFAULTS = {"log_dir": "stderr", "sink": "none"}  # in words, where there is no value
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def setting_options(*names: str) -> Callable[[Decorated], Decorated]:
    """Give a command an option for each named setting; its value is None when not given.

    The parameters are called as the settings are (`log_dir`), so that a command can pass them on:
    `settings = Settings.load(flags={"broker": broker, "log_dir": log_dir})`.
    """

    def decorate(command: Decorated) -> Decorated:
        for name in reversed(names):
            spec = SPECS[name]
            default = _DEFAULTS.get(name, spec.default)
            command = click.option(
                spec.flag,
                name,
                metavar=spec.metavar,
                default=None,
                help=f"{spec.meaning.capitalize()} [{spec.variable}; default: {default}].",
            )(command)
        return command

    return decorate


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options(*SPECS)
def config(as_json: bool, **flags: str | None) -> None:
    """Print each setting and its source.

    A flag overrides the environment, the environment overrides an argument in the program
    (App(broker=...)), and an argument overrides the default. Flags given here show their effect.
    """
    settings = Settings.load(flags=flags)
    if as_json:
        print_json(settings.as_dict())
        return
    rows = [(setting.name, setting.shown, setting.source) for setting in settings.by_name.values()]
    print_table("settings", ("setting", "value", "source"), rows)
