#!/usr/bin/env bash
# obstore 0.12.1 deletes a single object of S3 by DeleteObjects: POST /bucket?delete with an XML body of one key, and not
# by DELETE /bucket/key. A store, proxy or policy that permits DELETE alone refuses it, and on a server that does not know
# DeleteObjects nothing can be deleted.
#
# Seen with Python 3.11 on Linux:
#   obstore.delete(S3Store, "dir/a")   ->  POST /bucket?delete
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
from obstore.store import S3Store

requests = []
DELETED = b'<?xml version="1.0" encoding="UTF-8"?><DeleteResult><Deleted><Key>dir/a</Key></Deleted></DeleteResult>'


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        requests.append(f"{self.command} {self.path}")
        body = DELETED if self.command == "POST" else b""
        self.send_response(200 if self.command == "POST" else 204)
        if body:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
more = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}}
s3 = S3Store("bucket", config={"endpoint": url, "region": "us-east-1", "skip_signature": True}, **more)
obstore.delete(s3, "dir/a")
print(requests[-1])
if requests != ["POST /bucket?delete"]:
    raise SystemExit(f"changed: {requests}")
PYTHON
