"""`python -m http.server`: an index page, and complete files: it sends no ranges."""

from __future__ import annotations

import platform
import sys

from tests.stores.conformance import StoreConformance
from tests.stores.store_server import HOST
from tests.stores.web_server import WebServer

NO_PASSWORD = "asks for no password"


class PythonHttp(WebServer):
    name = "python-http"
    title = "`python -m http.server`"
    protocol = "HTTP"
    comes_with_set_up = True
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_secret": NO_PASSWORD,
        "test_wrong_identity": NO_PASSWORD,
        "test_no_credentials": NO_PASSWORD,
        "test_wrong_region": "has no regions",
        "test_content_encoding": "has no Content-Encoding",
    }

    @classmethod
    def version(cls) -> str:
        return platform.python_version()

    def command(self) -> list[str]:
        where = ["--bind", HOST, "--directory", str(self.root), str(self.port)]
        return [sys.executable, "-m", "http.server", *where]


class TestPythonHttp(StoreConformance):
    server_class = PythonHttp
