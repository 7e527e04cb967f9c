"""Keeps a process at one thread for as long as it is to be forked. Standard library only."""

from __future__ import annotations

import os

NO_LIBRARY_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment in which libraries start no threads when they are imported: numpy's, where it is installed, and one of
Arrow's allocators, which Arrow does not use unless it is told to."""


def import_without_threads() -> None:
    """To be called before the libraries are imported. Values that are set stay."""
    for name, value in NO_LIBRARY_THREADS.items():
        os.environ.setdefault(name, value)


def has_one_thread() -> bool:
    """Counts threads of libraries too, which ``threading`` does not know."""
    return len(os.listdir("/proc/self/task")) == 1
