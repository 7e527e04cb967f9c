#!/usr/bin/env bash
# grpcio 1.85.1: a server on a Unix socket removes its path when it stops, without a look whether the file there is still
# its own. In a rolling update the successor has often bound the path by then (it removes the old file first, as every
# CSI driver does), so the predecessor, which had calls to finish, takes the successor's socket away: that one listens
# on, and nobody can connect. And add_insecure_port on the path of a server that is alive replaces its file, without an
# error: two processes believe that they serve.
#
# Seen with Python 3.11 on Linux, one path, server A first:
#   B = add_insecure_port(path), A alive  ->  B's port is not 0, the inode at the path changes
#   A.stop()                              ->  the path is gone, B is still running
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$work/venv/bin/python" - "$work/s.sock" <<'PYTHON'
import os
import sys
from concurrent import futures

import grpc

path = sys.argv[1]


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"unix:{path}")
    server.start()
    return server, port


first, _ = serve()
before = os.stat(path).st_ino
second, port = serve()
replaced = port != 0 and os.stat(path).st_ino != before
print(f"the second server binds the path of a server that is alive: {replaced}")
first.stop(0).wait()
gone = not os.path.exists(path)
print(f"the first server, when it stops, removes the file of the second: {gone}")
second.stop(0).wait()
if (replaced, gone) != (True, True):
    raise SystemExit(f"changed: replaced {replaced}, removed {gone}")
PYTHON
