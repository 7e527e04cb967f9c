"""``hayloft inspect URL``: reports how a dataset would appear as a directory, without mounting it."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from csi_driver.catalog.builder import Progress, build_from_store
from csi_driver.catalog.inventory_import import build_from_inventory
from csi_driver.catalog.key_names import Reason
from csi_driver.catalog.key_report import KeyReport
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_notes import notes_of
from csi_driver.model.dataset import Credentials, Dataset, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.volumes.warmup_waiting import human_size

SIZE_BOUNDS = (0, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20, 1 << 30)
"""Of the classes of sizes, in bytes. Up to 1 MiB an object of S3 is fetched on the event loop, up to 4 MiB with one
request when it is opened."""

LINE_EVERY_S = 5.0
"""Of the lines about a listing where there is no terminal."""
RATE_OVER_S = 10.0


def inspect(
    url: str,
    include: Sequence[str],
    exclude: Sequence[str],
    options: StoreOptions,
    credentials: Credentials,
    console: Console,
    *,
    inventory: str | None = None,
    as_json: bool = False,
) -> None:
    """Lists the dataset, or imports its inventory, and prints its totals, and each key that is renamed or left out.

    Raises RequestError, StoreError, DatasetError. Blocks during the listing.
    """
    dataset = Dataset(DatasetUrl.parse(url), tuple(include), tuple(exclude))
    named = None if inventory is None else InventoryUrl.parse(inventory)
    if named is not None and named.scheme != dataset.url.scheme:
        raise InvalidParameter("--inventory", str(named), f"a {dataset.url.scheme}:// URL, as that of the dataset")
    with contextlib.ExitStack() as stack:
        store = open_store(dataset.url, options, credentials)
        stack.callback(store.close)
        source = None
        if named is not None:
            source = (open_store(named.root, options, credentials), named)
            stack.callback(source[0].close)
        inspect_store(store, dataset, console, source, as_json=as_json)


def inspect_store(
    store: ObjectStore,
    dataset: Dataset,
    console: Console,
    inventory: tuple[ObjectStore, InventoryUrl] | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Like ``inspect``, for open stores: that of the dataset, and that of its inventory."""
    with tempfile.TemporaryDirectory(prefix="hayloft-inspect-") as directory:
        begun_s, target = time.monotonic(), Path(directory) / "manifest.arrow"
        with _progress(console, dataset, shown=not as_json) as progress:
            if inventory is None:
                manifest = build_from_store(store, dataset, target, progress=progress)
            else:
                manifest = build_from_inventory(*inventory, dataset, target, progress=progress)
        listing_s = time.monotonic() - begun_s
        report, notes = manifest.key_report(), notes_of(manifest, store)
        if as_json:
            console.out(json.dumps(_as_json(manifest, report, notes, listing_s), indent=2), highlight=False)
        else:
            _print(manifest, report, notes, listing_s, console)


@contextlib.contextmanager
def _progress(console: Console, dataset: Dataset, *, shown: bool) -> Iterator[Progress | None]:
    """On a terminal the line of a spinner, and elsewhere a line on standard error every few seconds."""
    rate = ListingRate()

    def text(listed: int) -> str:
        return f"listing {dataset.url}: {listed:,} objects, {rate.of(listed):,.0f} a second"

    if shown and console.is_terminal:
        with console.status(f"listing {dataset.url}") as status:
            yield lambda listed: status.update(text(listed))
        return
    due_s = time.monotonic() + LINE_EVERY_S

    def line(listed: int) -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + LINE_EVERY_S
            print(text(listed), file=sys.stderr, flush=True)  # noqa: T201  # the report itself is on standard output

    yield line


