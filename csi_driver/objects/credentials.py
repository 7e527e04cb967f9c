"""Secrets of a volume in their many spellings, the access domain that cached bytes belong to, and the credential that
reads them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.objects.endpoints import azure_account, service_endpoint
from csi_driver.objects.s3.identity import S3Identity
from csi_driver.objects.secret_values import checked_value

# Keys are compared without case and punctuation: AWS_ACCESS_KEY_ID, accessKeyID and access-key-id are one spelling.
_SPELLINGS = {
    "access_key_id": (
        *("accesskeyid", "awsaccesskeyid", "keyid", "s3accesskeyid", "s3accesskey", "awsaccesskey", "s3awsaccesskey"),
        *("akid", "accesskeyidentifier", "fss3aaccesskey", "minioaccesskey", "miniorootuser", "rootuser"),
        *("ossaccesskeyid", "r2accesskeyid", "spacesaccesskeyid", "rclones3accesskeyid", "applicationkeyid"),
    ),
    "secret_access_key": (
        *("secretaccesskey", "awssecretaccesskey", "secretkey", "awssecretkey", "s3secretaccesskey", "s3secretkey"),
        *("secret", "s3awssecretkey", "accesskeysecret", "accesssecretkey", "aksecret", "fss3asecretkey"),
        *("miniosecretkey", "miniorootpassword", "rootpassword", "ossaccesskeysecret", "r2secretaccesskey"),
        *("spacessecretaccesskey", "rclones3secretaccesskey", "applicationkey"),
    ),
    "session_token": (
        *("sessiontoken", "awssessiontoken", "securitytoken", "awssecuritytoken", "s3sessiontoken"),
        *("fss3asessiontoken", "ststoken", "rclones3sessiontoken"),
    ),
    "service_account_json": (
        *("serviceaccountjson", "serviceaccountkey", "gcskeyjson", "keyjson", "credentialsjson", "sajson", "jsonkey"),
        *("googleserviceaccountkey", "googleapplicationcredentialsjson", "googlecredentials", "googlecredentialsjson"),
        *("googleserviceaccountjson", "gcpserviceaccountjson", "gcsserviceaccountjson", "gcpserviceaccountkey"),
        *("gcpcredentials", "gcpcredentialsjson", "gcpkeyjson", "gcskey", "keyfilejson", "serviceaccountcredentials"),
    ),
    "account_name": (
        *("accountname", "storageaccount", "storageaccountname", "azurestorageaccount", "azurestorageaccountname"),
        *("azureaccountname", "azblobaccountname"),
    ),
    "account_key": (
        *("accountkey", "storageaccountkey", "azurestorageaccountkey", "azurestoragekey", "azurestorageaccesskey"),
        *("azurestorageaccountaccesskey", "azureaccountkey", "storagekey", "azblobaccountkey"),
    ),
    "sas_token": (
        *("sastoken", "saskey", "sas", "azurestoragesastoken", "azurestoragesaskey", "azurestorageaccountsastoken"),
        *("azuresastoken", "sharedaccesssignature"),
    ),
    "access_token": (
        "accesstoken",
        "oauthtoken",
        "oauthaccesstoken",
        "googleoauthaccesstoken",
        "cloudsdkauthaccesstoken",
    ),
    "username": ("username", "user"),
    "password": ("password",),
    "token": ("token", "hftoken", "githubtoken", "bearertoken", "huggingfacetoken", "huggingfacehubtoken"),
}
"""By the field's own clients: AWS and its SDKs, Hadoop, Trino, rclone, MinIO, Alibaba OSS, COSI, Backblaze, R2, gcloud,
the CSI drivers of Google and Azure, and those for S3."""

_NO_KEYS = {
    **dict.fromkeys(
        ("azurestorageconnectionstring", "connectionstring", "storageconnectionstring"),
        "it names a server; give account_name and account_key, or account_name and sas_token",
    ),
    **dict.fromkeys(
        ("clientsecret", "azureclientsecret", "clientid", "azureclientid", "tenantid", "azuretenantid"),
        "a service principal belongs to the driver's own environment; or use identity: pod with an inline volume",
    ),
    **dict.fromkeys(
        ("rolearn", "awsrolearn", "webidentitytokenfile", "awswebidentitytokenfile"),
        "a role is assumed by the driver's own environment, or with identity: pod by an inline volume",
    ),
    **dict.fromkeys(
        ("hmacsecret", "hmackey", "hmacaccessid", "hmacaccesskey"),
        "HMAC keys of Google are access_key_id and secret_access_key of s3://, with endpoint: https://storage.googleapis.com",
    ),
}
"""What people put into Secrets that no client here takes, and what to do instead."""
_MEANINGS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_ALLOWED = (
    "access_key_id, secret_access_key and session_token (S3); service_account_json or access_token (Google); "
    "account_name and account_key, sas_token or access_token (Azure); username, password, token (others)"
)
CREDENTIAL_BYTES = 16
"""Length of the name of a credential."""

_GLOBAL_NAMES = frozenset({"s3", "gs", "gcs", "file"})
"""Schemes where a URL names the same object for every credential."""

_KUBERNETES_PREFIX = "csi.storage.k8s.io/"
_OF_MIRROR = re.compile(r"mirror([1-9])[^0-9a-z]?(?=[a-z])", re.IGNORECASE)
"""At the beginning of a key: the credentials of the first mirror, and so on."""
_TOGETHER = (
    ("access_key_id", "secret_access_key"),
    ("secret_access_key", "access_key_id"),
    ("session_token", "access_key_id"),
    ("account_key", "account_name"),
    ("sas_token", "account_name"),
)


def parse_secret(secret: Mapping[str, str]) -> Credentials:
    """The keys of a CSI secret under one name each; an empty secret means the ambient identity.

    Raises InvalidParameter for a key that is not known or given twice and for a value that cannot be a credential
    (``secret_values.py``), MissingParameter for half a pair. Messages name keys and never a value.
    """
    values: dict[str, str] = {}
    names: dict[str, str] = {}
    plain = {name: "".join(filter(str.isalnum, name)).lower() for name in secret}
    for name, spelling in plain.items():
        if name.startswith(_KUBERNETES_PREFIX) or mirror_of_key(name) is not None:
            continue  # added by kubelet, such as service account tokens; or of a mirror
        meaning = _MEANINGS.get(spelling)
        if spelling == "accesskey":
            # With key_id it is the secret, with secret_key it is the id: both pairs are in use.
            meaning = "secret_access_key" if "keyid" in plain.values() else "access_key_id"
        if meaning is None:
            remedy = _NO_KEYS.get(spelling, "endpoint and region belong in the volume attributes")
            raise InvalidParameter("secret key", name, _ALLOWED, remedy)
        value = secret[name].strip()  # a newline at the end is the most common slip in making a secret
        if not value:
            raise MissingParameter(f"secret key {name}", "its value is empty")
        if values.get(meaning, value) != value:
            raise InvalidParameter("secret key", name, f"one value for {meaning}", "two spellings of it differ")
        values[meaning], names[meaning] = value, name
    for name, partner in _TOGETHER:
        if name in values and partner not in values:
            raise MissingParameter(f"secret key {partner}", f"{name} is of no use without it")
    return Credentials({meaning: checked_value(meaning, names[meaning], value) for meaning, value in values.items()})


def mirror_of_key(name: str) -> int | None:
    """The number of the mirror, from 1, that a key of a Secret is of; None: of all places without keys of their own."""
    found = None if name.startswith(_KUBERNETES_PREFIX) else _OF_MIRROR.match(name)
    return None if found is None else int(found[1])


def secret_of_mirror(secret: Mapping[str, str], number: int) -> Mapping[str, str]:
    """What the mirror is read with: its own keys if it has any, or else those of the dataset. For ``parse_secret``."""
    own = {_OF_MIRROR.sub("", name, count=1): value for name, value in secret.items() if mirror_of_key(name) == number}
    return own or secret


def joint_domain(domains: Sequence[str], rule: str) -> str:
    """The access domain of a dataset with mirrors: ``domains`` names each place, with its own domain, in their order.
    What one of them sends counts as the bytes of all, so that only volumes with the same mirrors may share it."""
    return hashlib.blake2b("\n".join((*domains, rule)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def access_domain(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """The scope in which cached bytes may be shared: a digest of the trust that a connection deserves. Bytes of another
    server, of one that other certificates vouch for, or that were verified less, are no hit.

    It does not depend on the reader: that is proven for each object (``reading/access_proofs.py``). The same for every
    session, restart and region of one service. Sends no request. Raises InvalidParameter, MissingParameter.
    """
    virtual_hosted = bool(options.endpoint) and options.addressing_style == "virtual"
    verified = "off" if options.backend == "s3fs" else options.verify_checksums  # that client compares no checksums
    authority = _digest(options.ca_bundle_pem.strip()) if options.ca_bundle_pem else ""
    parts = (
        url.scheme,
        service_endpoint(url, options, credentials),
        "virtual" if virtual_hosted else "path",
        authority,
        verified,
        _name_space(url, options, credentials),
    )
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def store_user(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """The user or account of the store that the credentials are of, as far as it decides which objects a URL names;
    empty where it does not, and where it has no name. Raises MissingParameter."""
    if url.scheme == "az":
        return azure_account(credentials)
    if url.scheme in _GLOBAL_NAMES or options.anonymous:
        return ""
    return credentials.values.get("username", "")


def _name_space(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """What decides, beside the URL, which object a key names. Buckets show all users the same objects; other servers
    may show each user a directory of their own, and their versions may be made of size and time."""
    user = store_user(url, options, credentials)
    if url.scheme == "az" or url.scheme in _GLOBAL_NAMES or options.anonymous:
        return user
    token = credentials.values.get("token")
    return f"{user}\n{_digest(token) if token else ''}"


def credential_id(url: DatasetUrl, options: StoreOptions, credentials: Credentials, key: bytes) -> bytes:
    """16 bytes that name what a store is asked with: everything in the secret, so that no part of it can be forged, or
    the node's own identity, which stays the same when its keys rotate. A digest under a ``key`` of the node; neither is
    to be logged. May block for some seconds on the instance metadata service. Raises as
    ``S3Identity.keys`` if an identity is needed and none is found."""
    if options.anonymous:
        who = ["anonymous"]
    elif credentials:
        who = ["secret", *(text for pair in sorted(credentials.values.items()) for text in pair)]
    else:
        who = ["node", _own_identity(url, options, credentials)]
    payer = "pays" if options.requester_pays else ""
    return keyed_digest(json.dumps([url.scheme, payer, *who]), key)


def keyed_digest(text: str, key: bytes) -> bytes:
    """``CREDENTIAL_BYTES`` bytes, of which nothing about the text can be learned without the key."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=CREDENTIAL_BYTES, key=key).digest()


def _own_identity(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """The name of the node's own identity at the provider."""
    if url.scheme == "s3":
        return S3Identity(credentials, options.request_timeout_s).name()
    if url.scheme in ("gs", "gcs"):
        return _google_name()
    return azure_account(credentials) if url.scheme == "az" else ""


def _digest(text: str) -> str:
    """Names a certificate, or a token that comes without a name. Tokens are long and random: the digest does not reveal
    one."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _google_name() -> str:
    """The account of the node's own service account key, if it has one."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")  # part of the ambient identity, not a setting
    try:
        with open(path or "", encoding="utf-8") as file:
            parsed = json.load(file)
        return str(parsed.get("client_email") or parsed.get("client_id") or parsed.get("audience"))
    except (OSError, ValueError, AttributeError):
        return ""
