"""Adobe's S3Mock, which checks nothing and has TLS on a second port."""

from __future__ import annotations

from pathlib import Path

from hayloft_lab.child_servers import free_ports
from tests.stores.conformance import StoreConformance
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import S3Server
from tests.stores.store_server import HOST, INSTALLED, CertificateFiles, java


class S3Mock(S3Server):
    name = "s3mock"
    title = "Adobe S3Mock"
    cannot = {
        "test_wrong_secret": "checks no signature",
        "test_wrong_identity": "checks no key id",
        "test_no_credentials": "everybody may read",
    }
    cannot_hold = {"back\\slash": "refuses it"}

    def __init__(self, directory: Path, certificate: CertificateFiles | None = None) -> None:
        super().__init__(directory, certificate)
        (self._tls_port,) = free_ports(1, HOST)

    @classmethod
    def program(cls) -> Path:
        return INSTALLED / "s3mock" / "s3mock-exec.jar"

    def command(self) -> list[str]:
        files = self.directory / "files"
        files.mkdir(exist_ok=True)
        prefix = "--com.adobe.testing.s3mock.store"
        settings = [f"--http.port={self.port}", f"--server.port={self._tls_port}", f"--server.address={HOST}"]
        settings += [f"{prefix}.root={files}", f"{prefix}.retain-files-on-exit=true"]
        return [java(), "-Xmx512m", "-jar", str(self.program()), *settings]


class TestS3Mock(RangeListing, StoreConformance):
    server_class = S3Mock
