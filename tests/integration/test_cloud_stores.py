"""Google Cloud Storage and Azure on real mounts: keys that are no paths, objects that stand for directories, objects
that are stored compressed."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.volumes.data_plane import MountRequest
from tests.support.daemons import DaemonBench
from tests.support.hostile_clouds import HostileAzure, HostileGoogle
from tests.support.hostile_s3 import Compress, HostileS3
from tests.support.secrets_of_stores import AZURE_KEY_SECRET, S3_SECRET, google_secret

pytestmark = pytest.mark.fuse

STORES = {
    "s3": (HostileS3, S3_SECRET),
    "gs": (HostileGoogle, google_secret()),
    "az": (HostileAzure, AZURE_KEY_SECRET),
}
ODD = {
    "a//b": "a/%2F/b",
    "/lead": "%2F/lead",
    "./x": "%2E/x",
    "d/../up": "d/%2E%2E/up",
    "tab\tname": "tab\tname",
    "new\nline": "new\nline",
    "return\rhere": "return\rhere",
    "bell\x07\x01\x1f": "bell\x07\x01\x1f",
    "del\x7f\x85": "del\x7f\x85",
    "no\ufffexml\uffff": "no\ufffexml\uffff",
    "<&>\"'%41 +?#": "<&>\"'%41 +?#",
    "\ue000" + "41\ue001": "\ue000" + "41\ue001",
    "dir/plain": "dir/plain",
}
"""Keys below the prefix, and the paths that docs/keys.md promises."""


class Bench(DaemonBench):
    """Volumes of scripted stores."""

    def volume(self, scheme: str, server: HostileS3, name: str = "v") -> Path:
        mount_point = self.directory / f"mount-{scheme}-{name}"
        mount_point.mkdir()
        self.mount_points.append(mount_point)
        attributes = {
            "url": f"{scheme}://data/p",
            "endpoint": server.endpoint,
            "deadline": "3s",
            "requestTimeout": "2s",
        }
        with self.client() as client:
            request = MountRequest(f"{scheme}-{name}", os.fspath(mount_point), attributes, STORES[scheme][1])
            client.mount(request)
        return mount_point


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.start()
    yield bench
    bench.close()


def files_of(mount_point: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(os.path.join(directory, name), mount_point): Path(directory, name).read_bytes()
        for directory, _, names in os.walk(mount_point)
        for name in names
    }


@pytest.mark.promise("S190")
@pytest.mark.parametrize("scheme", STORES)
def test_every_key_is_shown_and_read_whatever_is_in_it(scheme: str, bench: Bench) -> None:
    with STORES[scheme][0]({f"p/{key}": key.encode() * 9 for key in ODD}, page_keys=4) as server:
        mount_point = bench.volume(scheme, server, "odd")
        assert files_of(mount_point) == {path: key.encode() * 9 for key, path in ODD.items()}
        for key, path in ODD.items():
            assert os.getxattr(mount_point / path, "user.hayloft.etag").decode() == server.etag(f"p/{key}")


@pytest.mark.promise("S191")
@pytest.mark.parametrize("scheme", STORES)
def test_objects_that_stand_for_directories_are_no_files(scheme: str, bench: Bench) -> None:
    markers = ["cats/", "dir_$folder$", "dogs"]
    objects = {f"p/{key}": b"" for key in markers} | {"p/cats/1.jpg": b"1", "p/dogs/1.jpg": b"2", "p/empty": b""}
    with STORES[scheme][0](objects) as server:
        if scheme == "az":
            for key, value in {"p/hadoop": "true", "p/empty": "false"}.items():
                server.put(key, b"")
                server.object_headers[key] = {"x-ms-meta-Hdi_IsFolder": value}
        mount_point = bench.volume(scheme, server, "markers")
        assert files_of(mount_point) == {"cats/1.jpg": b"1", "dogs/1.jpg": b"2", "empty": b""}
        expected = {"cats", "dir", "dogs"} | ({"hadoop"} if scheme == "az" else set())
        assert {entry.name for entry in os.scandir(mount_point) if entry.is_dir()} == expected


@pytest.mark.promise("S192")
@pytest.mark.parametrize("scheme", STORES)
def test_an_object_that_is_stored_compressed_gives_its_stored_bytes(scheme: str, bench: Bench) -> None:
    stored = {
        "p/small.gz": gzip.compress(b"many words " * 1000),
        "p/large.gz": gzip.compress(random.Random(7).randbytes(6_000_000)),
        "p/plain": b"as it is",
    }
    with STORES[scheme][0](stored) as server:
        for key in ("p/small.gz", "p/large.gz"):
            server.object_headers[key] = {"Content-Encoding": "gzip", "Content-Type": "text/plain"}
        mount_point = bench.volume(scheme, server, "gzip")
        assert files_of(mount_point) == {key.removeprefix("p/"): content for key, content in stored.items()}


@pytest.mark.promise("S193")
@pytest.mark.parametrize("scheme", STORES)
def test_answers_that_are_compressed_on_the_fly_are_decompressed_or_refused(scheme: str, bench: Bench) -> None:
    small, large = b"many words " * 1000, b"many words " * 600_000
    with STORES[scheme][0]({"p/small": small, "p/large": large, "p/broken": small}) as server:
        mount_point = bench.volume(scheme, server, "compressing")
        server.fail_all(Compress())
        assert (mount_point / "small").read_bytes() == small
        # A part of an object is not in such an answer.
        with (mount_point / "large").open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output"):
            os.pread(file.fileno(), 100, 5_000_000)
        server.fail_all(Compress(lossy=True))
        with pytest.raises(OSError, match="Input/output"):
            (mount_point / "broken").read_bytes()
        server.fail_all(None)
        assert files_of(mount_point) == {"small": small, "large": large, "broken": small}
    assert all(
        ("gzip" if scheme == "gs" else "identity") in request.headers["accept-encoding"]
        for request in server.seen("GET")
    )
