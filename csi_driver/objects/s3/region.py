"""The region of an S3 bucket."""

from __future__ import annotations

import dataclasses
import os
import re
from urllib.parse import quote, urlsplit

from csi_driver.model.dataset import DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.endpoints import aws_domain, is_host_label
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S

DEFAULT_REGION = "us-east-1"
_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_OF_HOST = re.compile(r"(?:^|\.)s3[.-](?:fips[.-])?(?:dualstack\.)?([a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2})(?:\.|$)")
_AWS = (".amazonaws.com", ".amazonaws.com.cn")


def bucket_region(bucket: str, options: StoreOptions) -> str:
    """The given region; of a bucket on AWS its own, or where AWS gives no answer, as in a network without a way to it,
    that of the node; else the default. Blocks for a request only on AWS. Raises InvalidParameter."""
    if options.region:
        return options.region
    if options.endpoint:
        return _region_of(options.endpoint) or DEFAULT_REGION
    node = node_region()
    # The service of a region answers for buckets of all regions, and it is reached where a network has an endpoint for
    # that region alone.
    service = f"https://s3.{node}.{aws_domain(node)}" if node else "https://s3.amazonaws.com"
    return find_region(bucket, min(CONNECT_TIMEOUT_S, options.request_timeout_s), service) or node or DEFAULT_REGION


def with_region(url: DatasetUrl, options: StoreOptions) -> StoreOptions:
    """The options with the region that ``open_s3`` would find, so that it is requested once. Blocks and raises as
    ``bucket_region`` does."""
    return dataclasses.replace(options, region=bucket_region(url.bucket, options)) if url.scheme == "s3" else options


def find_region(bucket: str, timeout_s: float, endpoint: str = "https://s3.amazonaws.com") -> str | None:
    """Asks AWS, which answers without credentials. None: no answer. Blocks at most about ``timeout_s``."""
    # Imported here: the processes that check parameters only need this module for the name of the default.
    import urllib3.exceptions

    from csi_driver.objects.http.connection_pool import connection_pool

    url = f"{endpoint}/{quote(bucket, safe='')}"
    try:
        response = connection_pool(url, timeout_s, None, 1).request("HEAD", url, redirect=False, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    found = response.headers.get("x-amz-bucket-region", "")
    return found if is_host_label(found) else None


def node_region() -> str | None:
    """The region that the environment names for the node's own use of AWS. Raises InvalidParameter."""
    for name in _VARIABLES:  # part of the ambient identity, not a setting
        if value := os.environ.get(name, "").strip():
            if not is_host_label(value):
                raise InvalidParameter(name, value, "a region of AWS, such as eu-central-1")
            return value
    return None


def _region_of(endpoint: str) -> str | None:
    """Of an endpoint of AWS: the one in its name (``s3.eu-west-1.amazonaws.com``, ``vpce-1.s3.eu-west-1.vpce...``),
    else the node's. None for stores of others, whose regions have nothing to do with the node's."""
    host = urlsplit(endpoint).hostname or ""
    if not host.endswith(_AWS):
        return None
    found = _OF_HOST.search(host)
    return found[1] if found else node_region()
