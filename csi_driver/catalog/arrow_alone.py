"""Arrow without numpy and pandas, in the processes of the driver.

Where they are installed, Arrow imports numpy by itself, and pandas when it makes its first array of a list. That is
0.3 s of processor time and 44 MB for each process (pyarrow 26, pandas 3.1, Python 3.11), and the driver uses neither.
Its image has neither.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

_UNUSED = ("numpy", "pandas")


class _Process:
    """A process has one Arrow."""

    is_the_drivers = False


class _Hidden(MetaPathFinder):
    """Not by None in sys.modules, which modules made by Cython take for a module."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in _UNUSED:
            raise ModuleNotFoundError(f"{fullname} is not used by the driver", name=fullname)


def use_arrow_alone() -> None:
    """At the start of a process of the driver, and of no other one: whatever else uses Arrow there does without numpy
    and pandas, too."""
    _Process.is_the_drivers = True


def import_arrow() -> None:
    """Before the first import of a module that imports Arrow. Nothing where Arrow or numpy is imported, or the process
    is not the driver's. Others can import numpy and pandas afterwards; a thread that does so meanwhile cannot."""
    if not _Process.is_the_drivers or not {"numpy", "pyarrow"}.isdisjoint(sys.modules):
        return
    sys.meta_path = [_Hidden(), *sys.meta_path]  # not in place: other threads may be in a loop over it
    try:
        import pyarrow.compute

        pyarrow.array([0])  # looks for pandas, and never again
    finally:
        # Also that of another thread that has come in between, or it would stay.
        sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, _Hidden)]
