"""Volumes of one daemon, mounted by the checks and unmounted after each."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

from csi_driver.model.errors import HayloftError
from tests.stores.store_server import Volume
from tests.support.daemons import DaemonBench

_numbers = itertools.count()


class Volumes:
    """Its mounts belong to one check."""

    def __init__(self, bench: DaemonBench) -> None:
        self._bench = bench
        self._mounted: dict[Path, str] = {}

    def mount(self, volume: Volume, **attributes: str) -> Path:
        """Raises what the daemon's mount raises."""
        volume_id = f"volume-{next(_numbers)}"
        root = self._bench.mount(volume, volume_id, **attributes)
        self._mounted[root] = volume_id
        return root

    def unmount(self, root: Path) -> None:
        self._bench.unmount(root, self._mounted.pop(root))

    def close(self) -> None:
        for root in list(self._mounted):
            with suppress(HayloftError):
                self.unmount(root)

    def origin_bytes(self) -> int:
        """What the daemon has fetched from stores so far."""
        return self._bench.origin_bytes()
