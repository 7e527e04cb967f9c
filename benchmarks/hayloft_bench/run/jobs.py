"""Jobs of reader processes, by their names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hayloft_bench.run.reader_pool import ReadCounts, Run


def job_of(name: str) -> Callable[[dict[str, Any]], Run]:
    """The function of ``module:function``.

    By name, because the reader process is a fresh interpreter: it shares no objects with the benchmark, and imports
    only the loader that it runs. A table of all jobs would import every loader, and tests could not bring their own.
    """
    module, _, function = name.partition(":")
    job: Callable[[dict[str, Any]], Run] = getattr(importlib.import_module(module), function)
    return job


def in_sequence(arguments: dict[str, Any]) -> Run:
    """A job of jobs: runs ``arguments["parts"]``, pairs of job and arguments, one after the other."""
    runs = [job_of(name)({**part, "access": arguments["access"]}) for name, part in arguments["parts"]]

    def run(counts: ReadCounts) -> None:
        for each in runs:
            each(counts)

    return run
