"""Makes buckets, and clients that write to them: for benchmarks and tests. The driver itself never writes to a
dataset."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from csi_driver.model.errors import StoreUnavailable

_CONFIG = Config(
    s3={"addressing_style": "path"},
    connect_timeout=5,
    read_timeout=10,
    # A server that has just started answers 500 for a moment; botocore retries these.
    retries={"max_attempts": 8, "mode": "standard"},
)


def client_of(endpoint: str, access_key_id: str, secret_access_key: str) -> Any:
    """A boto3 client of an S3-compatible endpoint; the caller closes it. Safe for threads."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        region_name="us-east-1",
        config=_CONFIG,
    )


def create_bucket(endpoint: str, access_key_id: str, secret_access_key: str, name: str) -> None:
    """Makes a bucket at an S3-compatible endpoint; a bucket that the caller owns already is success.

    Blocks up to about a minute. Raises StoreUnavailable.
    """
    client = client_of(endpoint, access_key_id, secret_access_key)
    try:
        client.create_bucket(Bucket=name)
    except client.exceptions.BucketAlreadyOwnedByYou:
        return
    except (BotoCoreError, ClientError) as error:
        raise StoreUnavailable(f"bucket {name!r} cannot be made at {endpoint}: {type(error).__name__}") from error
    finally:
        client.close()
