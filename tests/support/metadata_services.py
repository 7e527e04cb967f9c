"""The services that give a machine or a container its identity: AWS' instance metadata (version 2), its agent for EKS
Pod Identity, and Azure's. Each answers requests of the documented form alone."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

KEY, SECRET, SESSION = "ASIAMETADATA", "secret-of-metadata", "session-of-metadata"
TOKEN = "token-of-metadata"
POD_TOKEN = "a token of the driver's own pod"
_SESSION_TOKEN = "token-of-imds-v2"


class MetadataServices:
    """``refused``: what was asked in another form than the documented one."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.answered: list[str] = []
        services = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = services._body(self.command, self.path, headers)
                (services.answered if body is not None else services.refused).append(f"{self.command} {self.path}")
                data = (body or "{}").encode()
                self.send_response(400 if body is None else 200)
                self.send_header("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = _answer

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _body(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        """None: it is no request of the documented form."""
        place, query = urlsplit(path).path, dict(parse_qsl(urlsplit(path).query))
        if place.startswith("/latest/"):
            return self._imds(method, place, headers)
        if place == "/v1/credentials":
            return _keys() if headers.get("authorization") == POD_TOKEN else None
        if place == "/metadata/identity/oauth2/token":
            azure = headers.get("metadata") == "true" and query.get("resource") == "https://storage.azure.com"
            return _azure_token() if azure and query.get("api-version") else None
        return None

    def _imds(self, method: str, place: str, headers: dict[str, str]) -> str | None:
        if place == "/latest/api/token":
            return _SESSION_TOKEN if method == "PUT" and "x-aws-ec2-metadata-token-ttl-seconds" in headers else None
        if headers.get("x-aws-ec2-metadata-token") != _SESSION_TOKEN:
            return None  # version 1
        role = "/latest/meta-data/iam/security-credentials/"
        return {role: "node-role", f"{role}node-role": _keys()}.get(place)


def _keys() -> str:
    expires = datetime.now(UTC) + timedelta(hours=1)
    fields: dict[str, Any] = {"AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": SESSION, "Code": "Success"}
    return json.dumps(fields | {"Expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}", "Type": "AWS-HMAC"})


def _azure_token() -> str:
    expires_on = str(int(time.time()) + 3600)
    return json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer", "expires_on": expires_on})
