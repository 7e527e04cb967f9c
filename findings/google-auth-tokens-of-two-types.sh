#!/usr/bin/env bash
# google-auth 2.63.0: the token of self-signed credentials (google.auth.jwt.Credentials) is bytes, that of OAuth 2.0
# service account credentials is str, although both stand for the same header. An f-string makes "Bearer b'eyJ…'" of the
# first, which the service answers with 401.
#
# Seen with Python 3.11 on Linux:
#   google.auth.jwt.Credentials:              <class 'bytes'>
#   google.oauth2.service_account.Credentials: <class 'str'>
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check google-auth==2.63.0 cryptography==46.0.3
"$work/venv/bin/python" - <<'PYTHON'
import json

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from google.oauth2 import service_account

key = rsa.generate_private_key(65537, 2048)
pem = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
info = {
    "type": "service_account",
    "client_email": "reader@project.example",
    "private_key": pem,
    "private_key_id": "1",
    "token_uri": "https://identity.example/token",
}


class Answer:
    status, headers = 200, {}
    data = json.dumps({"access_token": "token", "expires_in": 3600}).encode()


self_signed = jwt.Credentials.from_service_account_info(info, audience="https://storage.example/")
self_signed.refresh(None)
oauth = service_account.Credentials.from_service_account_info(info, scopes=["read"])
oauth.refresh(lambda **_: Answer())
print("google.auth.jwt.Credentials:", type(self_signed.token))
print("google.oauth2.service_account.Credentials:", type(oauth.token))
if (type(self_signed.token), type(oauth.token)) != (bytes, str):
    raise SystemExit("changed")
PYTHON
