"""The dataset as a loader reaches it: a directory, or a store through one of the client libraries.

A source is made before the clock starts; ``open`` is called after the last fork, in the process that reads. Every read
returns all bytes or raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

Buffer = bytes | bytearray | memoryview


class Source(Protocol):
    """Files by their path below the dataset's root."""

    def open(self) -> None:
        """Makes clients; once per process."""

    def read(self, path: str) -> Buffer:
        """A complete file."""

    def read_range(self, path: str, start: int, stop: int) -> Buffer:
        """The bytes ``start`` to ``stop``, exclusive."""

    def stream(self, path: str) -> BinaryIO:
        """A file that is read forwards."""


class ListingSource(Protocol):
    """A source that can list a folder."""

    def open(self) -> None:
        """Makes clients; once per process."""

    def pages(self, folder: str) -> Iterator[list[tuple[str, int]]]:
        """(path, size in bytes) of everything below the folder; one page per answer of the store."""


class DirectorySource:
    """Plain local files or a mount, read as Python code reads them: ``open`` and ``read``."""

    def __init__(self, root: str) -> None:
        self._root = root

    def open(self) -> None:
        """A directory needs no client."""

    def read(self, path: str) -> Buffer:
        with open(f"{self._root}/{path}", "rb") as file:
            return file.read()

    def read_range(self, path: str, start: int, stop: int) -> Buffer:
        descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)

    def stream(self, path: str) -> BinaryIO:
        return open(f"{self._root}/{path}", "rb")


class Boto3Source:
    """One GET per file or range; the stream is the body of a GET."""

    def __init__(self, endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, prefix: str) -> None:
        # Imported before the fork, so that the processes share the pages of the modules.
        import boto3
        import botocore.config

        self._session = boto3.session.Session(access_key_id, secret_access_key, region_name="us-east-1")
        self._config = botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2})
        self._endpoint, self._bucket, self._prefix = endpoint, bucket, prefix
        self._client: Any = None

    def open(self) -> None:
        self._client = self._session.client("s3", endpoint_url=self._endpoint, config=self._config)
        self._client.head_bucket(Bucket=self._bucket)

    def read(self, path: str) -> Buffer:
        body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"].read()
        return body

    def read_range(self, path: str, start: int, stop: int) -> Buffer:
        span = f"bytes={start}-{stop - 1}"
        answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path, Range=span)
        body: bytes = answer["Body"].read()
        return body

    def stream(self, path: str) -> BinaryIO:
        body: BinaryIO = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"]
        return body

    def pages(self, folder: str) -> Iterator[list[tuple[str, int]]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{folder}/"
        )
        for page in pages:
            yield [(entry["Key"][len(self._prefix) :], entry["Size"]) for entry in page.get("Contents", ())]


class S3fsSource:
    """``cat_file`` for files and ranges, ``open`` for streams, ``find`` for listings: one page of any length."""

    def __init__(self, endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, prefix: str) -> None:
        import s3fs

        self._module: Any = s3fs
        self._endpoint, self._key, self._secret = endpoint, access_key_id, secret_access_key
        self._root = f"{bucket}/{prefix}"
        self._filesystem: Any = None

    def open(self) -> None:
        self._filesystem = self._module.S3FileSystem(
            key=self._key,
            secret=self._secret,
            endpoint_url=self._endpoint,
            client_kwargs={"region_name": "us-east-1"},
            config_kwargs={"s3": {"addressing_style": "path"}},
            skip_instance_cache=True,
        )
        self._filesystem.connect()

    def read(self, path: str) -> Buffer:
        body: bytes = self._filesystem.cat_file(self._root + path)
        return body

    def read_range(self, path: str, start: int, stop: int) -> Buffer:
        body: bytes = self._filesystem.cat_file(self._root + path, start=start, end=stop)
        return body

    def stream(self, path: str) -> BinaryIO:
        file: BinaryIO = self._filesystem.open(self._root + path, "rb")
        return file

    def pages(self, folder: str) -> Iterator[list[tuple[str, int]]]:
        self._filesystem.invalidate_cache()  # else the listing of the previous epoch would be reused
        found = self._filesystem.find(self._root + folder, detail=True)
        yield [(path[len(self._root) :], entry["size"]) for path, entry in found.items()]

    def filesystem(self) -> Any:
        """For pyarrow."""
        return self._filesystem


