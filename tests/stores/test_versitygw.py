"""The Versity gateway over a directory."""

from __future__ import annotations

from pathlib import Path

from csi_driver.model.errors import BucketNotFound
from tests.stores.conformance import StoreConformance
from tests.stores.odd_keys import NO_SUCH_PATHS
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import REGION, S3Server
from tests.stores.store_server import HOST, INSTALLED


class VersityGateway(S3Server):
    name = "versitygw"
    title = "versitygw"
    terminates_tls = True
    cannot_hold = {**NO_SUCH_PATHS, "bell\x07key": "refuses it"}
    own_answers = {"test_wrong_identity": (BucketNotFound, "XAdminUserNotFound")}

    @classmethod
    def program(cls) -> Path:
        return INSTALLED / "bin" / "versitygw"

    def command(self) -> list[str]:
        files = self.directory / "files"
        files.mkdir(exist_ok=True)
        keys = ["--access", self.access_key_id, "--secret", self.secret_access_key, "--region", REGION]
        if self.certificate is not None:
            keys += ["--cert", str(self.certificate.certificate), "--key", str(self.certificate.key)]
        return [str(self.program()), "--port", f"{HOST}:{self.port}", *keys, "--quiet", "posix", str(files)]


class TestVersityGateway(RangeListing, StoreConformance):
    server_class = VersityGateway
