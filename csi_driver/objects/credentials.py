"""Who asks: secrets of a volume in their many spellings, or the ambient identity of the node, and the access domain
that cached bytes belong to."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import botocore.credentials
import botocore.exceptions
import botocore.session
from botocore.utils import InstanceMetadataFetcher

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import CredentialsRejected, InvalidParameter, MissingParameter
from csi_driver.objects.endpoints import service_endpoint

METADATA_TIMEOUT_S = 1
METADATA_TRIES = 2
"""The instance metadata service answers in milliseconds where there is one, and a node without it must not wait."""

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
            continue  # what the kubelet adds, such as service account tokens
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


@dataclass(frozen=True, slots=True)
class S3Keys:
    """What a request to S3 is signed with, as of now."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    rotates: bool
    """Ask again after a while."""


class S3Identity:
    """Keys from a secret, or from boto3's chain: environment, profile, web identity, container, instance role."""

    def __init__(self, credentials: Credentials) -> None:
        self._static = _static_keys(credentials)
        self._lock = threading.Lock()  # guards _ambient
        self._ambient: botocore.credentials.Credentials | None = None

    def keys(self) -> S3Keys:
        """Keys that are good for the next ten minutes. May block for some seconds on the instance metadata service.

        Raises CredentialsRejected if the chain has none.
        """
        if self._static is not None:
            return self._static
        try:
            frozen = self._resolved().get_frozen_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise CredentialsRejected(
                f"the node's own credentials cannot be renewed ({type(error).__name__}); check its role or profile"
            ) from error
        return S3Keys(str(frozen.access_key), str(frozen.secret_key), frozen.token or None, rotates=True)

    def name(self) -> str:
        """Who this is, in words that stay the same when keys rotate and that hold no secret."""
        if self._static is not None:
            return f"key:{self._static.access_key_id}"
        found = self._resolved()
        role = os.environ.get("AWS_ROLE_ARN")  # the environment is this identity; it is no setting
        if found.method == "assume-role-with-web-identity" and role:
            return f"role:{role}"
        if found.method == "container-role":
            variables = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
            return "container:" + "".join(os.environ.get(variable, "") for variable in variables)
        if found.method == "iam-role":
            fetched = InstanceMetadataFetcher(METADATA_TIMEOUT_S, METADATA_TRIES).retrieve_iam_role_credentials()
            return f"instance-role:{fetched.get('role_name', '')}"
        if isinstance(found, botocore.credentials.RefreshableCredentials):
            return f"profile:{_session().get_config_variable('profile') or 'default'}"
        return f"key:{found.access_key}"

    def _resolved(self) -> botocore.credentials.Credentials:
        with self._lock:
            known = self._ambient
            if known is None or not isinstance(known, botocore.credentials.RefreshableCredentials):
                # A key in a file may have been replaced since it was read; reading it again is cheap.
                known = self._ambient = _resolve()
        return known


def _static_keys(credentials: Credentials) -> S3Keys | None:
    values = credentials.values
    if not values:
        return None
    if "access_key_id" not in values:
        raise MissingParameter("secret key access_key_id", "the secret of an S3 dataset needs it")
    return S3Keys(values["access_key_id"], values["secret_access_key"], values.get("session_token"), rotates=False)


def _session() -> botocore.session.Session:
    session = botocore.session.Session()
    session.set_config_variable("metadata_service_timeout", METADATA_TIMEOUT_S)
    session.set_config_variable("metadata_service_num_attempts", METADATA_TRIES)
    return session


def _resolve() -> botocore.credentials.Credentials:
    remedy = "give the volume a secret, give the node a role or a profile, or set anonymous for a public bucket"
    try:
        found = _session().get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise CredentialsRejected(
            f"the node's own credentials cannot be had ({type(error).__name__}); {remedy}"
        ) from error
    if found is None:
        raise CredentialsRejected(f"no secret was given and the node has no credentials of its own; {remedy}")
    return found


def access_domain(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """The scope under which cached bytes may be shared: a digest of the endpoint and of who asks.

    The same for every session and every restart of one identity. No secret can be had from it. May block for some
    seconds on the instance metadata service. Raises CredentialsRejected if an identity is needed and there is none.
    """
    text = "\n".join((url.scheme, service_endpoint(url, options, credentials), _who(url, options, credentials)))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _who(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
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
            # A SAS may be narrow: bytes fetched under one are not for the holder of another.
            kind += _digest(values["sas_token"])
        return f"{values.get('account_name') or os.environ.get('AZURE_STORAGE_ACCOUNT_NAME', '')}:{kind}"
    if "token" in values:
        return f"token:{_digest(values['token'])}"
    return f"user:{values['username']}" if "username" in values else "ambient"


def _digest(token: str) -> str:
    """Stands for a token that has no name beside it. Tokens are long and random: no digest leads back to one."""
    return hashlib.blake2b(token.encode(), digest_size=16).hexdigest()


def _google_name(service_account: str | None) -> str:
    if service_account is None:
        path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")  # the ambient identity, no setting
        try:
            with open(path or "", encoding="utf-8") as file:
                service_account = file.read()
        except OSError:
            return "ambient"
    return "account:" + google_client_email(service_account)


def google_client_email(service_account: str) -> str:
    """Name of the account in a service account key. Raises InvalidParameter, which does not show the text."""
    try:
        parsed = json.loads(service_account)
        return str(parsed.get("client_email") or parsed.get("client_id") or parsed.get("audience"))
    except (ValueError, AttributeError):
        raise InvalidParameter(
            "secret key service_account_json", "(hidden)", "the JSON text of a service account key"
        ) from None
