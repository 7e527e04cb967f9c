"""Secrets of a volume in their many spellings, and the access domain that cached bytes belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.s3.identity import S3Identity

# Keys are compared without case and punctuation: AWS_ACCESS_KEY_ID, accessKeyID and access-key-id are one spelling.
_SPELLINGS = {
    "access_key_id": ("accesskeyid", "awsaccesskeyid", "keyid", "s3accesskeyid", "s3accesskey", "awsaccesskey"),
    "secret_access_key": (
        *("secretaccesskey", "awssecretaccesskey", "secretkey", "awssecretkey", "s3secretkey", "secret"),
    ),
    "session_token": ("sessiontoken", "awssessiontoken", "securitytoken", "awssecuritytoken"),
    "service_account_json": (
        *("serviceaccountjson", "serviceaccountkey", "gcskeyjson", "keyjson", "credentialsjson"),
        *("googleserviceaccountkey", "googleapplicationcredentialsjson", "googlecredentials"),
    ),
    "account_name": ("accountname", "storageaccount", "azurestorageaccount", "azurestorageaccountname"),
    "account_key": ("accountkey", "azurestorageaccountkey", "azurestoragekey", "azurestorageaccesskey"),
    "sas_token": ("sastoken", "saskey", "azurestoragesastoken", "azurestorageaccountsastoken"),
    "username": ("username", "user"),
    "password": ("password",),
    "token": ("token", "hftoken", "githubtoken"),
}
_MEANINGS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_ALLOWED = (
    "access_key_id, secret_access_key and session_token (S3); service_account_json (Google); account_name and "
    "account_key or sas_token (Azure); username, password, token (others)"
)
_KUBERNETES_PREFIX = "csi.storage.k8s.io/"
_TOGETHER = (
    ("access_key_id", "secret_access_key"),
    ("secret_access_key", "access_key_id"),
    ("session_token", "access_key_id"),
    ("account_key", "account_name"),
    ("sas_token", "account_name"),
)


def parse_secret(secret: Mapping[str, str]) -> Credentials:
    """The keys of a CSI secret under one name each; an empty secret means the ambient identity.

    Raises InvalidParameter for a key that is not known or given twice, MissingParameter for half a pair. Messages
    name keys and never a value.
    """
    values: dict[str, str] = {}
    plain = {name: "".join(filter(str.isalnum, name)).lower() for name in secret}
    for name, spelling in plain.items():
        if name.startswith(_KUBERNETES_PREFIX):
            continue  # added by kubelet, such as service account tokens
        meaning = _MEANINGS.get(spelling)
        if spelling == "accesskey":
            # With key_id it is the secret, with secret_key it is the id: both pairs are in use.
            meaning = "secret_access_key" if "keyid" in plain.values() else "access_key_id"
        if meaning is None:
            raise InvalidParameter("secret key", name, _ALLOWED, "endpoint and region belong in the volume attributes")
        value = secret[name].strip()  # a newline at the end is the most common slip in making a secret
        if not value:
            raise MissingParameter(f"secret key {name}", "its value is empty")
        if values.get(meaning, value) != value:
            raise InvalidParameter("secret key", name, f"one value for {meaning}", "two spellings of it differ")
        values[meaning] = value
    for name, partner in _TOGETHER:
        if name in values and partner not in values:
            raise MissingParameter(f"secret key {partner}", f"{name} is of no use without it")
    return Credentials(values)


def access_domain(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """The scope in which cached bytes may be shared: a digest of the endpoint and the identity.

    The same for every session and every restart of one identity. No secret can be derived from it. May block for some
    seconds on the instance metadata service. Raises CredentialsRejected if an identity is needed and none is found.
    """
    text = "\n".join(
        (url.scheme, service_endpoint(url, options, credentials), _identity_name(url, options, credentials))
    )
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _identity_name(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    if options.anonymous:
        return "anonymous"
    values = credentials.values
    if url.scheme == "s3":
        return S3Identity(credentials).name()
    if url.scheme in ("gs", "gcs"):
        return _google_name(values.get("service_account_json"))
    if url.scheme == "az":
        kind = next((name for name in ("account_key", "sas_token") if name in values), "ambient")
        if kind == "sas_token":
            # A SAS may grant little: bytes fetched under one are not for the holder of another.
            kind += _digest(values["sas_token"])
        return f"{values.get('account_name') or os.environ.get('AZURE_STORAGE_ACCOUNT_NAME', '')}:{kind}"
    if "token" in values:
        return f"token:{_digest(values['token'])}"
    return f"user:{values['username']}" if "username" in values else "ambient"


def _digest(token: str) -> str:
    """Names a token that comes without a name. Tokens are long and random: the digest does not reveal one."""
    return hashlib.blake2b(token.encode(), digest_size=16).hexdigest()


def _google_name(service_account: str | None) -> str:
    """Name of the account in a service account key. Raises InvalidParameter, which does not show the key."""
    if service_account is None:
        path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")  # part of the ambient identity, not a setting
        try:
            with open(path or "", encoding="utf-8") as file:
                service_account = file.read()
        except OSError:
            return "ambient"
    try:
        parsed = json.loads(service_account)
        return f"account:{parsed.get('client_email') or parsed.get('client_id') or parsed.get('audience')}"
    except (ValueError, AttributeError):
        raise InvalidParameter(
            "secret key service_account_json", "(hidden)", "the JSON text of a service account key"
        ) from None
