"""Blobs as objects below a prefix of a bucket, written with conditional puts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore

from csi_driver.model.errors import HayloftError, InvalidParameter, ObjectNotFound, RegistryUnavailable
from csi_driver.objects.blobs.blob_store import check_name
from csi_driver.objects.error_mapping import from_obstore, obstore_status
from csi_driver.objects.retrying import RetryPolicy
from csi_driver.objects.store_location import StoreLocation

if TYPE_CHECKING:
    from obstore import PutMode, PutResult, UpdateVersion
    from obstore.store import ObjectStore as Obstore

T = TypeVar("T")

PART_BYTES = 16 << 20
"""Parts of a large upload: 10 000 of them, the most S3 takes, make 160 GB."""
PIECE_BYTES = 4 << 20
_CHECKS = "volumes/check-"
"""Where the records are, so that no further permission is needed; no name of a record begins so."""
_NOT_IMPLEMENTED = 501


class ObjectBlobs:
    """``store`` is S3, GCS or Azure with conditional puts; for tests also obstore's memory store."""

    def __init__(self, store: Obstore, location: StoreLocation, prefix: str, policy: RetryPolicy) -> None:
        """``prefix`` is empty or ends in a slash."""
        self._store, self._location, self._prefix, self._policy = store, location, prefix, policy
        self._conditions_hold = False
        """Whether ``check`` has found so; two threads may both ask."""

    def check(self) -> None:
        """Five small requests, once. Before the first write at the latest."""
        if self._conditions_hold:
            return
        name = f"{_CHECKS}{secrets.token_hex(8)}"
        first = self._put(name, b"1", "create")
        try:
            if first is None or self._put(name, b"2", "create") is not None:
                raise self._unconditional("it overwrites an object although If-None-Match forbids it")
            if self._replace(name, b"3", first) is None or self._replace(name, b"4", first) is not None:
                raise self._unconditional("it replaces an object of another ETag although If-Match forbids it")
        finally:
            with contextlib.suppress(RegistryUnavailable):
                self.delete(name)
        self._conditions_hold = True

    def _unconditional(self, why: str) -> InvalidParameter:
        return InvalidParameter(
            "registry",
            self._location.name(None),
            "a store with conditional writes",
            f"The store has none: {why}. Use another store, or a directory that all nodes share",
        )

    def get(self, name: str) -> tuple[bytes, str] | None:
        def attempt() -> tuple[bytes, str]:
            found = obstore.get(self._store, self._key(name))
            return bytes(found.bytes()), _tag(found.meta["e_tag"], found.meta["version"])

        return self._unless_missing(name, attempt)

    def put_if_absent(self, name: str, content: bytes) -> str | None:
        self.check()
        return self._put(name, content, "create")

    def put_if_match(self, name: str, content: bytes, tag: str) -> str | None:
        self.check()
        return self._replace(name, content, tag)

    def _replace(self, name: str, content: bytes, tag: str) -> str | None:
        e_tag, version = json.loads(tag)
        condition: UpdateVersion = {} if e_tag is None else {"e_tag": e_tag}
        if version is not None:
            condition["version"] = version
        return self._put(name, content, condition)

    def put_file(self, name: str, source: Path) -> None:
        try:
            self._call(name, lambda: obstore.put(self._store, self._key(name), source, chunk_size=PART_BYTES))
        except FileNotFoundError as error:
            raise RegistryUnavailable(f"{str(source)!r} cannot be read: {os.strerror(error.errno or 0)}") from error

    def fetch_to_file(self, name: str, target: Path) -> bool:
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            if self._unless_missing(name, lambda: self._download(name, draft)) is None:
                return False
            draft.replace(target)
        except OSError as error:
            raise RegistryUnavailable(f"{str(target)!r} cannot be written: {os.strerror(error.errno or 0)}") from error
        finally:
            draft.unlink(missing_ok=True)
        return True

    def delete(self, name: str) -> None:
        self._unless_missing(name, lambda: obstore.delete(self._store, self._key(name)))

    def list(self, prefix: str) -> list[str]:
        # obstore lists by complete path segments; the rest of the prefix is compared here.
        directory = f"{self._prefix}{prefix[: prefix.rfind('/') + 1]}".strip("/")

        def attempt() -> list[str]:
            pages = obstore.list(self._store, directory or None, chunk_size=1000)
            return [meta["path"].removeprefix(self._prefix) for page in pages for meta in page]

        return sorted(name for name in self._call(None, attempt) if name.startswith(prefix))

    def _put(self, name: str, content: bytes, mode: PutMode) -> str | None:
        tries = 0

        def attempt() -> PutResult | None:
            nonlocal tries
            tries += 1
            try:
                # One request: not every store checks the condition for a multipart upload.
                return obstore.put(self._store, self._key(name), content, mode=mode, use_multipart=False)
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError, FileNotFoundError):
                return None
            except (obstore.exceptions.BaseError, NotImplementedError) as error:
                if isinstance(error, NotImplementedError) or obstore_status(error) == _NOT_IMPLEMENTED:
                    raise self._unconditional("it answers that they are not implemented") from None
                raise

        done = self._call(name, attempt)
        if done is not None:
            return _tag(done["e_tag"], done["version"])
        if tries > 1:
            # The response to an earlier try may have been lost: then the blob in the way is the one that it wrote.
            known = self.get(name)
            if known is not None and known[0] == content:
                return known[1]
        return None

    def _download(self, name: str, draft: Path) -> bool:
        found = obstore.get(self._store, self._key(name))
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for piece in found.stream(PIECE_BYTES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return True

    def _unless_missing(self, name: str, attempt: Callable[[], T]) -> T | None:
        try:
            return self._call(name, attempt)
        except RegistryUnavailable as error:
            if isinstance(error.__cause__, ObjectNotFound):
                return None
            raise

    def _call(self, name: str | None, attempt: Callable[[], T]) -> T:
        key = None if name is None else self._key(name)

        def mapped() -> T:
            try:
                return attempt()
            except (obstore.exceptions.BaseError, FileNotFoundError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and error.errno is not None:
                    raise  # of a local file; that of obstore has no errno
                raise from_obstore(error, self._location, key) from None

        try:
            return self._policy.call(mapped)
        except InvalidParameter:
            raise
        except HayloftError as error:
            raise RegistryUnavailable(f"the registry is unavailable: {error}") from error

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)


def _tag(e_tag: str | None, version: str | None) -> str:
    """Both, because S3 and Azure compare the ETag and GCS the version."""
    return json.dumps([e_tag, version])
