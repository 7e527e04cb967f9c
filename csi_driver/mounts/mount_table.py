"""The host's mount table, from /proc/self/mountinfo: the only source for the state of mounts.

A lookup in the table never accesses the path itself, so a file system whose daemon is dead or stopped cannot block it
or make it fail. The format is that of proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_DELETED = b"//deleted"
"""Appended by the kernel to the root of a bind mount whose directory is unlinked. No path has two adjacent slashes."""

StrPath = str | bytes | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of the table. Bytes that are not UTF-8 are surrogate escapes, as in all of Python's paths."""

    mount_id: int
    parent_id: int
    device: str
    """``major:minor`` of the file system, the same for all of its bind mounts."""
    root: str
    """The directory of the file system that is mounted; ``/`` unless it is a bind mount of a subdirectory."""
    mount_point: str
    options: frozenset[str]

    fs_type: str
    source: str
    super_options: frozenset[str]
    root_deleted: bool = False

    @property
    def is_read_only(self) -> bool:
        """Whether the mount or its file system is read-only."""
        return "ro" in self.options or "ro" in self.super_options

    @property
    def is_fuse(self) -> bool:
        """True for every FUSE file system, also of other programs."""
        return self.fs_type in ("fuse", "fuseblk") or self.fs_type.startswith("fuse.")


@dataclass(frozen=True)
class MountTable:
    """One snapshot of the table, in the kernel's order."""

    entries: tuple[MountEntry, ...]

    @classmethod
    def read(cls, mountinfo: Path = MOUNTINFO) -> MountTable:
        """The current table of this process's mount namespace."""
        return cls.parse(mountinfo.read_bytes())

    @classmethod
    def parse(cls, text: bytes) -> MountTable:
        """Raises ValueError for an invalid line."""
        return cls(tuple(parse_line(line) for line in text.split(b"\n") if line))

    def at(self, path: StrPath) -> MountEntry | None:
        """The visible mount at exactly this path: the topmost of a stack, and none that is hidden by a mount on a
        parent directory. Does not resolve links; ``real_mount_point`` does."""
        wanted = _plain(path)
        found = self._walk(wanted)
        return found if found is not None and found.mount_point == wanted else None

    def containing(self, path: StrPath) -> MountEntry | None:
        """The visible mount that contains the path, found as by ``at``."""
        return self._walk(_plain(path))

    def below(self, path: StrPath) -> tuple[MountEntry, ...]:
        """All mounts strictly below the path, including hidden ones, in the kernel's order."""
        prefix = _plain(path).rstrip("/") + "/"
        return tuple(
            entry for entry in self.entries if entry.mount_point.startswith(prefix) and entry.mount_point != "/"
        )

    def _walk(self, wanted: str) -> MountEntry | None:
        """Follows the path like the kernel: from directory to directory, entering each mount on the way."""
        current: MountEntry | None = None
        parent = -1
        directories = _directories(wanted)
        directory = next(directories, None)
        while directory is not None:
            entered = self._children.get((parent, directory))
            if entered is None:
                directory = next(directories, None)
            else:
                current, parent = entered, entered.mount_id
        return current

    @cached_property
    def _children(self) -> dict[tuple[int, str], MountEntry]:
        """Mounts by parent mount id (-1 if the table does not contain the parent) and path. The parent of a stacked
        mount is the mount below it."""
        known = {entry.mount_id for entry in self.entries}
        children = {}
        for entry in self.entries:
            inner = entry.parent_id in known and entry.parent_id != entry.mount_id
            children[entry.parent_id if inner else -1, entry.mount_point] = entry
        return children


@lru_cache(maxsize=4096)
def parse_line(line: bytes) -> MountEntry:
    """One line without its newline. Raises ValueError.

    Cached: the table is read anew for every call, and few of its lines change.
    """
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        fs_type, source, *rest = fields[dash + 1 :]
        root, deleted = fields[3], fields[3].endswith(_DELETED)
        return MountEntry(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=_text(fields[2]),
            root=_text(root[: -len(_DELETED)] if deleted else root),
            mount_point=_text(fields[4]),
            options=_options(fields[5]),
            fs_type=_text(fs_type),
            source=_text(source),
            super_options=_options(_super_options(rest)),
            root_deleted=deleted,
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a line of a mount table: {line!r}") from error


def real_mount_point(path: StrPath) -> Path:
    """The path as the mount table spells it: links in its parent are resolved (kubelet's directory is often a link).

    The last component is not accessed, because a file system mounted there may be dead; a link there is not followed.
    """
    plain = _plain(path)
    parent, name = os.path.split(plain)
    return Path(os.path.realpath(parent), name)


def _plain(path: StrPath) -> str:
    """Without ``.``, ``..`` and double slashes. Raises ValueError for a relative path."""
    plain = os.path.normpath(os.fsdecode(path))
    if not plain.startswith("/"):
        raise ValueError(f"not an absolute path: {path!r}")
    return "/" + plain.lstrip("/")


def _directories(path: str) -> Iterator[str]:
    """``/``, ``/a``, ``/a/b`` for ``/a/b``."""
    yield "/"
    end = path.find("/", 1)
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)
    if path != "/":
        yield path


def _text(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field)
    return os.fsdecode(field)


@lru_cache(maxsize=1024)
def _options(field: bytes) -> frozenset[str]:
    """Splits before unescaping, since a comma within an option is escaped. Cached: most mounts share a few sets."""
    return frozenset(_text(option) for option in field.split(b",") if option)


def _super_options(rest: list[bytes]) -> bytes:
    """The end of the line. Some file systems print a space in their options without escaping it."""
    if not rest:
        raise ValueError("the options of the file system are missing")
    return b" ".join(rest)
