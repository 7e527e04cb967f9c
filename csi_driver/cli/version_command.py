"""``hayloft version``."""

from __future__ import annotations

from csi_driver.wiring.version import hayloft_version


def version() -> None:
    """Print the version."""
    print(f"hayloft {hayloft_version()}")  # noqa: T201  # output of a command
