"""A first user, with the pages of the documentation alone: from a bucket to a mount, and five ways to break it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source_tree import REPOSITORY
from tools import first_user

pytestmark = [pytest.mark.server, pytest.mark.fuse, pytest.mark.promise("S664"), pytest.mark.timeout(300)]


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hl", dir="/var/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.loop
def test_each_way_to_break_it_is_found_by_one_command(directory: Path) -> None:
    steps = first_user.session(directory)
    said = {name: "".join(step.output for step in steps if step.block == name) for name in {one.block for one in steps}}

    def words(block: str) -> str:
        return " ".join(said[block].split())

    assert said["read"].split() == ["10485760", "10485760"]
    assert "nothing is wrong" in said["status"]
    assert "the credentials are wrong, incomplete or expired" in words("wrong key")
    assert "(ObjectsChanged)" in words("bucket overwritten")
    assert "ended unexpectedly" in words("daemon killed")
    assert "(CacheDiskFull)" in words("disk full")
    assert "3145728" in said["disk full"]
    assert "(StoreUnreachable)" in words("endpoint away")
    assert "nothing answers at" in words("endpoint away")

    for page in first_user.PAGES:
        for name, commands in first_user.commands_of_page((REPOSITORY / page).read_text()).items():
            assert commands == [step.command for step in steps if step.block == name], f"{page}: {name}"
