"""Buckets that keep the versions of their objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csi_driver.volumes.parameters import VolumeParameters
from hayloft_lab.buckets import client_of
from hayloft_lab.seaweedfs import SeaweedFsServer


@dataclass
class VersionedBucket:
    """A bucket of a server, with the objects of its dataset below ``data/``."""

    endpoint: str
    secrets: Mapping[str, str]
    name: str
    versioned: bool = True
    _client: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._client = client_of(self.endpoint, self.secrets["access_key_id"], self.secrets["secret_access_key"])
        self._client.create_bucket(Bucket=self.name)
        if self.versioned:
            self.keep_versions()

    def keep_versions(self) -> None:
        self._client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})

    @property
    def attributes(self) -> dict[str, str]:
        return {"url": f"s3://{self.name}/data", "endpoint": self.endpoint}

    @property
    def parameters(self) -> VolumeParameters:
        return VolumeParameters.parse(self.attributes)

    def put(self, path: str, data: bytes) -> str:
        """Returns the id of the version; "null" where the bucket keeps none."""
        return str(self._client.put_object(Bucket=self.name, Key=f"data/{path}", Body=data).get("VersionId", "null"))

    def delete(self, path: str, version_id: str | None = None) -> None:
        """The object; or one of its versions, for good."""
        more = {} if version_id is None else {"VersionId": version_id}
        self._client.delete_object(Bucket=self.name, Key=f"data/{path}", **more)

    def close(self) -> None:
        self._client.close()


def versioned_bucket(server: SeaweedFsServer, name: str, *, versioned: bool = True) -> VersionedBucket:
    secrets = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    return VersionedBucket(server.endpoint, secrets, name, versioned)
