"""A lister in the process of the test, for stores that exist there only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from csi_driver.settings import ListingSettings
from csi_driver.volumes.dataset_lister import ListingFacts, ListingRequest, PinFacts, PinRequest, SelectionRequest
from csi_driver.volumes.dataset_listing import OpenStore, list_dataset, pin_dataset, select_files


@dataclass(frozen=True)
class LocalLister:
    open_store: OpenStore
    limits: ListingSettings = field(default_factory=ListingSettings)

    def list_into(self, request: ListingRequest, target: Path) -> ListingFacts:
        return list_dataset(self.open_store, request, target, self.limits)

    def pin_into(self, request: PinRequest, target: Path) -> PinFacts:
        return pin_dataset(self.open_store, request, target)

    def select_into(self, request: SelectionRequest, target: Path) -> None:
        select_files(request, target)
