"""Small named blobs with conditional writes: the storage of the registry of volumes and manifests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from csi_driver.model.errors import InvalidParameter

_NAME = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9._=-]{0,199}(/[A-Za-z0-9_=][A-Za-z0-9._=-]{0,199})*\Z")


class BlobStore(Protocol):
    """All methods block, may be called from any thread and process, and raise RegistryUnavailable.

    A *tag* identifies one content of one blob. Names are parts of letters, digits and ``._=-``, joined by slashes; a
    part does not begin with a dot or a dash. Another name raises InvalidParameter.
    """

    def check(self) -> None:
        """Raises InvalidParameter for a store that refuses conditional writes, or ignores the condition: two writers
        would overwrite each other's records."""

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Content and tag; None if there is no such blob."""

    def put_if_absent(self, name: str, content: bytes) -> str | None:
        """The tag of the new blob, or None if there is one already. Durable when it returns."""

    def put_if_match(self, name: str, content: bytes, tag: str) -> str | None:
        """The new tag, or None if the blob is gone or has another tag by now. Durable when it returns."""

    def put_file(self, name: str, source: Path) -> None:
        """Stores a file, and replaces an existing blob. For large content under a name that is its digest: two writers
        of one name write the same bytes."""

    def fetch_to_file(self, name: str, target: Path) -> bool:
        """Writes the blob to ``target``, which is complete and durable, or does not exist; False if there is no such
        blob."""

    def delete(self, name: str) -> None:
        """A missing blob is no error."""

    def list(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``, sorted."""


def check_name(name: str) -> str:
    """The name itself. Raises InvalidParameter for one that might lead out of the directory or prefix of the blobs."""
    if not _NAME.match(name):
        raise InvalidParameter("blob name", name, "letters, digits and ._=- in parts joined by slashes")
    return name
