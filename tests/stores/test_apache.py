"""Apache httpd, by its index pages and by WebDAV."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hayloft_lab.programs import program
from tests.stores.conformance import StoreConformance
from tests.stores.store_server import HOST, INSTALLED, libraries_of, version_printed_by
from tests.stores.web_server import PASSWORD, WebServer, password_file

UNPACKED = INSTALLED / "apache"
MODULES = (
    *("mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic", "dir", "mime", "autoindex"),
    *("filter", "deflate", "dav", "dav_fs", "ssl", "socache_shmcb"),
)
SETTINGS = """\
ServerName {host}
Listen {host}:{port}
ServerRoot {directory}
PidFile {directory}/httpd.pid
DefaultRuntimeDir {directory}
ErrorLog {directory}/error.log
Mutex default:{directory}
DavLockDB {directory}/dav-locks
TypesConfig /dev/null
AddType text/plain .txt
AddEncoding gzip .gz
SetOutputFilter DEFLATE
DocumentRoot {root}
{certificate}
<Directory {root}>
  Options +Indexes
  AllowOverride None
  {access}
</Directory>
"""


class _Apache(WebServer):
    terminates_tls = True
    sends_encoding = True
    access: ClassVar[str]

    @classmethod
    def program(cls) -> Path:
        return UNPACKED / "usr" / "sbin" / "apache2"

    @classmethod
    def version(cls) -> str:
        return version_printed_by(cls.program(), "-v", libraries=libraries_of(UNPACKED))

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LD_LIBRARY_PATH": libraries_of(UNPACKED)}

    def command(self) -> list[str]:
        certificate = ""
        if self.certificate is not None:
            files = self.certificate
            certificate = f"SSLEngine on\nSSLCertificateFile {files.certificate}\nSSLCertificateKeyFile {files.key}"
        where = UNPACKED / "usr" / "lib" / "apache2" / "modules"
        modules = "".join(f"LoadModule {name}_module {where}/mod_{name}.so\n" for name in MODULES)
        settings = self.directory / "httpd.conf"
        passwords = password_file(self.directory, self.user)
        text = SETTINGS.format(
            host=HOST,
            port=self.port,
            directory=self.directory,
            root=self.root,
            certificate=certificate,
            access=self.access.format(passwords=passwords),
        )
        settings.write_text(modules + text)
        # It serves nothing as root, and the directories of the tests are root's.
        other = ["--reuid=65534", "--regid=65534", "--clear-groups"]
        other += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return [str(program("setpriv")), *other, str(self.program()), "-f", str(settings), "-D", "FOREGROUND"]


class ApacheIndex(_Apache):
    name = "apache"
    title = "Apache httpd indexes"
    protocol = "HTTP"
    access = "Require all granted"
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_secret": "asks for no password",
        "test_wrong_identity": "asks for no password",
        "test_no_credentials": "asks for no password",
        "test_wrong_region": "has no regions",
    }


class ApacheWebDav(_Apache):
    """It refuses `Depth: infinity`."""

    name = "apache-webdav"
    title = "Apache httpd mod_dav"
    protocol = "WebDAV"
    password = PASSWORD
    access = "Dav On\n  AuthType Basic\n  AuthName files\n  AuthUserFile {passwords}\n  Require valid-user"
    cannot = {
        "test_multipart": "has no multipart uploads",
        "test_wrong_region": "has no regions",
        "test_anonymous": "asks everybody for a password",
    }


class TestApacheIndex(StoreConformance):
    server_class = ApacheIndex


class TestApacheWebDav(StoreConformance):
    server_class = ApacheWebDav
