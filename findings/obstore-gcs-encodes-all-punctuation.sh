#!/usr/bin/env bash
# obstore 0.12.1 (object_store's Google client) sends every character of an object's name that is no letter or digit
# percent-encoded, dots and dashes too; its S3 client sends them as they are. Both are the same URL by RFC 3986, which
# calls dots, dashes and underscores unreserved. A server that compares raw paths, as some emulators and test doubles of
# Google Cloud Storage do, takes "shard-0001.tar" for a missing object, and only there.
#
# Seen with Python 3.11 on Linux:
#   GCSStore.get("dir/shard-0001.tar")  ->  GET /bucket/dir%2Fshard%2D0001%2Etar
#   S3Store.get("dir/shard-0001.tar")   ->  GET /bucket/dir/shard-0001.tar
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
"$work/venv/bin/python" - <<'PYTHON'
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import obstore
from obstore.store import GCSStore, S3Store

paths = []


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 12:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"data")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
client = {"allow_http": True}
retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
google = GCSStore("bucket", config={"base_url": url, "skip_signature": True}, client_options=client, retry_config=retry)
s3 = S3Store("bucket", config={"endpoint": url, "region": "us-east-1", "skip_signature": True}, client_options=client,
             retry_config=retry)
for name, store in (("GCSStore", google), ("S3Store", s3)):
    assert bytes(obstore.get(store, "dir/shard-0001.tar").bytes()) == b"data"
    print(f"{name}: GET {paths[-1]}")
if paths != ["/bucket/dir%2Fshard%2D0001%2Etar", "/bucket/dir/shard-0001.tar"]:
    raise SystemExit(f"changed: {paths}")
PYTHON
