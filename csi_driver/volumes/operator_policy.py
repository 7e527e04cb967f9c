"""The operator's policy for volumes. The author of a volume's attributes is not trusted with the node's files, nor with
the services that the node's network reaches."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from csi_driver.model.dataset import DatasetUrl, StoreOptions
from csi_driver.model.errors import EndpointNotAllowed, InvalidParameter, UnsupportedUrl
from csi_driver.model.tenant import Tenant
from csi_driver.objects.endpoints import check_bucket, parse_endpoint
from csi_driver.objects.s3.addressing import s3_address
from csi_driver.objects.s3.region import DEFAULT_REGION
from csi_driver.volumes.parameter_text import duration_text

if TYPE_CHECKING:
    from csi_driver.settings import PolicySettings

_OBJECT_STORES = frozenset({"s3", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl"})
"""URLs that name a bucket of a provider: without an endpoint they reach the provider's own service."""

_REMOTE = _OBJECT_STORES | {"http", "https", "ftp", "sftp", "ssh", "hdfs", "webhdfs", "oss", "oci", "hf", "memory"}
"""Schemes that never read the node's own files. fsspec has others that do, and may add more."""

_LOCAL = frozenset({"file", "local", "dir", "zip", "tar", "git", "reference", "libarchive", "cached", "filecache"})
"""Schemes that read the node's own files, for the message."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


_ADDRESSED_BY_BUCKET = _OBJECT_STORES | {"memory", "hf", "oss", "oci"}
"""URLs that do not begin with a host."""

_AUTHORITY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?\Z")


def check_policy(url: DatasetUrl, options: StoreOptions, policy: PolicySettings) -> None:
    """Whether a volume may name this place. Raises EndpointNotAllowed, UnsupportedUrl, InvalidParameter."""
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
    if url.scheme not in _ADDRESSED_BY_BUCKET and not _is_authority(url.bucket):
        raise InvalidParameter("url", str(url), f"{url.scheme}://host[:port]/path with the plain name of a host")
    if policy.allowed_endpoints:
        for requested in requested_places(url, options):
            if not is_listed(requested, policy.allowed_endpoints):
                listed = ", ".join(policy.allowed_endpoints)
                raise EndpointNotAllowed(
                    f"endpoint: {requested!r} is not allowed; allowed: {listed}. Ask the operator of the driver to add "
                    "it (--allowed-endpoint)"
                )
    _check_spelling(url, options)


def check_namespace(url: DatasetUrl, options: StoreOptions, policy: PolicySettings, tenant: Tenant) -> None:
    """Whether volumes of this namespace may name this dataset, and this endpoint. Not judged: what an administrator
    made for no namespace, a PersistentVolume written by hand. Raises EndpointNotAllowed."""
    if not policy.allowed_datasets or not (tenant.namespace or tenant.inline):
        return
    rules = (rule.partition("=") for rule in policy.allowed_datasets)
    prefixes = tuple(prefix for namespace, _, prefix in rules if namespace in ("*", tenant.namespace))
    if "*" in prefixes:
        return
    for field, named in (("url", _plain_url(url)), ("endpoint", options.endpoint)):
        if named is not None and not any(_names(_plain_prefix(prefix), named) for prefix in prefixes):
            listed = ", ".join(prefixes) or "nothing"
            raise EndpointNotAllowed(
                f"{field}: {named!r} is not allowed in namespace {tenant.namespace!r}; allowed: {listed}. Ask the "
                f"operator of the driver for --allowed-dataset={tenant.namespace}={named.rstrip('/')}"
            )


def _names(prefix: str, named: str) -> bool:
    """As ``is_listed`` for what has a host; buckets and keys are compared as they are spelled."""
    if urlsplit(named).scheme in _DEFAULT_PORTS:
        return _covers(prefix, named)
    whole = f"{named.rstrip('/')}/"
    return whole.startswith(f"{prefix.rstrip('/')}/") and "/../" not in whole


def _plain_url(url: DatasetUrl) -> str:
    return _plain_prefix(str(url))


def _plain_prefix(text: str) -> str:
    """One spelling of the schemes that have two."""
    scheme, _, rest = text.partition("://")
    return f"{_SAME_SCHEME.get(scheme, scheme)}://{rest}"


_SAME_SCHEME = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}


def bounded_timeouts(
    timeouts: Mapping[str, float], given: Collection[str], policy: PolicySettings, tenant: Tenant
) -> dict[str, float]:
    """The time-outs of a volume, by their fields of VolumeParameters. Those that were not ``given`` are defaults, which
    the operator's bounds lower; one that was given is refused above its bound. Raises InvalidParameter."""
    if policy.trusts(tenant):
        return dict(timeouts)
    bounds = {"request_timeout_s": policy.inline_request_timeout_s, "deadline_s": policy.inline_deadline_s}
    bounded = {field: min(value, bounds[field]) for field, value in timeouts.items()}
    for field, (name, flag) in _TIMEOUTS.items():
        if field in given and bounded[field] < timeouts[field]:
            allowed = f"up to {duration_text(bounds[field])} for an inline volume"
            remedy = f"Ask the operator of the driver for {flag}, or for --trusted-namespace={tenant.namespace}"
            raise InvalidParameter(name, duration_text(timeouts[field]), allowed, remedy)
    if "request_timeout_s" not in given:
        bounded["request_timeout_s"] = min(bounded["request_timeout_s"], bounded["deadline_s"])
    return bounded


