"""The driver's own storage (registry, cache, state) is never a dataset: it holds what all tenants have mounted.

Decided from names alone, without a request. Where two names might lead to the same place they count as the same: of two
services that are no provider's own, an address may be an alias of the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from urllib.parse import urlsplit

from csi_driver.model.dataset import Credentials, DatasetUrl
from csi_driver.model.errors import EndpointNotAllowed, InvalidParameter
from csi_driver.objects.endpoints import parse_endpoint, storage_account
from csi_driver.settings import PolicySettings, RegistrySettings

_PROVIDERS = {
    "aws": (".amazonaws.com", ".amazonaws.com.cn"),
    "google": (".googleapis.com", ".cloud.google.com"),
    "azure": (".core.windows.net", ".core.chinacloudapi.cn", ".core.usgovcloudapi.net"),
}
_SCHEMES = {
    "s3": "aws",
    **dict.fromkeys(("gs", "gcs"), "google"),
    **dict.fromkeys(("az", "azure", "abfs", "abfss", "adl"), "azure"),
}
_WEB = ("http", "https")


def check_not_own(
    url: DatasetUrl, endpoint: str | None, credentials: Credentials, policy: PolicySettings, field: str = "url"
) -> None:
    """``field``: the parameter that names the place. Raises EndpointNotAllowed for a place that holds the driver's own
    storage, is it, or lies in it."""
    if policy.registry is not None and _holds_registry(url, endpoint, credentials, policy.registry):
        raise EndpointNotAllowed(
            f"{field}: {str(url)!r} overlaps the registry of this driver, which no volume may show; choose another "
            "prefix, or ask the operator to give the registry a bucket or directory of its own (--registry)"
        )
    if url.scheme == "file" and any(_overlap("/" + url.prefix, path) for path in policy.own_directories):
        raise EndpointNotAllowed(
            f"{field}: {str(url)!r} overlaps a directory of this driver (its cache or state), which no volume may "
            "show; choose another directory"
        )


def _holds_registry(
    url: DatasetUrl, endpoint: str | None, credentials: Credentials, registry: RegistrySettings
) -> bool:
    location = registry.location
    if "://" not in location:
        return url.scheme == "file" and _overlap("/" + url.prefix, Path(location))
    registry_url = DatasetUrl.parse(location)
    if registry_url.scheme == "file" or url.scheme == "file":
        return registry_url.scheme == url.scheme and _overlap("/" + url.prefix, Path("/" + registry_url.prefix))
    shown, own = _place(url, endpoint, credentials), _place(registry_url, registry.endpoint, Credentials())
    return shown is not None and own is not None and shown.may_reach(own)


# -- directories ------------------------------------------------------------------------------------------------------


def _overlap(shown: str, own: Path) -> bool:
    """Whether one contains the other. By path, which also holds for directories that do not exist yet, and by inode,
    which a bind mount does not change."""
    paths = os.path.realpath(shown), os.path.realpath(own)
    if os.path.commonpath(paths) in paths:
        return True
    shown_chain, own_chain = _inodes(paths[0]), _inodes(paths[1])
    return bool(own_chain and shown_chain) and (own_chain[-1] in shown_chain or shown_chain[-1] in own_chain)


def _inodes(path: str) -> list[tuple[int, int]]:
    """Device and inode of all directories from the root to the path; empty if it does not exist."""
    found = []
    for part in accumulate(Path(path).parts, os.path.join):
        try:
            status = os.stat(part)
        except OSError:
            return []
        found.append((status.st_dev, status.st_ino))
    return found


# -- buckets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the requests for a prefix of a bucket go."""

    service: str
    """A provider, or empty: another one, which any name or address may lead to."""
    host: str
    """In lower case; empty: the provider's own."""
    parts: tuple[str, ...]
    """Path of the endpoint, bucket, prefix."""
    latest_bucket: int
    """The bucket is one of ``parts``, this one or an earlier one: a path of the endpoint may begin with a bucket."""
    web: bool = False
    account: str = ""

    def may_reach(self, own: _Place) -> bool:
        """Whether the requests may get what lies below ``own``, or what it lies below."""
        if self.service != own.service or (self.web and own.host and self.host != own.host):
            return False
        if self.account and own.account and self.account != own.account:
            return False
        if not self.parts and not self.service:  # the root of a web server: all of its buckets
            return True
        bucket, prefix = own.parts[own.latest_bucket].lower(), own.parts[own.latest_bucket + 1 :]
        starts = range(self.latest_bucket + 1)
        rests = [self.parts[at + 1 :] for at in starts if self.parts[at : at + 1] and self.parts[at].lower() == bucket]
        if self.host == bucket or self.host.startswith(f"{bucket}."):  # the bucket's own host
            rests += [self.parts[at:] for at in starts]
        return any(rest[: len(prefix)] == prefix[: len(rest)] for rest in rests)


def _place(url: DatasetUrl, endpoint: str | None, credentials: Credentials) -> _Place | None:
    """None for a scheme of other services."""
    web = url.scheme in _WEB
    if not web and url.scheme not in _SCHEMES:
        return None
    base = f"{url.scheme}://{url.bucket}" if web else endpoint
    below = url.prefix if web else f"{url.bucket}/{url.prefix}"
    if base is None:
        service = _SCHEMES[url.scheme]
        account = storage_account(credentials) if service == "azure" else ""
        return _Place(service, "", _parts(below), 0, account=account or "")
    try:
        base_parts = urlsplit(parse_endpoint(base))
    except InvalidParameter:
        return None  # no store opens it either
    host = (base_parts.hostname or "").rstrip(".")
    service = next((name for name, ends in _PROVIDERS.items() if f".{host}".endswith(ends)), "")
    path = _parts(base_parts.path)
    return _Place(service, host, _parts(f"{base_parts.path}/{below}"), len(path), web)


def _parts(path: str) -> tuple[str, ...]:
    """Without empty parts and dots: some services do not distinguish such paths."""
    found: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return tuple(found)
