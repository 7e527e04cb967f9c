"""Lists a dataset into a manifest, and matches the files of a manifest with globs: the protocol.

The work itself is in ``dataset_listing.py``. Daemon and controller do it in a process of its own
(``wiring/listing_processes.py``), since store, keys and globs may be a tenant's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.volumes.parameters import VolumeParameters


@dataclass(frozen=True, slots=True)
class ListingRequest:
    """The dataset of a volume, and the tenant that it counts for."""

    parameters: VolumeParameters
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    tenant: Tenant = ADMINISTRATOR
    journal_path: Path | None = None
    """Where the pages of a long listing are kept for the next process that gets this request; None: nowhere."""


@dataclass(frozen=True, slots=True)
class ListingFacts:
    """Properties of the written snapshot."""

    snapshot_id: str
    total_bytes: int
    file_count: int
    remarks: tuple[tuple[str, str], ...] = ()
    """As of ``manifest_notes.remarks_of``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences of the remarks."""
        return tuple(sentence for _, sentence in self.remarks)


@dataclass(frozen=True, slots=True)
class SelectionRequest:
    """Globs for the files of a manifest, and the tenant that it counts for."""

    manifest_path: Path
    globs: tuple[str, ...]
    tenant: Tenant = ADMINISTRATOR


PinMode = Literal["auto", "required", "off"]
"""Whether the versions of a snapshot are pinned: where the store keeps them, or else it is an error, or not at all."""


@dataclass(frozen=True, slots=True)
class PinRequest:
    """The manifest of a volume, whose versions are to be pinned, and its dataset."""

    dataset: ListingRequest
    manifest_path: Path
    mode: PinMode = "auto"


@dataclass(frozen=True, slots=True)
class PinFacts:
    """The manifest of a snapshot."""

    snapshot_id: str
    pinned_count: int
    """Files that are pinned by a version of the store."""
    why: str = ""
    """Why the others are not."""


class DatasetLister(Protocol):
    """May be used from any thread."""

    def list_into(self, request: ListingRequest, target: Path) -> ListingFacts:
        """Lists the dataset and writes its manifest. Blocks, perhaps for minutes.

        Raises RequestError, StoreError, DatasetError, OSError (the disk of the target), BudgetExceeded (a limit of
        listings, which the message names), Interrupted (the caller is gone). After an error, files whose name contains
        that of the target may be left in its directory.
        """

    def pin_into(self, request: PinRequest, target: Path) -> PinFacts:
        """Writes the manifest of a snapshot (``version_pinning.py``). Blocks, perhaps for minutes. Raises
        ObjectChanged, VersionsNotPinned, ManifestInvalid, and as ``list_into``."""

    def select_into(self, request: SelectionRequest, target: Path) -> None:
        """Writes the rows of the matching files, as ``array("Q")`` does. Waits for any time until it may run. Raises
        InvalidParameter (a glob), ManifestInvalid, and as ``list_into``."""
