"""Secrets as the providers hand them out, with keys that were made for tests."""

from __future__ import annotations

import json
from functools import cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

S3_SECRET = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG", "session_token": "t/o+k=="}
AZURE_KEY_SECRET = {"account_name": "tenant1", "account_key": "a2V5a2V5"}
AZURE_SAS = "sv=2024-11-04&ss=b&srt=co&sp=rl&se=2030-01-01T00:00:00Z&spr=https,http&sig=aGFsbG8%3D"
AZURE_SAS_SECRET = {"account_name": "tenant1", "sas_token": AZURE_SAS}


@cache
def private_key_pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def service_account(**more: object) -> dict[str, object]:
    """The fields of a key file, as Google writes them."""
    email = "trainer@project-1.iam.gserviceaccount.com"
    return {
        "type": "service_account",
        "project_id": "project-1",
        "private_key_id": "0123456789abcdef",
        "private_key": private_key_pem(),
        "client_email": email,
        "client_id": "112233445566778899",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": "https://oauth2.googleapis.com/token",
        "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
        "client_x509_cert_url": f"https://www.googleapis.com/robot/v1/metadata/x509/{email.replace('@', '%40')}",
        "universe_domain": "googleapis.com",
        **more,
    }


def google_secret(**more: object) -> dict[str, str]:
    return {"service_account_json": json.dumps(service_account(**more))}
