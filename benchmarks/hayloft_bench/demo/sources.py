"""Where a training loop reads from: a directory, or the store by the libraries that training code uses today.

Runs in reader processes. A source is made before the fork and prepared after it, one per process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

BUFFER_BYTES = 1 << 20
"""1 MiB is the largest request the kernel sends to a FUSE server (256 pages), and what readers commonly use."""

Sink = Callable[[memoryview], object]


class Source(Protocol):
    """A root below which files are read by their path."""

    def prepare(self) -> None:
        """Makes clients; once per process, before the clock runs."""

    def read_whole(self, path: str, sink: Sink | None = None) -> int:
        """Reads a file from its first to its last byte and returns its size. ``sink`` is shown every piece."""

    def stream(self, path: str) -> BinaryIO:
        """A file that is read forwards."""

    def seekable(self, path: str) -> Any:
        """What pyarrow opens: a path, or a file that can seek."""


class DirectorySource:
    """A directory: plain local files, or a mount. ``open``, ``read``, ``close``, and nothing between."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def prepare(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def read_whole(self, path: str, sink: Sink | None = None) -> int:
        total, buffers = 0, [self._buffer]
        descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while count := os.readv(descriptor, buffers):
                total += count
                if sink is not None:
                    sink(self._buffer[:count])
        finally:
            os.close(descriptor)
        return total

    def stream(self, path: str) -> BinaryIO:
        return open(f"{self._root}/{path}", "rb", buffering=0)

    def seekable(self, path: str) -> Any:
        return f"{self._root}/{path}"


class _ObjectFile(io.RawIOBase):
    """A seekable file over ranged GETs, as one writes it around boto3 to read Parquet."""

    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self._client, self._bucket, self._key, self._position = client, bucket, key, 0
        self._size_bytes = int(client.head_object(Bucket=bucket, Key=key)["ContentLength"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size_bytes if size < 0 else min(self._position + size, self._size_bytes)
        if stop <= self._position:
            return b""
        span = f"bytes={self._position}-{stop - 1}"
        body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=span)["Body"].read()
        self._position += len(body)
        return body


class Boto3Source:
    """One GET per file with boto3; a stream is the body of the GET."""

    def __init__(self, endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, prefix: str) -> None:
        # Imported before the fork, so that the processes share it.
        import boto3
        import botocore.config

        self._session = boto3.session.Session(access_key_id, secret_access_key, region_name="us-east-1")
        self._config = botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2})
        self._endpoint, self._bucket, self._prefix = endpoint, bucket, prefix
        self._client: Any = None

    def prepare(self) -> None:
        self._client = self._session.client("s3", endpoint_url=self._endpoint, config=self._config)
        self._client.head_bucket(Bucket=self._bucket)

    def read_whole(self, path: str, sink: Sink | None = None) -> int:
        body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"].read()
        if sink is not None:
            sink(memoryview(body))
        return len(body)

    def stream(self, path: str) -> BinaryIO:
        body: BinaryIO = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"]
        return body

    def seekable(self, path: str) -> Any:
        return _ObjectFile(self._client, self._bucket, self._prefix + path)


class S3fsSource:
    """s3fs as it comes: ``cat_file`` for whole files, ``open`` with its readahead for the rest."""

    def __init__(self, endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, prefix: str) -> None:
        import s3fs

        self._module: Any = s3fs
        self._endpoint, self._key, self._secret = endpoint, access_key_id, secret_access_key
        self._root = f"{bucket}/{prefix}"
        self._bucket = bucket
        self._filesystem: Any = None

    def prepare(self) -> None:
        self._filesystem = self._module.S3FileSystem(
            key=self._key,
            secret=self._secret,
            endpoint_url=self._endpoint,
            client_kwargs={"region_name": "us-east-1"},
            config_kwargs={"s3": {"addressing_style": "path"}},
            skip_instance_cache=True,
        )
        self._filesystem.connect()

    def read_whole(self, path: str, sink: Sink | None = None) -> int:
        body: bytes = self._filesystem.cat_file(self._root + path)
        if sink is not None:
            sink(memoryview(body))
        return len(body)

    def stream(self, path: str) -> BinaryIO:
        file: BinaryIO = self._filesystem.open(self._root + path, "rb")
        return file

    def seekable(self, path: str) -> Any:
        return self._filesystem.open(self._root + path, "rb")


_KINDS: dict[str, Callable[..., Source]] = {"directory": DirectorySource, "boto3": Boto3Source, "s3fs": S3fsSource}


def make_source(specification: dict[str, str]) -> Source:
    """``{"kind": ..., the arguments of its class}``. Raises KeyError for an unknown kind."""
    arguments = dict(specification)
    return _KINDS[arguments.pop("kind")](**arguments)
