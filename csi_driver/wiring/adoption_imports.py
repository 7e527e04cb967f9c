"""Imports what the adoption of mounts needs, while the daemon opens its cache or waits for another one to end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_driver.catalog.arrow_alone import import_arrow
from csi_driver.objects.store_factory import import_client


@contextmanager
def importing_for_mounts(state_directory: Path) -> Iterator[None]:
    """``import_for_mounts``, on a thread, during the body. To be called after the last fork."""
    thread = threading.Thread(target=import_for_mounts, args=(state_directory,), name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def import_for_mounts(state_directory: Path) -> None:
    """Imports Arrow and the clients of the stores that mounts are recorded with; nothing without mounts."""
    schemes = {scheme for path in (state_directory / "mounts").glob("*.json") if (scheme := _scheme(path))}
    if schemes:
        import_arrow()
        import csi_driver.catalog.manifest  # noqa: F401
    for scheme in schemes:
        import_client(scheme)


def _scheme(record: Path) -> str:
    """Of the URL in a record, which another daemon may be replacing. Empty: not known."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return str(json.loads(record.read_text())["attributes"]["url"]).partition("://")[0]
    return ""