_TIMEOUTS = {
    "request_timeout_s": ("requestTimeout", "--inline-request-timeout"),
    "deadline_s": ("deadline", "--inline-deadline"),
}


def is_listed(requested: str, prefixes: Iterable[str]) -> bool:
    """Whether one of the operator's prefixes covers the URL. A prefix ends at a host or a complete path component:
    https://s3.example does not cover https://s3.example.org; https://*.s3.example covers every host below it."""
    return any(_covers(prefix, requested) for prefix in prefixes)


def requested_places(url: DatasetUrl, options: StoreOptions) -> list[str]:
    """The endpoints that the volume would connect to, except a provider's own service."""
    requested = [] if options.endpoint is None else [options.endpoint]
    if options.endpoint is not None and url.scheme == "s3" and options.addressing_style == "virtual":
        scheme, _, rest = options.endpoint.partition("://")
        requested.append(f"{scheme}://{url.bucket}.{rest}")  # the host that is dialled
    if url.scheme not in _OBJECT_STORES and url.scheme != "memory":
        requested.append(str(url).rstrip("/"))
    return requested


def _check_spelling(url: DatasetUrl, options: StoreOptions) -> None:
    """Refuses what two clients would read as different places. Raises InvalidParameter."""
    if options.endpoint is not None:
        parse_endpoint(options.endpoint)
    check_bucket(url)
    if url.scheme == "s3":
        s3_address(url.bucket, options, options.region or DEFAULT_REGION)


def _is_authority(text: str) -> bool:
    found = _AUTHORITY.match(text)
    return found is not None and int(found[1] or 0) <= 65_535


def _covers(allowed: str, requested: str) -> bool:
    allowed_url, requested_url = urlsplit(allowed), urlsplit(requested)
    same_scheme = allowed_url.scheme.lower() == requested_url.scheme.lower()
    same_port = same_scheme and _port(allowed_url) == _port(requested_url)
    allowed_host, host = allowed_url.hostname or "", requested_url.hostname or ""
    same_host = host == allowed_host or (allowed_host.startswith("*.") and host.endswith(allowed_host[1:]))
    prefix, path = allowed_url.path.rstrip("/"), requested_url.path.rstrip("/")
    clean = "/../" not in f"{path}/" and "%2e" not in path.lower()
    below = not prefix or (clean and (path == prefix or path.startswith(prefix + "/")))
    return same_port and same_host and below


def _port(url: SplitResult) -> int | None:
    return url.port or _DEFAULT_PORTS.get(url.scheme.lower())
