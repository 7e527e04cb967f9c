"""How a daemon fails to answer a command. Imports little: each command looks at errors by their class."""

from __future__ import annotations

from csi_driver.model.errors import DaemonUnavailable


class DaemonSilent(DaemonUnavailable):
    """A daemon listens and does not answer in time."""


class DaemonOutdated(DaemonUnavailable):
    """The daemon is of a version that does not know the call."""
