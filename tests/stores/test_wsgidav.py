"""WsgiDAV on cheroot: WebDAV with a password."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.stores.conformance import StoreConformance
from tests.stores.store_server import HOST, python_package_version
from tests.stores.web_server import PASSWORD, WebServer


class WsgiDav(WebServer):
    name = "wsgidav"
    title = "WsgiDAV"
    protocol = "WebDAV"
    comes_with_set_up = True
    password = PASSWORD
    terminates_tls = True
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_region": "has no regions",
        "test_content_encoding": "has no Content-Encoding",
        "test_anonymous": "asks everybody for a password",
    }

    @classmethod
    def version(cls) -> str:
        return python_package_version("wsgidav")

    def command(self) -> list[str]:
        settings: dict[str, Any] = {
            "host": HOST,
            "port": self.port,
            "provider_mapping": {"/": {"root": str(self.root), "readonly": True}},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
            "simple_dc": {"user_mapping": {"*": {self.user: {"password": self.password}}}},
        }
        if self.certificate is not None:
            settings |= {
                "ssl_certificate": str(self.certificate.certificate),
                "ssl_private_key": str(self.certificate.key),
                "ssl_adapter": "builtin",
            }
        path = self.directory / "wsgidav.json"
        path.write_text(json.dumps(settings))
        return [str(Path(sys.executable).with_name("wsgidav")), "--config", str(path)]


class TestWsgiDav(StoreConformance):
    server_class = WsgiDav
