"""moto's S3 as a server in this process: one server for all tests, as in seaweedfs.py, and buckets for each test."""

from __future__ import annotations

import logging

import pytest
from moto.server import ThreadedMotoServer

_endpoints: list[str] = []


@pytest.fixture(scope="session")
def moto_endpoint(request: pytest.FixtureRequest) -> str:
    """The URL of the server. A test module imports this name to use it."""
    if not _endpoints:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        request.config.add_cleanup(server.stop)
        host, port = server.get_host_and_port()
        _endpoints.append(f"http://{host}:{port}")
    return _endpoints[0]
