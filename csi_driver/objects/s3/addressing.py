"""URLs of S3: regional endpoints, and buckets in path style or virtual-hosted style."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from csi_driver.model.dataset import StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.endpoints import aws_domain, parse_endpoint


@dataclass(frozen=True, slots=True)
class S3Address:
    """How one bucket is reached: requests go to ``base_url`` + "/" + key."""

    base_url: str
    region: str
    virtual_hosted: bool


def s3_address(bucket: str, options: StoreOptions, region: str) -> S3Address:
    """Path style for custom endpoints, which seldom have a wildcard name, virtual-hosted style for AWS; a bucket with
    a dot has no valid certificate in virtual-hosted style. Raises InvalidParameter."""
    if options.endpoint:
        endpoint = parse_endpoint(options.endpoint)
        virtual = options.addressing_style == "virtual"
    else:
        endpoint = f"https://s3.{region}.{aws_domain(region)}"
        virtual = options.addressing_style == "virtual" or (options.addressing_style == "auto" and "." not in bucket)
    if not virtual:
        return S3Address(f"{endpoint}/{bucket}", region, virtual_hosted=False)
    parts = urlsplit(endpoint)
    if _is_ip_address(parts.hostname or ""):
        raise InvalidParameter("addressing_style", "virtual", "path", f"{endpoint} is an address, not a name")
    return S3Address(f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}", region, virtual_hosted=True)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
