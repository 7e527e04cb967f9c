"""One cluster, one store and one installation for all tests: see ``installation.py``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hayloft_lab.cluster.cluster import Cluster
from hayloft_lab.cluster.node import STORE_ADDRESS
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.cluster.datasets import BUCKET, TRAIN, upload
from tests.cluster.installation import TOOLS, Installation, load_images

_measured: list[str] = []


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # An alpha of 1.37: kubelet asks the driver for the health of volumes.
    with Cluster(TOOLS, feature_gates={"CSIVolumeHealth": True}) as made:
        try:
            yield made
        finally:
            _keep_logs(made.node.directory / "logs")


def _keep_logs(logs: Path) -> None:
    """The logs of the last run."""
    kept = TOOLS / "logs"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(logs, kept)


@pytest.fixture(scope="session")
def store(cluster: Cluster) -> Iterator[SeaweedFsServer]:
    """An S3 server that pods reach."""
    server = SeaweedFsServer(cluster.node.directory / "seaweedfs", volume_mb=64, host=STORE_ADDRESS)
    cluster.node.in_the_network(server.start)
    try:
        cluster.node.in_the_network(lambda: server.create_bucket(BUCKET))
        upload(cluster, server, "train", TRAIN)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def hayloft(cluster: Cluster, store: SeaweedFsServer) -> Installation:
    """Installed, with the StorageClass ``train`` of a dataset with the files ``TRAIN``."""
    load_images(cluster)
    made = Installation(cluster, store)
    made.install()
    made.wait_for_rollout()
    return made


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Adds a line to those that are printed at the end of the run."""
    return _measured.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured")
        for line in _measured:
            terminalreporter.write_line(line)
