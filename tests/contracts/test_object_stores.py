"""The object store contract, run against every implementation and two servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import boto3
import fsspec
import pytest
from botocore.config import Config

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.mirrors.mirror_factory import MirrorPlace, mirrored_store
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from hayloft_lab.memory_store import MemoryStore
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.contracts.object_store import ODD_KEYS, ObjectStoreContract, Put
from tests.support.hostile_clouds import HostileAzure, HostileGoogle
from tests.support.hostile_s3 import HostileS3, ResetAfter
from tests.support.moto_s3 import moto_endpoint
from tests.support.seaweedfs import seaweed, seaweed_bucket
from tests.support.secrets_of_stores import AZURE_KEY_SECRET, AZURE_SAS_SECRET, google_secret

__all__ = ["moto_endpoint", "seaweed", "seaweed_bucket"]

MOTO_KEYS = {"access_key_id": "testing", "secret_access_key": "testing"}


@cache  # the model of the service, which takes 50 ms to read, is read for each client
def _client(endpoint: str, access_key_id: str, secret_access_key: str) -> boto3.session.Session:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


def _put_by(client: object, bucket: str) -> Put:
    def put(key: str, content: bytes) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=content)  # type: ignore[attr-defined]

    return put


class TestMemory(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def put(self, store: MemoryStore) -> Put:
        def put(key: str, content: bytes) -> None:
            store.put(key, content)

        return put


class TestFiles(ObjectStoreContract):
    @pytest.fixture
    def prefix(self, tmp_path: Path) -> str:
        return f"{tmp_path}/".lstrip("/")

    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return open_store(DatasetUrl.parse(f"file://{tmp_path}"), StoreOptions(), Credentials())

    @pytest.fixture
    def put(self) -> Put:
        def put(key: str, content: bytes) -> None:
            path = Path("/", key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)

        return put


class TestFsspecMemory(ObjectStoreContract):
    @pytest.fixture
    def bucket(self) -> str:
        return uuid.uuid4().hex

    @pytest.fixture
    def store(self, bucket: str) -> ObjectStore:
        return open_store(DatasetUrl.parse(f"memory://{bucket}/data"), StoreOptions(), Credentials())

    @pytest.fixture
    def put(self, bucket: str) -> Put:
        return lambda key, content: fsspec.filesystem("memory").pipe_file(f"/{bucket}/{key}", content)


class TestObstoreOnMoto(ObjectStoreContract):
    backend = "auto"
    # moto's routing does not support a line feed in a key.
    odd_keys = (*ODD_KEYS, "tab\tkey")

    @pytest.fixture
    def bucket(self, moto_endpoint: str) -> str:
        name = f"bucket-{uuid.uuid4().hex}"
        _client(moto_endpoint, "testing", "testing").create_bucket(Bucket=name)  # type: ignore[attr-defined]
        return name

    @pytest.fixture
    def store(self, moto_endpoint: str, bucket: str) -> ObjectStore:
        options = StoreOptions(endpoint=moto_endpoint, backend=self.backend, deadline_s=10)  # type: ignore[arg-type]
        return open_store(DatasetUrl.parse(f"s3://{bucket}/data"), options, Credentials(MOTO_KEYS))

    @pytest.fixture
    def put(self, moto_endpoint: str, bucket: str) -> Put:
        return _put_by(_client(moto_endpoint, "testing", "testing"), bucket)


class TestS3fsOnMoto(TestObstoreOnMoto):
    backend = "s3fs"


@pytest.mark.server
class TestObstoreOnSeaweedFS(ObjectStoreContract):
    @pytest.fixture
    def store(self, seaweed: SeaweedFsServer, seaweed_bucket: str) -> ObjectStore:
        options = StoreOptions(endpoint=seaweed.endpoint, deadline_s=10)
        keys = {"access_key_id": seaweed.access_key_id, "secret_access_key": seaweed.secret_access_key}
        return open_store(DatasetUrl.parse(f"s3://{seaweed_bucket}/data"), options, Credentials(keys))

    @pytest.fixture
    def put(self, seaweed: SeaweedFsServer, seaweed_bucket: str) -> Put:
        return _put_by(_client(seaweed.endpoint, seaweed.access_key_id, seaweed.secret_access_key), seaweed_bucket)


class TestObstoreOnScriptedServer(ObjectStoreContract):
    """The server that the fault tests use must itself be a good S3."""

    # It supports every key: it parses paths as URLs and lists them as S3 does.
    odd_keys: tuple[str, ...] = (*ODD_KEYS, "new\nline", "tab\tkey", "a//b", "/lead", "a/./b", "../x", "trail/")

    @pytest.fixture
    def server(self) -> Iterator[HostileS3]:
        with HostileS3(page_keys=7) as server:
            yield server

    @pytest.fixture
    def store(self, server: HostileS3) -> ObjectStore:
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5)
        return open_store(DatasetUrl.parse("s3://data/data"), options, Credentials(MOTO_KEYS))

    @pytest.fixture
    def put(self, server: HostileS3) -> Put:
        def put(key: str, content: bytes) -> None:
            server.put(key, content)

        return put


class TestMirrorsOnScriptedServers(ObjectStoreContract):
    """The dataset's own store breaks off bodies, and a mirror has the rest."""

    odd_keys: tuple[str, ...] = TestObstoreOnScriptedServer.odd_keys

    @pytest.fixture
    def servers(self) -> Iterator[tuple[HostileS3, HostileS3]]:
        with HostileS3(page_keys=7) as server, HostileS3(page_keys=7) as mirror:
            yield server, mirror

    @pytest.fixture
    def store(self, servers: tuple[HostileS3, HostileS3]) -> ObjectStore:
        server, mirror = servers
        server.fail_next(*[ResetAfter(10)] * 3)
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5)
        of_mirror = StoreOptions(endpoint=mirror.endpoint, deadline_s=5)
        url, credentials = DatasetUrl.parse("s3://data/data"), Credentials(MOTO_KEYS)
        place = MirrorPlace(DatasetUrl.parse("s3://data/copies/of/data"), of_mirror, lambda: credentials)
        return mirrored_store(url, options, open_store(url, options, credentials), [place])[0]

    @pytest.fixture
    def put(self, servers: tuple[HostileS3, HostileS3]) -> Put:
        server, mirror = servers

        def put(key: str, content: bytes) -> None:
            server.put(key, content)
            mirror.put(f"copies/of/{key}", content)

        return put


