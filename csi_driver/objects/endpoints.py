"""Where a store is: base URLs, addressing style, region."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter, MissingParameter

# What S3, Google and Azure allow, and old buckets of the first with capitals; above all no character of a URL.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
_BUCKET_SCHEMES = ("s3", "gs", "gcs", "az")
DEFAULT_REGION = "us-east-1"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_endpoint(text: str) -> str:
    """An endpoint in one spelling: scheme, host in lower case, port only where it is not the usual one, no slash at
    the end. Raises InvalidParameter, also for a URL with a user or a query, where secrets might hide."""
    allowed = "a URL such as https://host:port, without user and query"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise InvalidParameter("endpoint", text, allowed) from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidParameter("endpoint", f"{parts.scheme}://{parts.hostname}", allowed)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise InvalidParameter("endpoint", text, allowed)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown_port = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}{parts.path.rstrip('/')}"


def service_endpoint(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> str:
    """Base URL that tells this service from others. It is the same for every region of AWS, since bucket names are
    unique across them. Raises InvalidParameter, also for what is no name of a bucket."""
    if url.scheme in _BUCKET_SCHEMES and not _BUCKET.match(url.bucket):
        raise InvalidParameter(
            "url", str(url), f"{url.scheme}://bucket/prefix with a bucket of letters, digits and ._-"
        )
    if options.endpoint:
        return parse_endpoint(options.endpoint)
    if url.scheme == "s3":
        return f"https://s3.{_aws_domain(options.region)}"
    if url.scheme in ("gs", "gcs"):
        return "https://storage.googleapis.com"
    if url.scheme == "az":
        return f"https://{azure_account(credentials)}.blob.core.windows.net"
    if url.scheme in ("http", "https"):
        return parse_endpoint(f"{url.scheme}://{url.bucket}")
    return f"{url.scheme}://"


def azure_account(credentials: Credentials) -> str:
    """Name of the storage account, from the secret or the environment. Raises MissingParameter."""
    variables = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")  # the ambient identity, no setting
    found = credentials.values.get("account_name") or next(filter(None, map(os.environ.get, variables)), None)
    if not found:
        raise MissingParameter("secret key account_name", "an Azure dataset needs the name of its storage account")
    return found


@dataclass(frozen=True, slots=True)
class S3Address:
    """How one bucket is reached: requests go to ``base_url`` + "/" + key."""

    base_url: str
    region: str
    virtual_hosted: bool


def s3_address(bucket: str, options: StoreOptions, region: str) -> S3Address:
    """Path style for own endpoints, which seldom have a wildcard name, virtual-hosted style for AWS; a bucket with a
    dot has no valid certificate in virtual-hosted style. Raises InvalidParameter."""
    if options.endpoint:
        endpoint = parse_endpoint(options.endpoint)
        virtual = options.addressing_style == "virtual"
    else:
        endpoint = f"https://s3.{region}.{_aws_domain(region)}"
        virtual = options.addressing_style == "virtual" or (options.addressing_style == "auto" and "." not in bucket)
    if not virtual:
        return S3Address(f"{endpoint}/{bucket}", region, virtual_hosted=False)
    parts = urlsplit(endpoint)
    if _is_address(parts.hostname or ""):
        raise InvalidParameter("addressing_style", "virtual", "path", f"{endpoint} is an address, not a name")
    return S3Address(f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}", region, virtual_hosted=True)


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


def _aws_domain(region: str | None) -> str:
    return "amazonaws.com.cn" if region and region.startswith("cn-") else "amazonaws.com"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
