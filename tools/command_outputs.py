"""What the commands for a node print, for ``docs/operations.md``: their own code shows example states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csi_driver.cli.doctor_command import doctor_lines
from csi_driver.cli.exit_codes import ExitCode
from csi_driver.cli.explain_command import explanation_lines, explanations
from csi_driver.cli.node_commands import directory_lines, verify_lines
from csi_driver.cli.status_text import status_lines, volume_lines
from csi_driver.cli.top_command import top_lines
from tools import command_examples as examples

_WIDTH = 80


def exit_codes(repository: Path) -> str:
    """The table of exit codes."""
    rows = [f"| {code.value} | {code.meaning} |\n" for code in ExitCode]
    return "".join(["| exit code | meaning |\n", "|---|---|\n", *rows])


def status(repository: Path) -> str:
    """Of `hayloft status`."""
    return _shown("hayloft status", status_lines(examples.STATUS, examples.RATES, _WIDTH))


def volumes(repository: Path) -> str:
    """Of `hayloft volumes`."""
    return _shown("hayloft volumes", volume_lines(examples.STATUS.volumes, _WIDTH))


def listing(repository: Path) -> str:
    """Of `hayloft ls`."""
    return _shown("hayloft ls pvc-5d0c", directory_lines(examples.DIRECTORY, _WIDTH))


def verification(repository: Path) -> str:
    """Of `hayloft verify`."""
    lines = verify_lines("tokens", examples.VERIFY_TOTALS, examples.FINDINGS, origin=True)
    return _shown("hayloft verify tokens --origin", lines)


def top(repository: Path) -> str:
    """Of `hayloft top`."""
    return _shown("hayloft top", top_lines(examples.USE, _WIDTH))


def doctor(repository: Path) -> str:
    """Of `hayloft doctor`."""
    return _shown("hayloft doctor s3://datasets/tokens", doctor_lines(examples.DOCTOR, _WIDTH))


def explanation(repository: Path) -> str:
    """Of `hayloft explain`."""
    lines = [line for one in explanations("ENODATA") for line in explanation_lines(one, _WIDTH)]
    return _shown("hayloft explain ENODATA", lines)


def _shown(command: str, lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in ["```", f"$ {command}", *lines, "```"])
