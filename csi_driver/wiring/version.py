"""The version of this installation."""

from __future__ import annotations

from importlib import metadata


def hayloft_version() -> str:
    """From the metadata of the installed distribution; ``0+unknown`` if it is not installed."""
    try:
        return metadata.version("hayloft")
    except metadata.PackageNotFoundError:
        return "0+unknown"
