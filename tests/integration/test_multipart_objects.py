"""Objects that were uploaded in parts, on a mount of moto, which sends the checksum of the parts without a type."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.moto_s3 import moto_endpoint
from tests.support.random_bytes import random_bytes

__all__ = ["moto_endpoint"]

pytestmark = pytest.mark.fuse

PART_BYTES = 5 << 20
CONTENT = random_bytes(5, 2 * PART_BYTES + 12_345)
ALGORITHMS = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path, keep=False)
    bench.start()
    yield bench
    bench.close()


def upload(client: Any, bucket: str, key: str, algorithm: str) -> None:
    begun = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm=algorithm)
    parts = []
    for number in range(3):
        body = CONTENT[number * PART_BYTES : (number + 1) * PART_BYTES]
        place = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"], "PartNumber": number + 1}
        sent = client.upload_part(Body=body, ChecksumAlgorithm=algorithm, **place)
        name = f"Checksum{algorithm}"
        parts.append({"PartNumber": number + 1, "ETag": sent["ETag"], **({name: sent[name]} if name in sent else {})})
    client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=begun["UploadId"], MultipartUpload={"Parts": parts}
    )


@pytest.mark.promise("S212")
def test_an_object_of_parts_is_read_once_and_stays_readable(bench: DaemonBench, moto_endpoint: str) -> None:
    client = boto3.client(
        "s3", endpoint_url=moto_endpoint, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    client.create_bucket(Bucket="multipart")
    for algorithm in ALGORITHMS:
        upload(client, "multipart", f"data/{algorithm}", algorithm)
    server = SimpleNamespace(endpoint=moto_endpoint, access_key_id="a", secret_access_key="b")
    mount = bench.mount(Bucket(server, "multipart", {}))  # type: ignore[arg-type]
    for _ in range(2):
        for algorithm in ALGORITHMS:
            assert (mount / algorithm).read_bytes() == CONTENT
        wait_until(lambda: sum(1 for _ in (bench.cache / "objects").rglob("*") if _.is_file()) == len(ALGORITHMS))
    assert bench.origin_bytes() == len(ALGORITHMS) * len(CONTENT)
