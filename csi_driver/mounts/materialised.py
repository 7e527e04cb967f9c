"""Materialised views in the mount table: how one is mounted, and how its mounts are told from everybody else's.

A view is a directory of the cache's file system, so neither type nor source of its mounts say that they are ours. Its
name does: nobody else has directories that are called so. It tells the volume as well, and is all that the node plugin
needs when the daemon is dead.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from csi_driver.mounts import bind_mounts as bind
from csi_driver.mounts.idmap import ShownOwner, user_namespace
from csi_driver.mounts.mount_table import MountEntry, MountTable

_ROOT = re.compile(r"/views/(hayloft-view-([0-9a-f]{20})-[0-9a-f]{20})\Z")


def view_name(volume_id: str, *content: object) -> str:
    """The directory of a view: the same volume and content give the same name."""
    return f"hayloft-view-{_digest(volume_id)}-{_digest(*content)}"


def is_view_name(name: str) -> bool:
    """Whether a directory of that name can be a view."""
    return _ROOT.search(f"/views/{name}") is not None


def view_shown_by(entry: MountEntry) -> str | None:
    """The name of the view that is mounted there; None for any other mount. The root of the mount is what the kernel
    says about it, and stays right when the cache directory is itself a mount or is seen from another container."""
    found = _ROOT.search(entry.root)
    return found[1] if found else None


def is_view_of(entry: MountEntry | None, volume_id: str) -> bool:
    """Whether a view of this volume is mounted there."""
    found = _ROOT.search(entry.root) if entry is not None else None
    return found is not None and found[2] == _digest(volume_id)


def mounted_views(table: MountTable) -> set[str]:
    """The names of all views that are mounted somewhere."""
    return {name for entry in table.entries if (name := view_shown_by(entry)) is not None}


def bind_view(view: Path, target: Path, owner: ShownOwner, *, no_exec: bool) -> None:
    """Ensures that ``target`` shows the view: read-only, nosuid, nodev, and with everything belonging to the owner.

    Raises what ``bind.bind_read_only`` raises, and ViewUnavailable where the kernel cannot show another owner.
    """
    if owner.is_our_own:
        bind.bind_read_only(view, target, no_exec=no_exec)
        return
    with user_namespace(owner) as namespace:
        bind.bind_read_only(view, target, no_exec=no_exec, user_namespace=namespace)


def check_owner(directory: Path, owner: ShownOwner) -> None:
    """Tries whether what lies below the directory can be shown as the owner's, before a view is built in vain. Raises
    ViewUnavailable."""
    if not owner.is_our_own:
        with user_namespace(owner) as namespace:
            bind.try_user_namespace(directory, namespace)


def _digest(*parts: object) -> str:
    text = "".join(f"{len(part)}:{part}," for part in map(str, parts))
    return hashlib.blake2b(os.fsencode(text), digest_size=10).hexdigest()
