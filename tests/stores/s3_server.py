"""S3 servers: buckets and objects by boto3."""

from __future__ import annotations

import base64
import json
import time
import zlib
from functools import cached_property
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.stores.store_server import BUCKET, StoreCannot, StoreServer, Volume

REGION = "us-east-1"


class S3Server(StoreServer):
    """Path-style, with one pair of keys."""

    protocol = "S3"
    access_key_id = "CONFORMANCEKEYID0001"
    secret_access_key = "conformance/secret+access-key-000001"

    def _client(
        self, secret: str = "", key_id: str = "", region: str = REGION, signed: bool = True, attempts: int = 3
    ) -> Any:
        addressing: Any = {"addressing_style": "path"}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            verify=str(self.certificate.authority) if self.certificate else None,
            aws_access_key_id=key_id or self.access_key_id,
            aws_secret_access_key=secret or self.secret_access_key,
            region_name=region,
            config=Config(
                s3=addressing,
                max_pool_connections=16,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                # As clients without the newer default did: not all of these servers read an aws-chunked body.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **({} if signed else {"signature_version": UNSIGNED}),
            ),
        )

    @cached_property
    def client(self) -> Any:
        return self._client()

    def prepare(self) -> None:
        # Some answer before they can make buckets.
        for pause_s in (0.2, 0.5, 1, 2, 4, 0):
            try:
                self.client.create_bucket(Bucket=BUCKET)
            except ClientError:
                if not pause_s:
                    raise
                time.sleep(pause_s)
            else:
                return

    def put(self, key: str, data: bytes, *, encoding: str = "") -> None:
        more = {"ContentEncoding": encoding} if encoding else {}
        try:
            self.client.put_object(Bucket=BUCKET, Key=key, Body=data, **more)
        except (BotoCoreError, ClientError) as error:
            raise StoreCannot(f"put of {key!r}: {error}") from error
        if encoding and self.client.head_object(Bucket=BUCKET, Key=key).get("ContentEncoding") != encoding:
            raise StoreCannot("does not keep the Content-Encoding")

    def put_parts(self, key: str, parts: list[bytes]) -> None:
        """With a checksum of each part, as clients send it by default: the store has none of the whole object."""
        where = {"Bucket": BUCKET, "Key": key}
        crc = {"ChecksumAlgorithm": "CRC32"}
        upload = {**where, "UploadId": self.client.create_multipart_upload(**where, **crc)["UploadId"]}
        done = []
        for number, part in enumerate(parts, 1):
            answer = self.client.upload_part(**upload, **crc, PartNumber=number, Body=part)
            checksum = base64.b64encode(zlib.crc32(part).to_bytes(4, "big")).decode()  # not all servers answer it
            done.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum})
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def keys(self, prefix: str) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", ())}

    def volume(self, prefix: str, bucket: str = BUCKET, endpoint: str = "") -> Volume:
        attributes = {"url": f"s3://{bucket}/{prefix}", "endpoint": endpoint or self.endpoint, "region": REGION}
        secrets = {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}
        return Volume(attributes, secrets)

    def with_wrong_secret(self, volume: Volume) -> Volume:
        wrong = _other(self.secret_access_key)
        self._must_refuse(self._client(secret=wrong), "checks no signature")
        return volume.changed(secrets={**volume.secrets, "secret_access_key": wrong})

    def with_wrong_identity(self, volume: Volume) -> Volume:
        wrong = _other(self.access_key_id)
        self._must_refuse(self._client(key_id=wrong), "checks no key id")
        return volume.changed(secrets={**volume.secrets, "access_key_id": wrong})

    def without_credentials(self, volume: Volume) -> Volume:
        self._must_refuse(self._client(signed=False, attempts=1), "everybody may read")
        return volume.changed(secrets={}, anonymous="true")

    def with_wrong_region(self, volume: Volume) -> Volume:
        return volume.changed(region="eu-wrong-1")

    def anonymous(self, volume: Volume) -> Volume:
        resources = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
        read = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": resources}
        try:
            policy = json.dumps({"Version": "2012-10-17", "Statement": [read]})
            self.client.put_bucket_policy(Bucket=BUCKET, Policy=policy)
        except (BotoCoreError, ClientError):
            pass  # what counts is whether it then lets read
        try:
            self._client(signed=False, attempts=1).list_objects_v2(Bucket=BUCKET)
        except (BotoCoreError, ClientError) as error:
            raise StoreCannot("a bucket policy does not open a bucket to everybody") from error
        return volume.changed(secrets={}, anonymous="true")

    def _must_refuse(self, client: Any, otherwise: str) -> None:
        try:
            client.list_objects_v2(Bucket=BUCKET)
        except ClientError:
            return
        raise StoreCannot(otherwise)


def _other(text: str) -> str:
    """With another last character."""
    return text[:-1] + ("Y" if text.endswith("X") else "X")
