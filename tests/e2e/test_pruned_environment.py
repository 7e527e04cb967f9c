"""The driver with the packages that its image has: pruned, and nothing of this environment beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source_tree import REPOSITORY
from tests.support.all_in_one import AllInOne
from tests.support.csi_calls import Mode, mount_capability
from tests.support.pruned_environment import pruned_environment

CHECK = REPOSITORY / "tools/check_packages.py"


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    # In this environment, since hard links do not leave a file system.
    folder = Path(tempfile.mkdtemp(prefix=".pruned-", dir=sys.prefix))
    try:
        yield pruned_environment(folder)
    finally:
        shutil.rmtree(folder)


def packages_of(python: Path) -> Path:
    (found,) = python.parent.parent.glob("lib/python3.*/site-packages")
    return found


@pytest.mark.promise("S307")
def test_all_that_the_driver_loads_is_left(python: Path, tmp_path: Path) -> None:
    done = subprocess.run([python, "-I", CHECK], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_missing_is_noticed(python: Path, tmp_path: Path) -> None:
    """So that the check of the image can fail."""
    (library,) = packages_of(python).glob("pyarrow/libarrow_compute.so.*")
    aside = library.rename(library.with_name("aside"))
    try:
        done = subprocess.run([python, "-I", CHECK], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    finally:
        aside.rename(library)
    assert done.returncode == 1
    assert "libarrow_compute.so" in done.stderr


def test_nothing_of_this_environment_was_changed(python: Path) -> None:
    (library,) = packages_of(python).glob("pyarrow/lib.*.so")
    original = next(path for path in Path(sys.prefix).glob(f"lib/python3.*/site-packages/pyarrow/{library.name}"))
    assert original.read_bytes() != library.read_bytes()
    assert original.stat().st_ino != library.stat().st_ino


class Pruned(AllInOne):
    forked = False

    def __init__(self, home: Path, python: Path) -> None:
        super().__init__(home)
        self.python = python

    def command(self, *more: str) -> list[str]:
        _, *arguments = super().command(*more)
        return [str(self.python), "-I", *arguments]


@pytest.mark.fuse
@pytest.mark.promise("S307")
def test_a_dataset_is_mounted_and_read_with_the_packages_of_the_image(python: Path, tmp_path: Path) -> None:
    dataset, home = tmp_path / "dataset", tmp_path / "home"
    content = {f"train/{number:03}.bin": bytes([number]) * (70_000 * number + 1) for number in range(8)}
    for name, body in content.items():
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_bytes(body)
    home.mkdir()
    driver = Pruned(home, python)
    try:
        client = driver.start("--allow-file-urls")
        capabilities = [mount_capability(Mode.MULTI_NODE_READER_ONLY)]
        volume = client.create("pvc-1", parameters={"url": dataset.as_uri()}, volume_capabilities=capabilities)
        staging, target = home / "staging", home / "target"
        staging.mkdir()
        client.stage(volume, staging)
        client.publish(volume, staging, target)
        shown = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        assert shown == content
        client.unpublish(volume.volume_id, target)
        client.unstage(volume.volume_id, staging)
    finally:
        driver.close()
