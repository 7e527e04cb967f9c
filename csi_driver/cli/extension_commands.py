"""Commands of other distributions: ``hayloft bench`` and ``hayloft demo``, of ``hayloft-bench``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from csi_driver import telemetry
from csi_driver.cli import complain

GROUP = "hayloft.commands"
"""The group of entry points. Each is a function that takes the command's arguments and returns its exit code."""


EXTENSIONS = {
    "demo": "Create a dataset, start a store and the driver, read as training does, and show the throughput.",
    "bench": "Measure the read throughput of training, with Hayloft and with its alternatives.",
}
"""The commands, installed or not."""


def run_extension(name: str, arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 1, with a message on standard error, if it is not installed."""
    telemetry.set_up_logging(name, "warning")
    found = entry_points(group=GROUP, name=name)
    if not found:
        complain(f"{name}: needs the package hayloft-bench, which is not installed; pip install 'hayloft[bench]'")
        return 1
    command = next(iter(found)).load()
    code: int = command(list(arguments))
    return code
