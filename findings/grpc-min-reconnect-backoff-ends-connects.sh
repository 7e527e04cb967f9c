#!/usr/bin/env bash
# grpcio 1.85.1: the channel option grpc.min_reconnect_backoff_ms is no pause between two attempts to connect, as its name
# says, but the time that one attempt may take, the server's first HTTP/2 frame (SETTINGS) included. A client that sets it
# to 100, to find a restarted server soon, fails with UNAVAILABLE against a server that lives and takes 0.5 s for that
# frame, as on a busy machine. The pause after a refused connect is grpc.initial_reconnect_backoff_ms.
#
# Seen with Python 3.11 on Linux, for a server whose first bytes come 0.5 s late:
#   grpc.min_reconnect_backoff_ms=100   ->  StatusCode.UNAVAILABLE
#   grpc.min_reconnect_backoff_ms=5000  ->  answered
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$work/venv/bin/python" - <<'PYTHON'
import socket
import threading
import time
from concurrent import futures

import grpc

DELAY_S = 0.5


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Echo(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
listener = socket.create_server(("127.0.0.1", 0))


def relay(source, target, delay_s):
    try:
        while piece := source.recv(65536):
            time.sleep(delay_s)
            delay_s = 0
            target.sendall(piece)
    except OSError:
        pass


def accept():
    while True:
        ours, _ = listener.accept()
        theirs = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=relay, args=(ours, theirs, 0), daemon=True).start()
        threading.Thread(target=relay, args=(theirs, ours, DELAY_S), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
seen = {}
for limit_ms in (100, 5000):
    options = [("grpc.min_reconnect_backoff_ms", limit_ms), ("grpc.initial_reconnect_backoff_ms", 100)]
    options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}", options=options) as channel:
        try:
            channel.unary_unary("/test/Echo")(b"x", timeout=10)
            seen[limit_ms] = "answered"
        except grpc.RpcError as error:
            seen[limit_ms] = str(error.code())
    print(f"grpc.min_reconnect_backoff_ms={limit_ms}: {seen[limit_ms]}")
server.stop(0)
if seen != {100: "StatusCode.UNAVAILABLE", 5000: "answered"}:
    raise SystemExit(f"changed: {seen}")
PYTHON
