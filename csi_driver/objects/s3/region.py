"""The region of an S3 bucket."""

from __future__ import annotations

import dataclasses
from urllib.parse import quote

import urllib3

from csi_driver.model.dataset import DatasetUrl, StoreOptions
from csi_driver.objects.http.connection_pool import connection_pool
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S

DEFAULT_REGION = "us-east-1"


def bucket_region(bucket: str, options: StoreOptions) -> str:
    """The given region, else that of the bucket on AWS, else the default. Blocks for a request only on AWS."""
    if options.region:
        return options.region
    found = None if options.endpoint else find_region(bucket, min(CONNECT_TIMEOUT_S, options.request_timeout_s))
    return found or DEFAULT_REGION


def with_region(url: DatasetUrl, options: StoreOptions) -> StoreOptions:
    """The options with the region that ``open_s3`` would find, so that it is requested once. Blocks as
    ``bucket_region`` does."""
    return dataclasses.replace(options, region=bucket_region(url.bucket, options)) if url.scheme == "s3" else options


def find_region(bucket: str, timeout_s: float, endpoint: str = "https://s3.amazonaws.com") -> str | None:
    """Asks AWS, which answers without credentials. None: no answer. Blocks at most about ``timeout_s``."""
    url = f"{endpoint}/{quote(bucket, safe='')}"
    try:
        response = connection_pool(url, timeout_s, None, 1).request("HEAD", url, redirect=False, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    return response.headers.get("x-amz-bucket-region")
