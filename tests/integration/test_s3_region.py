"""The region of a bucket, asked of moto's S3."""

from __future__ import annotations

import boto3

from csi_driver.objects.s3.region import find_region
from tests.support.hostile_s3 import closed_port
from tests.support.moto_s3 import moto_endpoint

__all__ = ["moto_endpoint"]


def test_the_region_of_a_bucket_is_found_without_credentials(moto_endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=moto_endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="eu-central-1",
    )
    client.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    assert find_region("far-away", 5, moto_endpoint) == "eu-central-1"
    assert find_region("no-such-bucket", 5, moto_endpoint) is None
    assert find_region("far-away", 5, f"http://127.0.0.1:{closed_port()}") is None
