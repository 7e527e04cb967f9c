"""A security token service that gives out keys, or misbehaves: AssumeRoleWithWebIdentity, by AWS_ENDPOINT_URL_STS."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

ROLE = "arn:aws:iam::123456789012:role/reader-of-data"


class IdentityService:
    """``answer``: status and body instead of keys; None: none at all. The n-th keys have the id ``AKIDn``."""

    def __init__(self, life_s: float = 3600.0) -> None:
        self.life_s = life_s
        self.answer: tuple[int, bytes] | str | None = "keys"
        self.asked = 0
        self._released = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.asked += 1
                answer = service.answer
                if answer is None:
                    service._released.wait(60)
                    self.close_connection = True
                    return
                status, body = (200, service._keys()) if isinstance(answer, str) else answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, directory: Path) -> dict[str, str]:
        """Of a process whose own identity is the role."""
        token = directory / "token"
        token.write_text("a token of the pod")
        return {
            "AWS_ROLE_ARN": ROLE,
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
            "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _keys(self) -> bytes:
        expires = datetime.now(UTC) + timedelta(seconds=self.life_s)
        return (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            "<AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>AKID{self.asked}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
            f"<SessionToken>token</SessionToken><Expiration>{expires:%Y-%m-%dT%H:%M:%S.%fZ}</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        ).encode()


def refusal(status: int, code: str) -> tuple[int, bytes]:
    """An error of the service, in its own form."""
    error = f"<Type>Sender</Type><Code>{code}</Code><Message>quoted by no one</Message>"
    return status, f"<ErrorResponse><Error>{error}</Error></ErrorResponse>".encode()
