"""``hayloft bench``: hands its arguments to the benchmark, which is a package beside the driver."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from csi_driver.cli import complain


def run_bench(arguments: Sequence[str]) -> int:
    """Gives the exit code. The benchmark and its packages are imported here, so that the driver does without them."""
    try:
        commands = importlib.import_module("benchmarks.cli")
    except ImportError as error:
        complain(f"the benchmark needs {error.name or error}, which is not installed: pip install 'hayloft[bench]'")
        return 1
    code: int = commands.run_command(arguments)
    return code