class _BodyStream:
    """``read`` over the chunks of a body, for tarfile."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self._chunks, self._left = iter(chunks), memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes] = []
        while size != 0:
            if not self._left:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._left = memoryview(chunk)
            part = self._left if size < 0 else self._left[:size]
            self._left = self._left[len(part) :]
            parts.append(bytes(part))
            size = size - len(part) if size > 0 else size
        return b"".join(parts)

    def close(self) -> None:
        self._chunks = iter(())


class ObstoreSource:
    """The store client in Rust that Hayloft itself uses, here without Hayloft."""

    def __init__(self, endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, prefix: str) -> None:
        import obstore.store

        self._module: Any = obstore.store
        self._settings: dict[str, Any] = {
            "endpoint": endpoint,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "region": "us-east-1",
            "client_options": {"allow_http": True},
        }
        self._bucket, self._prefix = bucket, prefix
        self._store: Any = None

    def open(self) -> None:
        self._store = self._module.S3Store(self._bucket, prefix=self._prefix.rstrip("/"), **self._settings)

    def read(self, path: str) -> Buffer:
        return memoryview(self._store.get(path).bytes())

    def read_range(self, path: str, start: int, stop: int) -> Buffer:
        return memoryview(self._store.get_range(path, start=start, end=stop))

    def stream(self, path: str) -> BinaryIO:
        body: Any = _BodyStream(self._store.get(path).stream(min_chunk_size=1 << 20))
        return body  # type: ignore[no-any-return]

    def pages(self, folder: str) -> Iterator[list[tuple[str, int]]]:
        for page in self._store.list(folder, chunk_size=1000):
            yield [(entry["path"], entry["size"]) for entry in page]

    def filesystem(self) -> Any:
        """For pyarrow."""
        from obstore.fsspec import FsspecStore

        settings: dict[str, Any] = {**self._settings, "skip_instance_cache": True}
        return FsspecStore("s3", **settings)


class S3TorchConnectorSource:
    """AWS's connector for PyTorch, through its map-style dataset over all ``paths``: one client per process, one reader
    per object. It takes credentials from the environment of its process."""

    def __init__(
        self, paths: Sequence[str], endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, prefix: str
    ) -> None:
        import s3torchconnector

        self._module: Any = s3torchconnector
        self._keys = {"AWS_ACCESS_KEY_ID": access_key_id, "AWS_SECRET_ACCESS_KEY": secret_access_key}
        self._endpoint, self._root = endpoint, f"s3://{bucket}/{prefix}"
        self._numbers = {path: number for number, path in enumerate(paths)}
        self._objects: Any = None
        self._ranged_objects: Any = None

    def open(self) -> None:
        os.environ.update(self._keys)
        self._objects = self._dataset()
        by_range = self._module.S3ReaderConstructor.range_based(buffer_size=0)
        self._ranged_objects = self._dataset(reader_constructor=by_range)

    def _dataset(self, **settings: Any) -> Any:
        return self._module.S3MapDataset.from_objects(
            [self._root + path for path in self._numbers],
            region="us-east-1",
            endpoint=self._endpoint,
            s3client_config=self._module.S3ClientConfig(force_path_style=True),
            **settings,
        )

    def read(self, path: str) -> Buffer:
        body: bytes = self._objects[self._numbers[path]].read()
        return body

    def read_range(self, path: str, start: int, stop: int) -> Buffer:
        reader = self._ranged_objects[self._numbers[path]]
        reader.seek(start)
        body: bytes = reader.read(stop - start)
        return body

    def stream(self, path: str) -> BinaryIO:
        reader: BinaryIO = self._objects[self._numbers[path]]
        return reader


_CLIENTS: dict[str, Any] = {
    "boto3": Boto3Source,
    "s3fs": S3fsSource,
    "obstore": ObstoreSource,
}


def make_source(access: dict[str, str], paths: Sequence[str] = ()) -> Any:
    """From the fields of ``model.Access``. ``paths`` are those that will be read: s3torchconnector needs them.
    Raises KeyError for an unknown kind, ImportError for a missing library."""
    if access["kind"] == "directory":
        return DirectorySource(access["root"])
    names = ("endpoint", "access_key_id", "secret_access_key", "bucket", "prefix")
    settings = {name: access[name] for name in names}
    if access["kind"] == "s3torchconnector":
        return S3TorchConnectorSource(paths, **settings)
    return _CLIENTS[access["kind"]](**settings)


def key_root(access: dict[str, str]) -> str:
    """The prefix of a dataset's paths in the client's file system: bucket and prefix, or the directory."""
    if access["kind"] == "directory":
        return access["root"].rstrip("/") + "/"
    return f"{access['bucket']}/{access['prefix']}"
