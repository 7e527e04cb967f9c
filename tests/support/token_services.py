"""Tokens of service accounts as kubelet hands them out, and the identity services of AWS, Google and Azure that
exchange them: each request is checked as the real service does, and refused with its own error."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

from csi_driver.model.pod_role import SERVICE_ACCOUNT_TOKENS

ISSUER = "https://kubernetes.example.com"
ROLE = "arn:aws:iam::123456789012:role/train"
OTHER_ROLE = "arn:aws:iam::123456789012:role/evaluate"
PROVIDER = "//iam.googleapis.com/projects/12/locations/global/workloadIdentityPools/pool/providers/cluster"
ACCOUNT = "train@my-project.iam.gserviceaccount.com"
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
CLIENT = "8c5a3b1e-0d5c-4b6e-9a57-6a1f9f0f2d11"
AWS, AZURE = "sts.amazonaws.com", "api://AzureADTokenExchange"

_KEY = b"the key of the cluster"
_EXPIRES = int(time.time()) + 36_000


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def subject(account: str, namespace: str = "team") -> str:
    return f"system:serviceaccount:{namespace}:{account}"


def make_token(
    account: str, audience: str = AWS, *, namespace: str = "team", serial: int = 1, key: bytes = _KEY
) -> str:
    """Signed by the cluster, unless another key is given."""
    claims = {
        "iss": ISSUER,
        "sub": subject(account, namespace),
        "aud": [audience],
        "exp": _EXPIRES,
        "jti": f"{serial}",
    }
    signed = f"{_part({'alg': 'HS256'})}.{_part(claims)}"
    return (
        f"{signed}.{base64.urlsafe_b64encode(hmac.digest(key, signed.encode(), hashlib.sha256)).decode().rstrip('=')}"
    )


def kubelet_tokens(*tokens: str) -> dict[str, str]:
    """As kubelet puts them into the secrets or the context of a call."""
    entries = {
        json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["aud"][0]: {
            "token": token,
            "expirationTimestamp": "2030-01-01T00:00:00Z",
        }
        for token in tokens
    }
    return {SERVICE_ACCOUNT_TOKENS: json.dumps(entries)}


def verified(token: str, audience: str) -> str | None:
    """The subject; None for a token that the cluster has not signed, or of another audience."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    signature = base64.urlsafe_b64encode(hmac.digest(_KEY, ".".join(parts[:2]).encode(), hashlib.sha256)).decode()
    claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
    genuine = hmac.compare_digest(signature.rstrip("="), parts[2]) and claims["exp"] > time.time()
    return str(claims["sub"]) if genuine and audience in claims["aud"] else None


Answer = tuple[int, str]


