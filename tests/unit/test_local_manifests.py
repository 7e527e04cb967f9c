"""How long manifests stay on this machine."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import cast

import pytest

from csi_driver.model.errors import CacheDiskFailed, CacheDiskFull
from csi_driver.volumes import local_manifests
from csi_driver.volumes.local_manifests import LocalManifests
from csi_driver.volumes.registry import Registry
from tests.support.datasets import manifest_of


def made(manifests: LocalManifests, name: str, size_bytes: int = 1000, age_s: float = 0) -> Path:
    with manifests.building() as path:
        path.write_bytes(bytes(size_bytes))
        finished = manifests.finish(path, name)
    if age_s:
        used = time.time() - age_s
        os.utime(finished, (used, used))
    return finished


@pytest.fixture
def manifests(tmp_path: Path) -> LocalManifests:
    return LocalManifests(tmp_path)


def test_a_manifest_of_one_caller_has_a_name_of_its_own(manifests: LocalManifests) -> None:
    paths = []
    for _ in range(2):
        with manifests.building() as unfinished:
            unfinished.write_bytes(b"the same snapshot")
            paths.append(manifests.finish_own(unfinished))
    paths[0].unlink()
    assert paths[1].read_bytes() == b"the same snapshot"


class OneManifest:
    """A registry that has one manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fetched = 0

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        self.fetched += 1
        shutil.copyfile(self.path, target)


def test_a_manifest_is_read_before_it_is_given_out_but_for_the_one_made_a_moment_ago(
    manifests: LocalManifests, tmp_path: Path
) -> None:
    (tmp_path / "of").mkdir()
    good = manifest_of(["a", "b"], tmp_path / "of").tree.snapshot_id
    file = tmp_path / "of" / "manifest.arrow"
    one = OneManifest(file)
    registry = cast("Registry", one)
    path = made(manifests, good)
    assert manifests.ensure(good, registry) == path
    assert path.read_bytes() == bytes(1000)
    assert manifests.ensure(good, registry).read_bytes() == file.read_bytes()
    assert one.fetched == 1
    path.write_bytes(bytes(1000))  # the file that ``ensure`` itself has made
    assert manifests.ensure(good, registry).read_bytes() == file.read_bytes()
    made(manifests, good)
    path.unlink()
    shutil.copyfile(file, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert manifests.ensure(good, registry).read_bytes() == file.read_bytes()
    assert one.fetched == 3


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_a_file_that_was_changed_or_made_long_ago_is_read(
    manifests: LocalManifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    good = manifest_of(["a", "b"], tmp_path).tree.snapshot_id
    path = made(manifests, good)
    if change == "bytes":
        path.write_bytes(bytes(1000))
    else:
        monkeypatch.setattr(local_manifests, "_JUST_MADE_S", 0.0)
    registry = cast("Registry", OneManifest(tmp_path / "manifest.arrow"))
    assert manifests.ensure(good, registry).read_bytes() == (tmp_path / "manifest.arrow").read_bytes()


def test_what_was_made_and_is_not_asked_for_is_forgotten(manifests: LocalManifests) -> None:
    for number in range(200):
        made(manifests, f"snapshot-{number}", size_bytes=1)
    assert len(manifests._made) <= 64


def test_manifests_without_a_mount_are_under_a_limit_and_the_oldest_leaves_first(
    manifests: LocalManifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_manifests, "LIMIT_BYTES", 2500)
    linked = made(manifests, "linked", age_s=9000)
    os.link(linked, tmp_path / "mount")
    oldest, older = made(manifests, "oldest", age_s=7200), made(manifests, "older", age_s=3600)
    recent = made(manifests, "recent", age_s=5)
    assert not oldest.exists()
    assert linked.exists()
    assert older.exists()
    assert recent.exists()


def test_a_manifest_that_was_used_a_moment_ago_stays(
    manifests: LocalManifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount that uses it may not have linked it yet."""
    monkeypatch.setattr(local_manifests, "LIMIT_BYTES", 0)
    paths = [made(manifests, f"{number}") for number in range(3)]
    assert all(path.exists() for path in paths)


def test_a_manifest_that_was_not_used_for_a_day_leaves(manifests: LocalManifests) -> None:
    old = made(manifests, "old", age_s=25 * 3600)
    made(manifests, "new")
    assert not old.exists()


@pytest.mark.promise("S282")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart_from_a_broken_one(manifests: LocalManifests, number: int) -> None:
    with pytest.raises(CacheDiskFull, match=r"the disk is full, or its quota is used up.*manifests are stored there"):
        fail_with(manifests, number)
    with pytest.raises(CacheDiskFailed, match="Input/output error"):
        fail_with(manifests, errno.EIO)


def fail_with(manifests: LocalManifests, number: int) -> None:
    with manifests.building():
        raise OSError(number, os.strerror(number))


@pytest.mark.promise("S637")
def test_a_journal_has_a_name_that_says_nothing_and_goes_an_hour_after_its_last_page(tmp_path: Path) -> None:
    manifests = LocalManifests(tmp_path)
    with manifests.journal("secret") as path, manifests.journal("secret") as again, manifests.journal("x") as other:
        assert path is not None
        assert path == again != other
        assert "secret" not in path.name
        path.touch()
    with LocalManifests(tmp_path).journal("secret") as after_a_restart:
        assert after_a_restart == path
        assert path.exists()
    os.utime(path, (time.time() - 3700,) * 2)
    LocalManifests(tmp_path)
    assert not path.exists()
    with manifests.journal("") as none:
        assert none is None


@pytest.mark.promise("S637")
def test_journals_of_killed_listings_are_bounded_together(tmp_path: Path) -> None:
    manifests = LocalManifests(tmp_path)
    sizes_bytes = 3 * [1 << 30]
    for number, size_bytes in enumerate(sizes_bytes):
        path = tmp_path / "listings" / f"{number}"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        os.utime(path, (time.time() - 1000 + number,) * 2)
    with manifests.journal("another"):
        left = sorted(path.name for path in (tmp_path / "listings").iterdir())
    assert left == ["1", "2", "key"]