class ListingRate:
    """Objects a second, over the last seconds. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._points = deque([(clock(), 0)])

    def of(self, listed: int) -> float:
        """With so many objects listed by now."""
        now_s = self._clock()
        self._points.append((now_s, listed))
        while len(self._points) > 2 and now_s - self._points[1][0] >= RATE_OVER_S:
            self._points.popleft()
        begun_s, before = self._points[0]
        return (listed - before) / max(now_s - begun_s, 1e-3)


def _as_json(manifest: Manifest, report: KeyReport, notes: Sequence[str], listing_s: float) -> dict[str, Any]:
    """Keys have bytes that are not UTF-8 as surrogate escapes (``\\udc80`` to ``\\udcff``)."""
    return {
        "url": manifest.url,
        "include": list(manifest.include),
        "exclude": list(manifest.exclude),
        "snapshot_id": manifest.snapshot_id,
        "files": manifest.file_count,
        "directories": manifest.directory_count,
        "bytes": manifest.total_bytes,
        "objects_listed": report.objects_listed,
        "listing_s": listing_s,
        "sizes": [
            {"up_to_bytes": bound, "files": files, "bytes": size_bytes}
            for bound, (files, size_bytes) in zip(
                (*SIZE_BOUNDS, None), manifest.tree.size_histogram(SIZE_BOUNDS), strict=True
            )
        ],
        "not_selected": report.not_selected,
        "directory_markers": report.directory_markers,
        "archived": manifest.archived_count,
        "without_strong_etag": manifest.unversioned_count,
        "inventory": None if manifest.imported is None else dict(manifest.imported),
        "notes": list(notes),
        "renamed_total": report.renamed_total,
        "left_out_total": report.left_out_total,
        "renamed_counts": dict(report.renamed_counts),
        "left_out_counts": dict(report.left_out_counts),
        "renamed": [
            {"key": _full_key(manifest, entry.key), "shown_as": _text(entry.path), "reason": entry.reason}
            for entry in report.renamed
        ],
        "left_out": [{"key": _full_key(manifest, entry.key), "reason": entry.reason} for entry in report.left_out],
    }


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _full_key(manifest: Manifest, key: bytes) -> str:
    return manifest.prefix + _text(key)


def _print(manifest: Manifest, report: KeyReport, notes: Sequence[str], listing_s: float, console: Console) -> None:
    totals = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("snapshot", manifest.snapshot_id),
        ("files", f"{manifest.file_count:,}"),
        ("directories", f"{manifest.directory_count:,}"),
        ("bytes", f"{manifest.total_bytes:,} ({decimal(manifest.total_bytes)})"),
        ("objects listed", f"{report.objects_listed:,}, in {listing_s:.1f} s"),
        ("not selected by the globs", f"{report.not_selected:,}"),
        ("directory markers", f"{report.directory_markers:,}"),
        ("archived", f"{manifest.archived_count:,}"),
        ("without a strong ETag", f"{manifest.unversioned_count:,}"),
        ("renamed", f"{report.renamed_total:,}"),
        ("left out", f"{report.left_out_total:,}"),
    ):
        totals.add_row(name, value)
    _line(console, manifest.url)
    console.print(totals)
    if manifest.file_count:
        console.print(_sizes(manifest))
    for note in notes:
        _line(console, f"note: {note}")
    if report.renamed_total or report.left_out_total:
        console.print(_reasons(report))
    for renamed in report.renamed:
        _line(console, f"renamed: {_visible(renamed.key)} -> {_visible(renamed.path)} ({renamed.reason.explanation})")
    _print_rest(console, "renamed", report.renamed_total - len(report.renamed))
    for left_out in report.left_out:
        _line(console, f"left out: {_visible(left_out.key)} ({left_out.reason.explanation})")
    _print_rest(console, "left out", report.left_out_total - len(report.left_out))


def _sizes(manifest: Manifest) -> Table:
    """Classes without a file, below the smallest and above the largest one, are left out."""
    table = Table("size of a file", title="Sizes")
    for title in ("files", "of all", "bytes", "of all"):
        table.add_column(title, justify="right")
    classes = list(zip((*SIZE_BOUNDS, None), manifest.tree.size_histogram(SIZE_BOUNDS), strict=True))
    with_files = [place for place, (_, (files, _)) in enumerate(classes) if files]
    for bound, (files, size_bytes) in classes[with_files[0] : with_files[-1] + 1]:
        name = f"above {human_size(SIZE_BOUNDS[-1])}" if bound is None else f"up to {human_size(bound)}"
        shares = files / manifest.file_count, size_bytes / (manifest.total_bytes or 1)
        table.add_row(name, f"{files:,}", f"{shares[0]:.1%}", human_size(size_bytes), f"{shares[1]:.1%}")
    return table


def _reasons(report: KeyReport) -> Table:
    table = Table("reason", "renamed", "left out", title="Keys that are not shown as they are")
    counts: dict[Reason, list[int]] = {}
    for column, by_reason in enumerate((report.renamed_counts, report.left_out_counts)):
        for reason, count in by_reason.items():
            counts.setdefault(reason, [0, 0])[column] = count
    for reason in sorted(counts):
        table.add_row(reason.explanation, *(f"{count:,}" for count in counts[reason]))
    return table


def _print_rest(console: Console, what: str, rest: int) -> None:
    if rest > 0:
        _line(console, f"{what}: and {rest:,} more")


def _line(console: Console, text: str) -> None:
    """Prints without wrapping, so that grep finds a long key."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


def _visible(raw: bytes) -> str:
    """Escapes control characters and bytes that are not UTF-8, so that a key cannot control the terminal."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
