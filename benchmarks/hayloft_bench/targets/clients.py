"""Clients of the store in the reader's own process: no mount and no cache, so every epoch is a cold one."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import ClassVar

from hayloft_bench.results.model import Access, Phase
from hayloft_bench.targets.base import TargetBase, TargetKind


class ClientTarget(TargetBase):
    """A package that reads objects. The loaders call it (``loaders/data_sources.py``)."""

    kind: ClassVar[TargetKind] = "client"
    phases: ClassVar[frozenset[Phase]] = frozenset({"cold"})
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def unavailable(cls) -> str | None:
        missing = [name for name in (cls.name, *cls.needs) if importlib.util.find_spec(name) is None]
        return f"not installed: pip install {' '.join(missing)}" if missing else None

    @property
    def version(self) -> str:
        return metadata.version(self.name)

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        store, place = self.place.store, self.place
        return Access(
            self.name,
            endpoint=store.endpoint,
            bucket=place.bucket,
            prefix=place.prefix,
            access_key_id=store.access_key_id,
            secret_access_key=store.secret_access_key,
        )


class Boto3Target(ClientTarget):
    """One GET per file."""

    name: ClassVar[str] = "boto3"
    title: ClassVar[str] = "boto3"


class S3fsTarget(ClientTarget):
    """fsspec's view of S3."""

    name: ClassVar[str] = "s3fs"
    title: ClassVar[str] = "s3fs (fsspec)"


class ObstoreTarget(ClientTarget):
    """The Rust client that Hayloft itself uses."""

    name: ClassVar[str] = "obstore"
    title: ClassVar[str] = "obstore"


class S3TorchConnectorTarget(ClientTarget):
    """AWS's connector for PyTorch."""

    name: ClassVar[str] = "s3torchconnector"
    title: ClassVar[str] = "s3torchconnector"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
