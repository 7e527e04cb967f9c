"""URLs of S3: regional endpoints, and buckets in path style or virtual-hosted style."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from csi_driver.model.dataset import StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.endpoints import aws_domain, is_host_label, parse_endpoint


@dataclass(frozen=True, slots=True)
class S3Address:
    """How one bucket is reached: requests go to ``base_url`` + "/" + key."""

    base_url: str
    region: str
    virtual_hosted: bool


def s3_endpoint(options: StoreOptions, region: str) -> str:
    """The given endpoint, else that of AWS in the region. Raises InvalidParameter."""
    if options.endpoint:
        return parse_endpoint(options.endpoint)
    if not is_host_label(region):
        raise InvalidParameter("region", region, "a region of AWS, such as eu-central-1, or name an endpoint")
    return f"https://s3.{region}.{aws_domain(region)}"


def s3_address(bucket: str, options: StoreOptions, region: str) -> S3Address:
    """Path style for custom endpoints, which seldom have a wildcard name, virtual-hosted style for AWS; a bucket with
    a dot has no valid certificate in virtual-hosted style, and one that is no host label (capitals, underscores) has no
    host. Raises InvalidParameter."""
    endpoint = s3_endpoint(options, region)
    by_default = options.addressing_style == "auto" and not options.endpoint and is_host_label(bucket)
    if options.addressing_style != "virtual" and not by_default:
        return S3Address(f"{endpoint}/{bucket}", region, virtual_hosted=False)
    if not all(map(is_host_label, bucket.split("."))):
        allowed = "path for this bucket: its name cannot be part of a host's name"
        raise InvalidParameter("addressingStyle", "virtual", allowed)
    parts = urlsplit(endpoint)
    if _is_ip_address(parts.hostname or ""):
        raise InvalidParameter("addressingStyle", "virtual", "path", f"{endpoint} is an address, not a name")
    return S3Address(f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}", region, virtual_hosted=True)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
