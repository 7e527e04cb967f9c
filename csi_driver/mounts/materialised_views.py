"""Materialised views in the mount table: mounts views, and recognises their mounts.

A view is a directory of the cache's file system, so neither type nor source of its mount identify the driver. The name
of the directory does: it is specific to Hayloft, and contains a hash of the volume id, which is all that the node
plugin needs when the daemon is dead.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from csi_driver.model.errors import ViewUnavailable
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.idmapped_mounts import ShownOwner, user_namespace
from csi_driver.mounts.mount_namespaces import entries_everywhere
from csi_driver.mounts.mount_table import MountEntry, MountTable

_LABELLED = "seclabel"
"""Option of a file system whose files SELinux labels one by one, in the mount table of the kernel."""
_NAME = r"/views/(hayloft-view-([0-9a-f]{20})-[0-9a-f]{20})"
_ROOT = re.compile(_NAME + r"\Z")
_ROOT_OR_BELOW = re.compile(_NAME + r"(?:/|\Z)")
_NEEDLE = b"/views/hayloft-view-"


def view_name(volume_id: str, *content: object) -> str:
    """The name of a view's directory; deterministic for a volume and content."""
    return f"hayloft-view-{_digest(volume_id)}-{_digest(*content)}"


def is_view_name(name: str) -> bool:
    """Whether a directory of that name can be a view."""
    return _ROOT.search(f"/views/{name}") is not None


def view_shown_by(entry: MountEntry) -> str | None:
    """The name of the mounted view; None for any other mount. Found in the root of the mount as the kernel reports it,
    which is independent of where the cache directory is mounted, also in another container."""
    match = _ROOT.search(entry.root)
    return match[1] if match else None


def is_view_of(entry: MountEntry | None, volume_id: str) -> bool:
    """Whether the mount shows a view of this volume."""
    match = _ROOT.search(entry.root) if entry is not None else None
    return match is not None and match[2] == _digest(volume_id)


def mounted_views(table: MountTable) -> set[str]:
    """The names of all views that are mounted somewhere, completely or in part (a directory of one, by ``subPath``)."""
    roots = (_ROOT_OR_BELOW.search(entry.root) for entry in table.entries)
    return {match[1] for match in roots if match is not None}


def views_mounted_anywhere() -> set[str]:
    """As ``mounted_views``, of all mount namespaces: a container may outlive the target path of its pod."""
    return mounted_views(MountTable(tuple(entries_everywhere(_NEEDLE))))


def bind_view(view: Path, target: Path, owner: ShownOwner, *, no_exec: bool) -> None:
    """Ensures that ``target`` shows the view: read-only, nosuid, nodev, and with all files belonging to the owner.

    In the path of the view, which is the operator's, links are followed.

    Raises as ``bind_mounts.bind_read_only``, and ViewUnavailable where the kernel cannot show another owner.
    """
    view = view.resolve()
    if owner.is_our_own:
        bind_mounts.bind_read_only(view, target, no_exec=no_exec)
        return
    with user_namespace(owner) as namespace:
        bind_mounts.bind_read_only(view, target, no_exec=no_exec, user_namespace=namespace)


def check_owner(directory: Path, owner: ShownOwner) -> None:
    """Tests, before a view is built, whether a mount can show the files below the directory as the owner's. Raises
    ViewUnavailable."""
    if not owner.is_our_own:
        with user_namespace(owner) as namespace:
            bind_mounts.try_user_namespace(directory.resolve(), namespace)


def check_labels(directory: Path, table: MountTable | None = None) -> None:
    """Raises ViewUnavailable where SELinux labels each file of the file system that holds the directory.

    There kubelet has the container runtime write the label of each pod to every file of a volume. A view refuses that
    (EROFS), and its pod never starts; and were it written, the hard links of other pods' views would have it too. This
    is the sign by which kubelet itself decides; a FUSE mount never has it."""
    holding = (table or MountTable.read()).containing(directory.resolve())
    if holding is not None and _LABELLED in holding.super_options:
        raise ViewUnavailable(
            f"{holding.mount_point}: SELinux labels the files of this file system, so that the container runtime would "
            "relabel a materialised view, which is read-only; use view: auto or fuse"
        )


def _digest(*parts: object) -> str:
    text = "".join(f"{len(part)}:{part}," for part in map(str, parts))
    return hashlib.blake2b(os.fsencode(text), digest_size=10).hexdigest()
