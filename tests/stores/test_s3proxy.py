"""S3Proxy over a directory."""

from __future__ import annotations

from pathlib import Path

from tests.stores.conformance import StoreConformance
from tests.stores.odd_keys import NO_SUCH_PATHS
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import S3Server
from tests.stores.store_server import INSTALLED, java


class S3Proxy(S3Server):
    name = "s3proxy"
    title = "S3Proxy"
    cannot = {
        "test_anonymous": "a bucket policy does not open a bucket to everybody",
    }
    cannot_hold = NO_SUCH_PATHS

    @classmethod
    def program(cls) -> Path:
        return INSTALLED / "s3proxy" / "lib"

    def command(self) -> list[str]:
        files = self.directory / "files"
        files.mkdir(exist_ok=True)
        settings = self.directory / "s3proxy.conf"
        settings.write_text(
            f"s3proxy.endpoint={self.endpoint}\n"
            "s3proxy.authorization=aws-v4\n"
            f"s3proxy.identity={self.access_key_id}\n"
            f"s3proxy.credential={self.secret_access_key}\n"
            "jclouds.provider=filesystem-nio2\n"
            f"jclouds.filesystem.basedir={files}\n"
        )
        main = ["-cp", f"{self.program()}/*", "org.gaul.s3proxy.Main"]
        return [java(), "-Xmx512m", *main, "--properties", str(settings)]


class TestS3Proxy(RangeListing, StoreConformance):
    server_class = S3Proxy
