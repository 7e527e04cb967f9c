"""``hayloft keeper``. Imports the standard library only."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from csi_driver import telemetry
from csi_driver.cli import complain
from csi_driver.model.errors import HayloftError, InvalidParameter, RequestError

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


DAEMON_TIMEOUT = "15m"
"""Default of ``--daemon-timeout``: longer than a daemon is away in an upgrade that has to load its image, or between
two starts of a container that keeps failing (kubelet waits up to 5 minutes); not so long that a reader of a daemon that
does not come back looks like a hanging machine."""

_DURATION = re.compile(r"(\d{1,6})([smh])\Z")
_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def _seconds(flag: str, text: str) -> float:
    """Raises InvalidParameter."""
    found = _DURATION.match(text.strip())
    if found is None and text.strip() != "0":
        raise InvalidParameter(flag, text, "a duration such as 90s, 15m or 2h, or 0: without limit")
    return float(int(found[1]) * _UNITS_S[found[2]]) if found is not None else 0.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        complain(message)
        self.exit(2)


@dataclass(frozen=True, slots=True)
class _Settings:
    socket: Path


def run_keeper(arguments: Sequence[str]) -> int:
    """Parses the arguments, runs the keeper and returns the exit code."""
    parser = _Parser(prog="hayloft keeper", add_help=False, allow_abbrev=False)
    parser.add_argument("--socket", type=Path, default=os.environ.get("HAYLOFT_SOCKET"))
    parser.add_argument("--daemon-timeout", default=os.environ.get("HAYLOFT_DAEMON_TIMEOUT", DAEMON_TIMEOUT))
    parser.add_argument("--log-level", choices=LEVELS, default=os.environ.get("HAYLOFT_LOG_LEVEL", "info"))
    parser.add_argument("--log-format", choices=FORMATS, default=os.environ.get("HAYLOFT_LOG_FORMAT", "text"))
    try:
        given = parser.parse_args(arguments)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 2
    if given.log_level not in LEVELS or given.log_format not in FORMATS:  # argparse lets defaults pass unchecked
        complain(f"HAYLOFT_LOG_LEVEL is one of {', '.join(LEVELS)}; HAYLOFT_LOG_FORMAT one of {', '.join(FORMATS)}")
        return 2
    if given.socket is None:
        complain("--socket: is required and was not given; it can also be set as HAYLOFT_SOCKET")
        return 2
    return serve_keeper(Path(given.socket), given.log_level, given.log_format, given.daemon_timeout)


def serve_keeper(
    socket: Path, log_level: str, log_format: telemetry.LogFormat, daemon_timeout: str = DAEMON_TIMEOUT
) -> int:
    """Runs the keeper until SIGTERM or SIGINT, and returns the exit code."""
    from csi_driver.wiring import keeper_process

    telemetry.set_up_logging("keeper", log_level, log_format)
    telemetry.change_level_on_signals()
    try:
        keeper_process.run(_Settings(socket), _seconds("--daemon-timeout", daemon_timeout))
    except HayloftError as error:
        complain(error)
        return 2 if isinstance(error, RequestError) else 1
    return 0
