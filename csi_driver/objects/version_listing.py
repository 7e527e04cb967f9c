"""Listings of all versions that a bucket keeps, page by page."""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

from csi_driver.model.snapshot import VersionPage


class ListedVersions(NamedTuple):
    """A page, which may be empty, and the token of the next one; None after the last."""

    page: VersionPage
    next_token: str | None


class ListsVersions(Protocol):
    """A store that can list the versions of its objects."""

    @property
    def lists_versions(self) -> bool:
        """False for a wrapper around a store that cannot."""

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        """One request. ``token`` is that of an earlier page; None: the first page. Raises VersionsNotPinned for a
        service that does not know the request, and as ``ObjectStore.list``."""


def version_lister(store: object) -> ListsVersions | None:
    """The store if it lists versions."""
    return cast(ListsVersions, store) if getattr(store, "lists_versions", False) else None
