"""Lists a dataset and writes its manifest."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog.listing_bounds import bounded
from csi_driver.catalog.listing_journal import ListingJournal
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_format import (
    Release,
    in_memory,
    noted_snapshot_id,
    snapshot_id,
    strong_etag_count,
    write_manifest,
)
from csi_driver.catalog.mapped_columns import MappedColumns
from csi_driver.catalog.page_collector import PageCollector
from csi_driver.catalog.path_assignment import FILES, Arranged, arrange, arrange_on_disk
from csi_driver.catalog.plain_batches import ColumnPage
from csi_driver.catalog.selection import Selection
from csi_driver.catalog.spilled_rows import SpilledRows
from csi_driver.model.dataset import Dataset
from csi_driver.model.errors import AccessDenied, EmptyDataset, HayloftError, NotADirectory, ObjectNotFound
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.listing_pages import resumable_lister
from csi_driver.objects.parallel_listing import KeysNotInOrder, range_lister
from csi_driver.objects.store import ObjectStore

logger = logging.getLogger(__name__)

Page = TypeVar("Page", bound=Sized)

Progress = Callable[[int], None]
"""Called after each page with the number of objects listed so far."""


def build_from_store(
    store: ObjectStore,
    dataset: Dataset,
    target: Path,
    *,
    progress: Progress | None = None,
    most_objects: int | None = None,
    most_bytes: int | None = None,
    journal_path: Path | None = None,
) -> Manifest:
    """Lists the dataset and builds its manifest. Blocks for as long as the store lists. ``journal_path``: where the
    pages of a long listing are kept, and those of one that was killed are found; None: nowhere.

    Raises InvalidParameter (a glob), EmptyDataset, NotADirectory, what ``ObjectStore.list`` raises, BudgetExceeded
    (more than ``most_objects``, or ``most_bytes`` on the disk), and OSError if the file cannot be written. An error
    leaves no file behind.
    """
    has_listed = False

    def reported(listed: int) -> None:
        nonlocal has_listed
        has_listed = has_listed or listed > 0
        if progress is not None:
            progress(listed)

    def built_from(pages: Iterator[ObjectPage]) -> Manifest:
        if most_objects is not None:
            pages = bounded(pages, dataset, most_objects)
        return build_manifest(pages, dataset, target, progress=reported, most_bytes=most_bytes)

    try:
        with _journal(store, journal_path, most_bytes) as journal:
            return _built(store, dataset.url.prefix, journal, built_from)
    except EmptyDataset:
        found = None if has_listed else _one_object(store, dataset)
        if found is None:
            raise
        if not dataset.url.is_web:
            raise NotADirectory(_one_object_message(dataset)) from None
    page = ObjectPage([found.key], [found.size_bytes], [found.etag], [found.mtime_ns])
    return build_manifest([page], dataset, target, prefix=found.key[: found.key.rfind("/") + 1])


@contextlib.contextmanager
def _journal(store: ObjectStore, path: Path | None, most_bytes: int | None) -> Iterator[ListingJournal | None]:
    """For a listing in the body. It stays only if the listing fails, and may be continued."""
    if path is None or resumable_lister(store) is None:
        yield None
        return
    journal = ListingJournal(path, most_bytes)
    if range_lister(store) is None:
        journal.in_ranges = False
    if journal.has_earlier:
        logger.info("a listing that has ended early is continued")
    try:
        yield journal
    except HayloftError as error:
        journal.closed_after(error)
        raise
    except BaseException:
        journal.finished()
        raise
    journal.finished()


def _built(
    store: ObjectStore,
    prefix: str,
    journal: ListingJournal | None,
    built_from: Callable[[Iterator[ObjectPage]], Manifest],
) -> Manifest:
    if range_lister(store) is not None and (journal is None or journal.in_ranges):
        try:
            return built_from(_pages(store, prefix, journal, in_ranges=True))
        except KeysNotInOrder as error:
            logger.info("the dataset is listed anew, page after page: %s", error)
            if journal is not None:
                journal.restart(in_ranges=False)
    return built_from(_pages(store, prefix, journal, in_ranges=False))


def _pages(store: ObjectStore, prefix: str, journal: ListingJournal | None, *, in_ranges: bool) -> Iterator[ObjectPage]:
    resumable, ranges = resumable_lister(store), range_lister(store)
    if journal is not None and resumable is not None:
        return resumable.list_logged(prefix, journal, in_ranges=in_ranges)
    return ranges.list_in_ranges(prefix) if in_ranges and ranges is not None else store.list(prefix)


def build_manifest(
    pages: Iterable[ObjectPage | ColumnPage],
    dataset: Dataset,
    target: Path,
    *,
    progress: Progress | None = None,
    created_ns: int | None = None,
    prefix: str | None = None,
    most_bytes: int | None = None,
    imported: Mapping[str, Any] | None = None,
) -> Manifest:
    """Builds the manifest from a listing, in any order, and opens it. ``prefix``: that of the keys, if it is not the
    dataset's; ``imported``: what the manifest notes of the inventory that the pages are of.

    Of a key that is listed twice the newer version is used. Up to half a million objects are arranged in memory; more
    take no more of it, but space beside ``target``: about 210 bytes an object, given back at the end. Raises as
    ``build_from_store``, except for NotADirectory.
    """
    prefix = dataset.url.prefix if prefix is None else prefix
    with contextlib.ExitStack() as stack:
        spilled = SpilledRows(target.parent, most_bytes)
        stack.callback(spilled.close)
        collector = PageCollector(prefix, Selection.of(dataset), spilled)
        for page in _reported(pages, progress):
            collector.add(page)
        release: Release = in_memory
        if collector.spilled is None:
            arranged = arrange(collector)
        else:
            columns = MappedColumns(target.parent, FILES)
            stack.callback(columns.close)
            release, arranged = columns.release, arrange_on_disk(collector, collector.spilled, columns)
        _write(collector, arranged, dataset, prefix, created_ns, target, release, imported)
        del arranged, collector
    pa.default_memory_pool().release_unused()
    return Manifest.open(target)


def _write(
    collector: PageCollector,
    arranged: Arranged,
    dataset: Dataset,
    prefix: str,
    created_ns: int | None,
    target: Path,
    release: Release,
    imported: Mapping[str, Any] | None,
) -> None:
    if not arranged.files.num_rows:
        raise EmptyDataset(_empty_message(dataset, collector))
    listed_id = snapshot_id(arranged, release)
    write_manifest(
        arranged,
        _left_out_table(collector),
        {
            "url": str(dataset.url),
            "prefix": prefix,
            "include": list(dataset.include),
            "exclude": list(dataset.exclude),
            # Of an inventory another one than of a listing of the same objects, since its manifest says so.
            "snapshot_id": listed_id if imported is None else noted_snapshot_id(listed_id, imported),
            "created_ns": time.time_ns() if created_ns is None else created_ns,
            "total_bytes": pc.sum(arranged.files.column("size_bytes")).as_py(),
            "counts": _counts(collector, arranged, release),
            **({} if imported is None else {"imported": imported}),
        },
        target,
        release,
    )


def _reported(pages: Iterable[Page], progress: Progress | None) -> Iterator[Page]:
    listed = 0
    for page in pages:
        yield page
        listed += len(page)
        if progress is not None:
            progress(listed)


def _left_out_table(collector: PageCollector) -> Any:
    examples = collector.left_out.examples()
    keys = pa.array([example.key for example in examples], pa.large_binary())
    reasons = pa.array([example.reason.encode() for example in examples], pa.large_binary())
    return pa.table({"key": keys, "reason": reasons})


def _counts(collector: PageCollector, arranged: Arranged, release: Release) -> dict[str, Any]:
    renamed = pc.value_counts(arranged.renamed.column("reason")).to_pylist()
    return {
        "objects_listed": collector.counts["objects_listed"],
        "not_selected": collector.counts["not_selected"],
        "directory_markers": collector.counts["directory_markers"],
        "duplicates": collector.counts["duplicates"],
        "archived": collector.counts["archived"],
        "unversioned": len(arranged.files) - strong_etag_count(arranged.files, release),
        "renamed": {entry["values"].decode(): entry["counts"] for entry in renamed},
        "left_out": {str(reason): count for reason, count in sorted(collector.left_out.counts.items())},
    }


def _one_object(store: ObjectStore, dataset: Dataset) -> ObjectInfo | None:
    """The object that the URL names, if it names one."""
    key = dataset.url.prefix.rstrip("/")
    if not key:
        return None
    try:
        return store.stat(key)
    except (ObjectNotFound, AccessDenied):
        # Without read permission a store may answer 403 for a missing object; the listing was allowed.
        return None


def _one_object_message(dataset: Dataset) -> str:
    url = str(dataset.url).rstrip("/")
    above, _, name = url.rpartition("/")
    return f"{url}: is one object, not a prefix; give {above}/ as the URL, and include=/{name} to select the object"


def _empty_message(dataset: Dataset, collector: PageCollector) -> str:
    listed, not_selected = collector.counts["objects_listed"], collector.counts["not_selected"]
    if not listed:
        return f"{dataset.url}: no object lies below it; check the bucket and the prefix, which is case-sensitive"
    globs = f"include={list(dataset.include)}, exclude={list(dataset.exclude)}"
    if not_selected:
        return (
            f"{dataset.url}: {listed} objects lie below it, and none that {globs} select can be shown; globs are "
            "matched against the path below the URL"
        )
    found = sorted(collector.left_out.counts.items())
    reasons = "".join(f"; {reason.explanation} ({count})" for reason, count in found)
    return f"{dataset.url}: {listed} objects are listed, all directory markers or none that can be shown{reasons}"
