"""Base URLs of services, and the certificates that their clients trust."""

from __future__ import annotations

import os
import re
import ssl
from urllib.parse import urlsplit

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter, MissingParameter

# What S3, Google and Azure allow, and the capitals of old S3 buckets; no character that has a meaning in a URL.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
_BUCKET_SCHEMES = ("s3", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "hf", "oss", "oci")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?\Z|[0-9A-Fa-f:.]+\Z")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:-]*)*\Z")
_DOTS = re.compile(r"/\.{1,2}(?:/|\Z)")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


def parse_endpoint(text: str) -> str:
    """The canonical spelling: scheme, host in lower case, port only if it is not the default one, no slash at the
    end. Raises InvalidParameter, also for a URL with a user or a query, which might be secret.

    Hosts and paths hold no character that one client reads otherwise than another: urllib, which compares endpoints
    with the operator's list, takes ``\\`` and ``%2e`` literally; the client of obstore takes them for ``/`` and ``.``.
    """
    allowed = "a URL such as https://host:port, without user and query, of ASCII letters, digits and ._- in the host"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise InvalidParameter("endpoint", text, allowed) from None
    if parts.username is not None or parts.password is not None or "?" in text or "#" in text:
        raise InvalidParameter("endpoint", f"{parts.scheme}://{parts.hostname}", allowed)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not _HOST.match(parts.hostname):
        raise InvalidParameter("endpoint", text, allowed)
    if not _PATH.match(parts.path) or _DOTS.search(parts.path):
        raise InvalidParameter("endpoint", text, f"{allowed}; no percent signs, backslashes or dots as path parts")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown_port = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}{parts.path.rstrip('/')}"


def check_bucket(url: DatasetUrl) -> None:
    """Raises InvalidParameter for a bucket that is part of a service's URL and might change it."""
    if url.scheme in _BUCKET_SCHEMES and not _BUCKET.match(url.bucket):
        raise InvalidParameter(
            "url", str(url), f"{url.scheme}://bucket/prefix with a bucket of letters, digits and ._-"
        )


def service_endpoint(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """Base URL that identifies the service. The same for every region of AWS, since bucket names are unique across
    regions. Raises InvalidParameter, also for an invalid bucket name."""
    check_bucket(url)
    if options.endpoint:
        return parse_endpoint(options.endpoint)
    if url.scheme == "s3":
        return f"https://s3.{aws_domain(options.region)}"
    if url.scheme in ("gs", "gcs"):
        return "https://storage.googleapis.com"
    if url.scheme == "az":
        return f"https://{azure_account(credentials)}.blob.core.windows.net"
    if url.scheme in ("http", "https"):
        return parse_endpoint(f"{url.scheme}://{url.bucket}")
    return f"{url.scheme}://"


def storage_account(credentials: Credentials) -> str | None:
    """Name of the Azure storage account, from the secret or the environment; None: neither has one."""
    variables = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")  # part of the ambient identity, not a setting
    return credentials.values.get("account_name") or next(filter(None, map(os.environ.get, variables)), None)


def azure_account(credentials: Credentials) -> str:
    """Name of the Azure storage account, from the secret or the environment. Raises MissingParameter."""
    found = storage_account(credentials)
    if not found:
        raise MissingParameter("secret key account_name", "an Azure dataset needs the name of its storage account")
    return found


def is_host_label(text: str) -> bool:
    """Whether the text is one part of a host's name: it can neither end the name nor begin another one."""
    return _LABEL.match(text) is not None


def check_ca_bundle(pem: str | None) -> str | None:
    """The bundle itself. Raises InvalidParameter for one that holds no certificate."""
    if pem is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        raise InvalidParameter(
            "CA bundle", f"{pem[:40]}...", "certificates in PEM form: the text, not a path"
        ) from None
    return pem


def aws_domain(region: str | None) -> str:
    """The domain of AWS that serves the region."""
    return "amazonaws.com.cn" if region and region.startswith("cn-") else "amazonaws.com"
