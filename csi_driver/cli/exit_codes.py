"""The exit codes of all commands: the one table of them, which ``docs/operations.md`` shows."""

from __future__ import annotations

from enum import IntEnum

from csi_driver.daemon.command_errors import DaemonOutdated, DaemonSilent
from csi_driver.model.errors import CacheDirectoryMissing, DaemonUnavailable, HayloftError, RequestError


class ExitCode(IntEnum):
    """What a script may decide by. Never renumbered."""

    SUCCESS = 0
    FAILED = 1
    WRONG_USAGE = 2
    NO_DAEMON = 3
    SILENT_DAEMON = 4
    OUTDATED_DAEMON = 5
    FINDINGS = 6

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.SUCCESS: "done, and nothing is wrong",
    ExitCode.FAILED: "the command failed; standard error has the reason",
    ExitCode.WRONG_USAGE: "wrong arguments, or a volume or path that does not exist; standard error names it",
    ExitCode.NO_DAEMON: "no cache daemon listens",
    ExitCode.SILENT_DAEMON: "a cache daemon listens and does not answer: it is stopped, hangs or is overloaded",
    ExitCode.OUTDATED_DAEMON: "the cache daemon is of a version that does not know the call",
    ExitCode.FINDINGS: "done, and something is wrong: a condition (`status`), damage or a change (`verify`), a problem "
    "(`doctor`), nothing found (`explain`)",
}


def exit_code_of(error: HayloftError) -> ExitCode:
    """By the error's class."""
    if isinstance(error, DaemonSilent):
        return ExitCode.SILENT_DAEMON
    if isinstance(error, DaemonOutdated):
        return ExitCode.OUTDATED_DAEMON
    if isinstance(error, DaemonUnavailable):
        return ExitCode.NO_DAEMON
    wrong_usage = isinstance(error, RequestError | CacheDirectoryMissing)
    return ExitCode.WRONG_USAGE if wrong_usage else ExitCode.FAILED
