"""What a mount tells the mirrors of its volume: the sizes of its objects, and some to look up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from csi_driver.catalog.tree import FIRST_FILE_NODE, Tree
from csi_driver.model.dataset import DatasetUrl

if TYPE_CHECKING:
    from csi_driver.objects.mirrors.mirrored_store import Mirrored

SAMPLES = 4
"""Objects that are looked up in each mirror when a volume is mounted: enough to notice one that is away, or of another
dataset."""


def begin_mirrors(mirrors: Mirrored, tree: Tree, url: DatasetUrl, volume_id: str) -> None:
    """Has the mirrors know the snapshot, and looks up some of its objects in a thread of its own, so that a mirror that
    cannot be read is part of the volume's condition before it is needed."""
    mirrors.know_volume(volume_id, _size_of(tree, url))
    nodes = [FIRST_FILE_NODE + tree.file_count * part // SAMPLES for part in range(min(SAMPLES, tree.file_count))]
    samples = [(file.key, file.etag) for file in map(tree.file, nodes)]
    threading.Thread(target=mirrors.examine, args=(samples,), name="mirror-examination", daemon=True).start()


def _size_of(tree: Tree, url: DatasetUrl) -> Callable[[str], int | None]:
    """Of objects that are shown under their own keys: nearly all (docs/keys.md)."""

    def size_of(key: str) -> int | None:
        path = str(key)[len(url.prefix) :].encode("utf-8", "surrogateescape")
        node = tree.resolve(path)
        if node is None or tree.is_directory(node):
            return None
        file = tree.file(node)
        return file.size_bytes if file.key == key else None

    return size_of
