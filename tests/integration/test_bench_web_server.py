"""The workloads ``web-large`` and ``web-small``: nginx serves the dataset, and ways that copy have it on the node."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from hayloft_bench.node_copies.copiers import COPIERS, OF_WEB_SERVERS, Node
from hayloft_bench.node_copies.rounds import objection
from hayloft_bench.results.model import Sizes
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.workloads import WORKLOADS
from hayloft_lab.nginx_files import NginxFiles

pytestmark = pytest.mark.nginx


def test_the_files_of_a_directory_are_served_with_an_index(tmp_path: Path) -> None:
    directory = tmp_path / "with space"
    (directory / "plain").mkdir(parents=True)
    (directory / "plain/file").write_bytes(b"content")
    server = NginxFiles(directory / "web", directory / "plain")
    server.start()
    try:
        for path, expected in (("", b'href="file"'), ("file", b"content")):
            with urllib.request.urlopen(server.url + path, timeout=10) as answer:  # noqa: S310 - http
                assert expected in answer.read()
    finally:
        server.stop()


@pytest.mark.fuse
@pytest.mark.parametrize("workload", ["web-large", "web-small"])
@pytest.mark.parametrize("way", OF_WEB_SERVERS)
def test_each_way_has_the_complete_dataset_on_the_node(tmp_path: Path, workload: str, way: str) -> None:
    assert COPIERS[way].unavailable() == ""
    files = WORKLOADS[workload].make(tmp_path / "plain", Sizes(0.001, 1))
    server = NginxFiles(tmp_path / "web", tmp_path / "plain")
    server.start()
    try:
        (tmp_path / "n").mkdir()
        copied = COPIERS[way].copy(Node(tmp_path / "n", server, Stopping(), lambda: None))
    finally:
        server.stop()
    assert objection(files, copied) == ""
    assert copied.seconds > 0
    assert copied.cpu_s > 0
