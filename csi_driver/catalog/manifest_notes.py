"""What a user has to know of a snapshot before reading it: sentences for logs, for ``inspect`` and for conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from csi_driver.catalog.tree import FIRST_FILE_NODE
from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import HayloftError
from csi_driver.model.snapshot import TIME_UNKNOWN_NS, ObjectInfo
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import ObjectStore

if TYPE_CHECKING:
    from csi_driver.catalog.manifest import Manifest

IMPORTED = "ObjectsImported"
"""The reason of the one sentence that tells no fault."""

_MOST_ROWS = 10_000
"""How far an example is looked for."""

_BY_TIME = (
    "are told apart by size and modification time alone: a change within the same second and of the same size is not "
    "noticed"
)


def notes_of(manifest: Manifest, store: ObjectStore | None = None) -> list[str]:
    """One sentence for each thing; mostly none. With a ``store``, one request to it where that makes a sentence
    exact."""
    return [note for _, note in _notes(manifest, store)]


def remarks_of(manifest: Manifest, store: ObjectStore | None = None) -> list[tuple[str, str]]:
    """``notes_of`` with a reason in CamelCase before each, and what is to be said of keys that are no paths."""
    report, found = manifest.key_report(), list(_notes(manifest, store))
    if report.renamed_total:
        found.append(("KeysRenamed", f"{report.renamed_total} objects are shown under other names, {_WHY}"))
    if report.left_out_total:
        found.append(("KeysLeftOut", f"{report.left_out_total} objects are not shown, {_WHY}"))
    return found


_WHY = "since their keys are no paths; docs/keys.md has the rules, and `hayloft inspect URL` lists the keys"


def _notes(manifest: Manifest, store: ObjectStore | None) -> Iterator[tuple[str, str]]:
    imported = manifest.imported
    if imported is not None:
        yield (
            IMPORTED,
            f"the list of objects is that of {imported['url']} ({imported['format']}), of {imported['date']}: what was "
            "written since then is not shown, and what was overwritten or deleted since then cannot be read",
        )
    if manifest.archived_count:
        yield (
            "ObjectsArchived",
            f"{manifest.archived_count} objects are archived in the store, and reads of them fail until they are "
            "restored; restore or exclude them",
        )
    pinning = manifest.pinning
    if pinning is not None and pinning["why"]:
        yield (
            "ObjectsNotPinned",
            f"{manifest.file_count - pinning['pinned']} objects of this snapshot are not pinned by a version: "
            f"{pinning['why']}; when one is overwritten or deleted, reads of what is not cached of it fail",
        )
    if manifest.unversioned_count and (sentence := _unversioned(manifest, store)):
        yield "ObjectsUnversioned", sentence


def _unversioned(manifest: Manifest, store: ObjectStore | None) -> str:
    what = f"{manifest.unversioned_count} objects have no strong ETag in the listing"
    answer = None if store is None else _answer_for_one(manifest, store)
    if answer is None:
        return f"{what}; where the store sends none with their bytes either, they {_BY_TIME}"
    if is_strong(answer.etag):
        return ""  # each is pinned by the ETag of its first answer
    if answer.mtime_ns != TIME_UNKNOWN_NS:
        return f"{what}, nor in the store's other answers; they {_BY_TIME}"
    return f"{what}, and the store says no time either; a change to bytes of the same size is not noticed"


def _answer_for_one(manifest: Manifest, store: ObjectStore) -> ObjectInfo | None:
    tree = manifest.tree
    for node in range(FIRST_FILE_NODE, FIRST_FILE_NODE + min(tree.file_count, _MOST_ROWS)):
        row = tree.file(node)
        if not is_strong(row.etag):
            try:
                return without_retries(store).stat(row.key)
            except HayloftError:
                return None
    return None
