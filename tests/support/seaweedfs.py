"""One SeaweedFS for all tests that want a real S3 server: starting one takes three seconds.

A module imports the fixtures it uses. pytest takes the same fixture in two modules for two, so what they share is
kept here and ended with the run.
"""

from __future__ import annotations

import itertools

import pytest

from hayloft_lab.seaweedfs import SeaweedFsServer

_running: list[SeaweedFsServer] = []
_numbers = itertools.count()


@pytest.fixture(scope="session")
def seaweed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SeaweedFsServer:
    """The server; import this name into a test module to use it."""
    if not _running:
        server = SeaweedFsServer(tmp_path_factory.mktemp("seaweedfs"), volume_mb=64)
        server.start()
        request.config.add_cleanup(server.stop)
        _running.append(server)
    return _running[0]


@pytest.fixture
def seaweed_bucket(seaweed: SeaweedFsServer) -> str:
    """A bucket of its own for a test."""
    name = f"bucket-{next(_numbers)}"
    seaweed.create_bucket(name)
    return name
