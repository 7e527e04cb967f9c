"""The command ``hayloft``: arguments and environment become settings, errors become exit codes.

Exit codes: 0 success; 1 the command failed; 2 wrong usage. Each error is one line on standard error.

This module and all of ``hayloft keeper`` import the standard library only: the keeper runs for months and must be
small.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Ends the process."""
    from csi_driver import telemetry
    from csi_driver.wiring.descriptor_limit import raise_descriptor_limit
    from csi_driver.wiring.shutdown import die_with_parent

    telemetry.set_up_logging("hayloft", "warning")  # until the command sets up its own
    telemetry.log_uncaught_errors()
    given = list(sys.argv[1:] if arguments is None else arguments)
    die_with_parent(os.environ)
    raise_descriptor_limit()  # here, for every process, and for the children that inherit it
    if given[:1] == ["keeper"] and not {"--help", "-h"} & set(given):
        from csi_driver.cli.keeper_command import run_keeper

        code = run_keeper(given[1:])
    else:
        from csi_driver.cli.application import run_command
        from csi_driver.objects.http.proxies import uniform_variables

        os.environ.update(uniform_variables(os.environ))
        code = run_command(given)
    sys.exit(code)


def __getattr__(name: str) -> Any:
    """Imports ``app``, the typer application, on first access, so that ``hayloft keeper`` does without typer."""
    if name == "app":
        from csi_driver.cli.typer_application import app

        return app
    raise AttributeError(name)


def complain(message: object) -> None:
    """One line on standard error."""
    line = " ".join(str(message).split())
    print(f"hayloft: {line}", file=sys.stderr)  # noqa: T201  # output of a command


INTERRUPTED = 128 + signal.SIGINT
