"""One SeaweedFS for all tests that want a real S3 server: starting one takes three seconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.wiring.s3_server import S3Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server; import this name into a test module to use it."""
    directory: Path = tmp_path_factory.mktemp("seaweedfs")
    with S3Server(directory, volume_mb=64) as server:
        yield server


@pytest.fixture
def seaweed_bucket(seaweed: S3Server) -> str:
    """A bucket of its own for a test."""
    name = f"bucket-{next(_numbers)}"
    seaweed.create_bucket(name)
    return name
