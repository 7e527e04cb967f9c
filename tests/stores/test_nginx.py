"""nginx, by its index pages and by WebDAV."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tests.stores.conformance import StoreConformance
from tests.stores.odd_keys import NOT_IN_A_DIRECTORY
from tests.stores.store_server import INSTALLED, version_printed_by
from tests.stores.web_server import PASSWORD, WebServer, password_file

UNPACKED = INSTALLED / "nginx"
SETTINGS = """\
{module}
daemon off;
user root;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 256; }}
http {{
  access_log off;
  default_type application/octet-stream;
  types {{ text/plain txt; }}
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  gzip on; gzip_types *; gzip_min_length 1; gzip_http_version 1.0;
  server {{
    listen {listen};
    {certificate}
    root {root};
    location / {{ {location} }}
    location ~ \\.gz$ {{ {location} add_header Content-Encoding gzip; }}
  }}
}}
"""


class _Nginx(WebServer):
    terminates_tls = True
    sends_encoding = True
    cannot_hold = {**NOT_IN_A_DIRECTORY, ".hidden": "leaves it out of its listings"}
    module: ClassVar[str] = ""
    location: ClassVar[str]

    @classmethod
    def program(cls) -> Path:
        return UNPACKED / "usr" / "sbin" / "nginx"

    @classmethod
    def version(cls) -> str:
        return version_printed_by(cls.program(), "-v")

    def command(self) -> list[str]:
        certificate = ""
        if self.certificate is not None:
            certificate = f"ssl_certificate {self.certificate.certificate}; ssl_certificate_key {self.certificate.key};"
        settings = self.directory / "nginx.conf"
        settings.write_text(
            SETTINGS.format(
                module=self.module,
                listen=f"127.0.0.1:{self.port}{' ssl' if self.certificate else ''}",
                certificate=certificate,
                root=self.root,
                location=self.location.format(passwords=password_file(self.directory, self.user)),
            )
        )
        return [str(self.program()), "-p", str(self.directory), "-e", "stderr", "-c", str(settings)]


class NginxIndex(_Nginx):
    name = "nginx"
    title = "nginx autoindex"
    protocol = "HTTP"
    location = "autoindex on;"
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_secret": "asks for no password",
        "test_wrong_identity": "asks for no password",
        "test_no_credentials": "asks for no password",
        "test_wrong_region": "has no regions",
    }


class NginxWebDav(_Nginx):
    """It refuses `Depth: infinity`."""

    name = "nginx-webdav"
    title = "nginx dav-ext"
    protocol = "WebDAV"
    password = PASSWORD
    module = f"load_module {UNPACKED}/usr/lib/nginx/modules/ngx_http_dav_ext_module.so;"
    location = "dav_ext_methods PROPFIND OPTIONS; auth_basic files; auth_basic_user_file {passwords};"
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_region": "has no regions",
        "test_anonymous": "asks everybody for a password",
    }


class TestNginxIndex(StoreConformance):
    server_class = NginxIndex


class TestNginxWebDav(StoreConformance):
    server_class = NginxWebDav
