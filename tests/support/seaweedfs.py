"""One SeaweedFS for all tests that want a real S3 server: starting one takes three seconds.

A module imports the fixtures it uses. pytest takes the same fixture in two modules for two, so what they share is
kept here and ended with the run.
"""

from __future__ import annotations

import itertools

import pytest

from csi_driver.wiring.s3_server import S3Server

_running: list[S3Server] = []
_numbers = itertools.count()


@pytest.fixture(scope="session")
def seaweed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """The server; import this name into a test module to use it."""
    if not _running:
        server = S3Server(tmp_path_factory.mktemp("seaweedfs"), volume_mb=64)
        server.start()
        request.config.add_cleanup(server.stop)
        _running.append(server)
    return _running[0]


@pytest.fixture
def seaweed_bucket(seaweed: S3Server) -> str:
    """A bucket of its own for a test."""
    name = f"bucket-{next(_numbers)}"
    seaweed.create_bucket(name)
    return name
