"""Blobs as files of a directory, on one node or on a file system shared by several nodes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from csi_driver.model.errors import RegistryUnavailable
from csi_driver.objects.blobs.blob_store import check_name

_HIDDEN = "."  # the lock and half-written files; no name of a blob begins with it
_DRAFT = re.compile(r"\.[0-9a-f]{16}\Z")
STALE_DRAFT_S = 3600.0
"""The writer of a draft that was not written to for so long was killed. A draft that is being written, on any node, is
seconds old."""


class DirectoryBlobs:
    """Mode 0600 below a directory of mode 0700. A write makes a complete new file and gives it its name atomically: by
    link(2) if the name must not exist yet, by rename(2) if it may. Conditional replacement holds a lock."""

    def __init__(self, path: Path) -> None:
        """Makes the directory if it is missing, and removes drafts of killed writers. Raises RegistryUnavailable."""
        self._path = path
        with self._mapped():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_stale_drafts()

    def check(self) -> None:
        """Nothing: conditions are compared here, under a lock of the file system."""

    def get(self, name: str) -> tuple[bytes, str] | None:
        file = self._file(name)
        with self._mapped():
            try:
                content = file.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        return content, _tag(content)

    def put_if_absent(self, name: str, content: bytes) -> str | None:
        file = self._file(name)
        with self._mapped():
            draft = self._draft(file, content)
            try:
                os.link(draft, file)
            except FileExistsError:
                return None
            finally:
                draft.unlink()
            _sync_directory(file.parent)
        return _tag(content)

    def put_if_match(self, name: str, content: bytes, tag: str) -> str | None:
        file = self._file(name)
        with self._mapped(), self._lock():
            known = self.get(name)
            if known is None or known[1] != tag:
                return None
            self._draft(file, content).replace(file)
            _sync_directory(file.parent)
        return _tag(content)

    def put_file(self, name: str, source: Path) -> None:
        file = self._file(name)
        with self._mapped():
            _copy(source, self._draft_path(file)).replace(file)
            _sync_directory(file.parent)

    def fetch_to_file(self, name: str, target: Path) -> bool:
        file = self._file(name)
        with self._mapped():
            if not file.is_file():
                return False
            try:
                draft = _copy(file, target.with_name(f".{target.name}.{secrets.token_hex(4)}"))
            except FileNotFoundError:
                return False
            draft.replace(target)
            _sync_directory(target.parent)
        return True

    def delete(self, name: str) -> None:
        file = self._file(name)
        with self._mapped(), self._lock(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            file.unlink()
            _sync_directory(file.parent)

    def list(self, prefix: str) -> list[str]:
        found = []
        with self._mapped():
            if not self._path.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            for directory, directories, files in os.walk(self._path):
                directories[:] = [name for name in directories if not name.startswith(_HIDDEN)]
                below = Path(directory).relative_to(self._path)
                found += [str(below / name) for name in files if not name.startswith(_HIDDEN)]
        return sorted(name for name in found if name.startswith(prefix))

    def _remove_stale_drafts(self) -> None:
        before = time.time() - STALE_DRAFT_S
        for directory, _, files in os.walk(self._path):
            for path in (Path(directory, name) for name in files if _DRAFT.match(name)):
                with contextlib.suppress(OSError):  # another node removed it first, or permission is missing
                    if path.stat().st_mtime < before:
                        path.unlink()

    def _file(self, name: str) -> Path:
        return self._path / check_name(name)

    def _draft_path(self, file: Path) -> Path:
        if not file.parent.is_dir():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_directory(file.parent.parent)
        return file.with_name(f"{_HIDDEN}{secrets.token_hex(8)}")

    def _draft(self, file: Path, content: bytes) -> Path:
        """A durable file beside ``file`` with this content."""
        draft = self._draft_path(file)
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Makes comparing the tag and replacing the blob one step. Excludes other threads too, because each call opens
        the lock file anew: an flock(2) belongs to one open file description."""
        descriptor = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{error.filename!r}: " if error.filename else ""
            raise RegistryUnavailable(
                f"registry directory {str(self._path)!r}: {where}{os.strerror(error.errno or 0)}; check that it "
                "exists, is writable and has free space"
            ) from error


def _tag(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _copy(source: Path, target: Path) -> Path:
    """A durable copy of mode 0600; no file if it fails."""
    try:
        with (
            source.open("rb") as reader,
            open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer,
        ):
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
    return target


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
