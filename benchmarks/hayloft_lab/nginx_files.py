"""A web server in C on loopback that serves the files of a directory, for benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

from hayloft_lab.child_servers import free_ports
from hayloft_lab.nginx_process import HOST, NginxProcess

_CONFIG = """{user}daemon off;
worker_processes 1;
pid "{directory}/nginx.pid";
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path "{directory}/bodies";
    proxy_temp_path "{directory}/proxied";
    fastcgi_temp_path "{directory}/fastcgi";
    uwsgi_temp_path "{directory}/uwsgi";
    scgi_temp_path "{directory}/scgi";
    server {{
        listen {host}:{port};
        location /data/ {{
            alias "{served}/";
            autoindex on;
        }}
    }}
}}
"""


class NginxFiles(NginxProcess):
    """The files of one directory, below ``url``, with an index page of each directory."""

    def __init__(self, directory: Path, served: Path, host: str = HOST) -> None:
        super().__init__(directory, free_ports(1, host)[0], host)
        self._served = served

    @property
    def url(self) -> str:
        """Ends in a slash."""
        return f"http://{self.host}:{self.port}/data/"

    def write_config(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nginx.conf"
        # As root nginx gives its workers to another user, which cannot enter directories of a benchmark.
        user = "user root;\n" if os.geteuid() == 0 else ""
        path.write_text(
            _CONFIG.format(user=user, directory=self.directory, served=self._served, host=self.host, port=self.port)
        )
        return path
