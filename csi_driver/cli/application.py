"""Runs a command: imports the module that it is in, reads its arguments, and turns errors into exit codes.

A command has only those modules imported that it uses. typer and the settings with pydantic take 0.2 s and 13 MB, so
typer reads unusual command lines only, and a small command is in a module without settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from csi_driver.cli import INTERRUPTED, complain
from csi_driver.cli.exit_codes import exit_code_of
from csi_driver.cli.plain_arguments import plain_arguments
from csi_driver.model.errors import HayloftError

_MODULES = {
    "controller": "csi_driver.cli.commands",
    "node": "csi_driver.cli.node_command",
    "cache": "csi_driver.cli.commands",
    "all-in-one": "csi_driver.cli.commands",
    "inspect": "csi_driver.cli.dataset_commands",
    "warm": "csi_driver.cli.dataset_commands",
    "trace": "csi_driver.cli.dataset_commands",
    "status": "csi_driver.cli.node_commands",
    "volumes": "csi_driver.cli.node_commands",
    "ls": "csi_driver.cli.node_commands",
    "evict": "csi_driver.cli.node_commands",
    "pin": "csi_driver.cli.node_commands",
    "unpin": "csi_driver.cli.node_commands",
    "verify": "csi_driver.cli.node_commands",
    "top": "csi_driver.cli.top_command",
    "doctor": "csi_driver.cli.doctor_command",
    "explain": "csi_driver.cli.explain_command",
    "migrate": "csi_driver.cli.migrate_command",
    "tier-config": "csi_driver.cli.tier_command",
}
"""By command. Its function has the same name."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code of the process."""
    try:
        return _run(arguments)
    except HayloftError as error:
        complain(error)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    command = _command(arguments[0]) if arguments else None
    values = None if command is None else plain_arguments(command, arguments[1:], os.environ)
    if command is None or values is None:
        from csi_driver.cli.typer_application import run_typer

        return run_typer(arguments)
    result = command(**values)
    return result if isinstance(result, int) else 0


def _command(name: str) -> Callable[..., Any] | None:
    module = _MODULES.get(name)
    found: Callable[..., Any] | None = getattr(import_module(module), name.replace("-", "_")) if module else None
    return found
