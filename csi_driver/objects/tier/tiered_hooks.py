"""What others do with a store that may be behind the tier. They do not import it: a daemon without a tier has neither
its modules nor the clients that these use."""

from __future__ import annotations

from typing import Protocol, cast

from csi_driver.objects.store import ObjectStore


class BehindTier(Protocol):
    """``Tiered``, as far as others use it."""

    is_behind_tier: bool
    """True."""
    dataset_bytes: int
    """Of the snapshot that is read; 0: not known yet."""

    @property
    def origin(self) -> ObjectStore:
        """The store, which alone knows who may read."""

    def distrust(self, key: str, if_match: str | None) -> None:
        """The bytes of this version were damaged: from now on this daemon takes them from the store."""


def past_the_tier(store: ObjectStore) -> ObjectStore:
    """The store for a request that its own permissions have to decide."""
    behind = _behind_tier(store)
    return store if behind is None else behind.origin


def note_dataset_bytes(store: ObjectStore, count_bytes: int) -> None:
    """The size of the snapshot that is read from the store, of which the tier may hold a share only."""
    behind = _behind_tier(store)
    if behind is not None:
        behind.dataset_bytes = count_bytes


def distrust_tier(store: ObjectStore, key: str, if_match: str | None) -> None:
    """After bytes of the object were received that do not match its checksum: the next ones come from the store, of
    several stores from another one."""
    behind = _behind_tier(store)
    if behind is not None:
        behind.distrust(key, if_match)
        store = behind.origin
    distrust = getattr(store, "distrust", None)
    if distrust is not None:
        distrust(key, if_match)


def _behind_tier(store: ObjectStore) -> BehindTier | None:
    return cast(BehindTier, store) if getattr(store, "is_behind_tier", False) else None