class TestGoogleOnScriptedServer(TestObstoreOnScriptedServer):
    odd_keys = (*TestObstoreOnScriptedServer.odd_keys, "\r", "\x01\x1f\x7f\x85\ufffe", "..", "_$folder$")

    @pytest.fixture
    def server(self) -> Iterator[HostileS3]:
        with HostileGoogle(page_keys=7) as server:
            yield server

    @pytest.fixture
    def store(self, server: HostileS3) -> ObjectStore:
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5)
        return open_store(DatasetUrl.parse("gs://data/data"), options, Credentials(google_secret()))


class TestAzureOnScriptedServer(TestObstoreOnScriptedServer):
    odd_keys = TestGoogleOnScriptedServer.odd_keys

    @pytest.fixture
    def server(self) -> Iterator[HostileS3]:
        with HostileAzure(page_keys=7) as server:
            yield server

    @pytest.fixture
    def store(self, server: HostileS3) -> ObjectStore:
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5)
        return open_store(DatasetUrl.parse("az://data/data"), options, Credentials(AZURE_KEY_SECRET))


class TestAzureWithSignatureOnScriptedServer(TestAzureOnScriptedServer):
    @pytest.fixture
    def store(self, server: HostileS3) -> ObjectStore:
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5)
        return open_store(DatasetUrl.parse("az://data/data"), options, Credentials(AZURE_SAS_SECRET))
