"""What the answers of a service mean: the version of an object, its checksum, the code of an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from csi_driver.model.entity_tags import plain_etag
from csi_driver.objects.checksums import StoredChecksum


class ServiceAnswers(NamedTuple):
    """How one service writes its answers. Names of headers are in lower case."""

    version: Callable[[Mapping[str, str]], str | None]
    """The version of the object that the body is of, as ``ObjectInfo.etag`` has it. None: the answer names none."""
    checksum: Callable[[Mapping[str, str]], StoredChecksum]
    """What the headers say of the complete object's checksum."""
    error_code: Callable[[bytes], str | None]
    """The service's own code in the body of an error."""
    lacking_permission: Callable[[bytes], str | None] = lambda _: None
    """The permission that the body of an error says is missing."""


def etag_of(headers: Mapping[str, str]) -> str | None:
    """The version where it is the ETag."""
    return plain_etag(headers.get("etag"))
