"""s3s-fs: S3 over a directory, whose listing has no ETags."""

from __future__ import annotations

from pathlib import Path

from csi_driver.model.errors import AccessDenied
from tests.stores.conformance import StoreConformance
from tests.stores.odd_keys import NOT_IN_A_DIRECTORY
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import S3Server
from tests.stores.store_server import HOST, INSTALLED


class S3sFs(S3Server):
    name = "s3s-fs"
    title = "s3s-fs"
    cannot = {
        "test_anonymous": "a bucket policy does not open a bucket to everybody",
    }
    cannot_hold = {
        **NOT_IN_A_DIRECTORY,
        "bell\x07key": "cannot list it",
        "per%20cent": "says that it lists names percent-encoded, and does not encode them",
        "a%2Fb": "says that it lists names percent-encoded, and does not encode them",
        "plus+plus": "says that it lists names percent-encoded, and does not encode them",
    }
    own_answers = {"test_wrong_identity": (AccessDenied, "NotSignedUp")}

    @classmethod
    def program(cls) -> Path:
        return INSTALLED / "cargo" / "bin" / "s3s-fs"

    def command(self) -> list[str]:
        files = self.directory / "files"
        files.mkdir(exist_ok=True)
        keys = ["--access-key", self.access_key_id, "--secret-key", self.secret_access_key]
        return [str(self.program()), "--host", HOST, "--port", str(self.port), *keys, str(files)]


class TestS3sFs(RangeListing, StoreConformance):
    server_class = S3sFs