class TokenServices:
    """``trusted``: by role (an ARN, a service account of Google, a client of Azure) the service accounts that may have
    it. ``issued`` is called with each S3 key and its secret."""

    def __init__(self, trusted: Mapping[str, set[str]], *, tls: ssl.SSLContext | None = None) -> None:
        self.trusted = {role: set(accounts) for role, accounts in trusted.items()}
        self.issued: Callable[[str, str], object] = lambda key, secret: None
        self.life_s = 3600.0
        self.failure: Answer | None = None
        """Answered to every request while it is set."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Path, and the fields of the form or the JSON."""
        self._lock = threading.Lock()
        self._stack = ExitStack()
        services = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                json_body = "json" in (self.headers.get("Content-Type") or "")
                form = json.loads(text) if json_body else dict(parse_qsl(text))
                status, body = services._answer(unquote(self.path), form, dict(self.headers.items()))
                data = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/xml" if body.startswith("<") else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self) -> dict[str, str]:
        """Of a process that is to ask these services."""
        return {
            "AWS_ENDPOINT_URL_STS": self.url,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STS": f"{self.url}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS": self.url,
            "AZURE_AUTHORITY_HOST": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": "*",
        }

    def _answer(self, path: str, form: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            self.asked.append((path, form))
            number = len(self.asked)
        if self.failure is not None:
            return self.failure
        if form.get("Action") == "AssumeRoleWithWebIdentity":
            return self._aws(form, headers, number)
        if path == "/v1/token":
            return self._google(form, number)
        if path.endswith(":generateAccessToken"):
            return self._impersonate(path, form, headers, number)
        if path.endswith("/oauth2/v2.0/token"):
            return self._azure(path, form, number)
        return 404, "{}"

    def _aws(self, form: dict[str, Any], headers: dict[str, str], number: int) -> Answer:
        found = verified(form.get("WebIdentityToken", ""), AWS)
        if form.get("Version") != "2011-06-15" or not form.get("RoleSessionName") or "Authorization" in headers:
            return 400, _aws_error("ValidationError")
        if found is None:
            return 400, _aws_error("InvalidIdentityToken")
        if found not in self.trusted.get(str(form.get("RoleArn")), ()):
            return 403, _aws_error("AccessDenied")
        key, secret = f"ASIA{number}", f"secret-of-{number}"
        self.issued(key, secret)
        expires = datetime.now(UTC) + timedelta(seconds=self.life_s)
        return 200, (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<AssumeRoleWithWebIdentityResult><SubjectFromWebIdentityToken>{found}</SubjectFromWebIdentityToken>"
            f"<Provider>arn:aws:iam::123456789012:oidc-provider/{ISSUER[8:]}</Provider><Audience>{AWS}</Audience>"
            f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
            f"<SessionToken>session-{number}</SessionToken><Expiration>{expires:%Y-%m-%dT%H:%M:%SZ}</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )

    def _google(self, form: dict[str, Any], number: int) -> Answer:
        wanted = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "audience": PROVIDER,
        }
        found = verified(form.get("subject_token", ""), f"https:{PROVIDER}")
        if any(form.get(name) != value for name, value in wanted.items()) or not form.get("scope"):
            return 400, json.dumps({"error": "invalid_request", "error_description": "quoted by no one"})
        if found is None:
            return 400, json.dumps({"error": "invalid_grant", "error_description": form["subject_token"]})
        return 200, json.dumps(
            {"access_token": f"federated-{found}", "expires_in": int(self.life_s), "token_type": "Bearer"}
        )

    def _impersonate(self, path: str, form: dict[str, Any], headers: dict[str, str], number: int) -> Answer:
        account = path.rpartition("/")[2].partition(":")[0]
        bearer = headers.get("authorization", headers.get("Authorization", ""))
        found = bearer.removeprefix("Bearer federated-")
        if found not in self.trusted.get(account, ()) or not form.get("scope"):
            return 403, json.dumps({"error": {"code": 403, "message": "quoted by no one"}})
        expires = datetime.now(UTC) + timedelta(seconds=self.life_s)
        return 200, json.dumps({"accessToken": f"google-{number}", "expireTime": f"{expires:%Y-%m-%dT%H:%M:%SZ}"})

    def _azure(self, path: str, form: dict[str, Any], number: int) -> Answer:
        found = verified(form.get("client_assertion", ""), AZURE)
        wanted = {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "scope": "https://storage.azure.com/.default",
        }
        if path != f"/{TENANT}/oauth2/v2.0/token" or any(form.get(name) != value for name, value in wanted.items()):
            return 400, json.dumps({"error": "invalid_request", "error_description": "AADSTS90014: quoted by no one"})
        if found is None or found not in self.trusted.get(str(form.get("client_id")), ()):
            detail = f"AADSTS700213: no match for {form.get('client_assertion')}"
            return 401, json.dumps({"error": "invalid_client", "error_description": detail})
        return 200, json.dumps(
            {"access_token": f"azure-{number}", "expires_in": int(self.life_s), "token_type": "Bearer"}
        )


def _aws_error(code: str) -> str:
    error = f"<Type>Sender</Type><Code>{code}</Code><Message>quoted by no one</Message>"
    return f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
