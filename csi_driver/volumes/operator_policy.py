"""The operator's policy for volumes. The author of a volume's attributes is not trusted with the node's files, nor with
the services that the node's network reaches."""

from __future__ import annotations

from urllib.parse import urlsplit

from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import EndpointNotAllowed, UnsupportedUrl
from csi_driver.settings import PolicySettings

_OBJECT_STORES = frozenset({"s3", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl"})
"""URLs that name a bucket of a provider: without an endpoint they reach the provider's own service."""

_REMOTE = _OBJECT_STORES | {"http", "https", "ftp", "sftp", "ssh", "hdfs", "webhdfs", "oss", "oci", "hf", "memory"}
"""Schemes that never read the node's own files. fsspec has others that do, and may add more."""

_LOCAL = frozenset({"file", "local", "dir", "zip", "tar", "git", "reference", "libarchive", "cached", "filecache"})
"""Schemes that read the node's own files, for the message."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_policy(url: DatasetUrl, endpoint: str | None, policy: PolicySettings) -> None:
    """Raises EndpointNotAllowed, UnsupportedUrl."""
    if url.scheme not in _REMOTE:
        if not policy.allow_file_urls and url.scheme not in _LOCAL:
            known = ", ".join(sorted(_REMOTE))
            raise UnsupportedUrl(f"url: {url.scheme}:// is not a supported kind of store; supported: {known}")
        if not policy.allow_file_urls:
            raise EndpointNotAllowed(
                f"url: {url.scheme}:// reads files of the node, which this driver does not allow; "
                "use an object store, or start the driver with --allow-file-urls"
            )
        return
    if not policy.allowed_endpoints:
        return
    for requested in _requested(url, endpoint):
        if not any(_covers(allowed, requested) for allowed in policy.allowed_endpoints):
            listed = ", ".join(policy.allowed_endpoints)
            raise EndpointNotAllowed(
                f"endpoint: {requested!r} is not allowed; allowed: {listed}. Ask the operator of the driver to add it"
            )


def _requested(url: DatasetUrl, endpoint: str | None) -> list[str]:
    """The endpoints that the volume would connect to, except a provider's own service."""
    requested = [] if endpoint is None else [endpoint]
    if url.scheme not in _OBJECT_STORES and url.scheme != "memory":
        requested.append(f"{url.scheme}://{url.bucket}/{url.prefix}".rstrip("/"))
    return requested


def _covers(allowed: str, requested: str) -> bool:
    """A prefix ends at a host or a complete path component: https://s3.example does not cover https://s3.example.org."""
    allowed_url, requested_url = urlsplit(allowed), urlsplit(requested)
    same_scheme = allowed_url.scheme.lower() == requested_url.scheme.lower()
    same_host = same_scheme and _host(allowed) == _host(requested)
    prefix, path = allowed_url.path.rstrip("/"), requested_url.path.rstrip("/")
    clean = "/../" not in f"{path}/" and "%2e" not in path.lower()
    return same_host and (not prefix or (clean and (path == prefix or path.startswith(prefix + "/"))))


def _host(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme.lower())
