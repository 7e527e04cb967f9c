"""Every line of docs/loaders.md on real mounts: what a library does there, and what the page says to write instead."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from csi_driver.mounts.materialised_views import view_shown_by
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.architecture.source_tree import REPOSITORY
from tests.support.all_in_one import AllInOne, until
from tests.support.csi_calls import CsiClient
from tests.support.users import USER

# The first test makes the files and runs all of the page: 10 s, and a minute on a busy machine.
pytestmark = [pytest.mark.fuse, pytest.mark.promise("S295"), pytest.mark.timeout(600)]

PAGE = REPOSITORY / "docs" / "loaders.md"
# Run and not imported here: what they import takes a second. -P keeps them from importing their neighbours.
MAKE_FILES = [sys.executable, "-P", str(REPOSITORY / "tests" / "support" / "loader_files.py")]
RUN_CALLS = [sys.executable, "-P", str(REPOSITORY / "tests" / "support" / "loader_calls.py"), str(USER)]
HEADER = ["call", "FUSE mount", "view", "write instead"]
WORKS = "ok"


class Line(NamedTuple):
    """One line of a table of the page. ``fuse`` and ``view`` are a part of the error, or ``ok``."""

    code: str
    fuse: str
    view: str
    instead: tuple[str, ...]


def lines() -> list[Line]:
    found, in_table = [], False
    for text in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in text.strip("|").split(" |")] if text.startswith("|") else []
        if cells == HEADER:
            in_table = True
        elif not cells:
            in_table = False
        elif in_table and not set(cells[0]) <= {"-", "|"}:
            call, fuse, view, instead = cells
            (code, *_) = quoted(call)
            found.append(Line(code, outcome(fuse), outcome(view), tuple(quoted(instead))))
    return found


def quoted(cell: str) -> list[str]:
    """What is in backticks, and is a call."""
    return [code for code in re.findall(r"`([^`]*)`", cell) if "/data" in code or "/scratch" in code]


def outcome(cell: str) -> str:
    return WORKS if cell == "works" else re.findall(r"`([^`]*)`", cell)[0]


LINES = lines()


class Mounts(NamedTuple):
    home: Path
    client: CsiClient

    def stage(self, name: str, **parameters: str) -> tuple[csi_pb2.Volume, Path]:
        volume = self.client.create(name, parameters={"url": f"file://{self.home}/data", **parameters})
        staging = self.home / f"staging-{name}"
        staging.mkdir()
        self.client.stage(volume, staging)
        return volume, staging

    def show(self, name: str, kind: str, **parameters: str) -> Path:
        """A new volume, published through FUSE, or as a view."""
        volume, staging = self.stage(name, view="fuse" if kind == "fuse" else "materialised", **parameters)
        target = self.home / kind / name
        target.parent.mkdir(exist_ok=True)
        self.client.publish(volume, staging, target)
        entry = MountTable.read().at(target)
        assert entry is not None
        assert (view_shown_by(entry) is not None) == (kind == "view")
        return target


@pytest.fixture(scope="module")
def mounts() -> Iterator[Mounts]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    home.chmod(0o755)
    driver = AllInOne(home)
    try:
        (home / "data").mkdir()
        subprocess.run([*MAKE_FILES, str(home / "data")], check=True, timeout=280)
        yield Mounts(home, driver.start())
    finally:
        driver.close()
        if driver.log.exists():
            sys.stdout.write(driver.log.read_text())
        shutil.rmtree(home)


def writable(path: Path) -> Path:
    """A new directory of the user whose process runs the page."""
    path.mkdir(parents=True)
    os.chown(path, USER, USER)
    return path


@pytest.fixture(scope="module")
def outcomes(mounts: Mounts) -> dict[tuple[str, str], str]:
    """Of every piece of code of the page, by kind of mount; from one process, because the imports take seconds."""
    calls: list[dict[str, str]] = []
    keys = []
    for kind in ("fuse", "view"):
        data = mounts.show(f"all-{kind}", kind)
        for code in dict.fromkeys(code for line in LINES for code in (line.code, *line.instead)):
            scratch = writable(mounts.home / "scratch" / f"{len(calls)}")
            calls.append({"code": code, "data": str(data), "scratch": str(scratch)})
            keys.append((kind, code))
    places = {name: str(writable(mounts.home / name)) for name in ("HF_HOME", "TMPDIR")}
    result = subprocess.run(
        RUN_CALLS,
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **places, "HF_HUB_OFFLINE": "1"},
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(keys, result.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("line", LINES, ids=[f"line {number}" for number in range(len(LINES))])
def test_a_line_of_the_page_is_true(outcomes: dict[tuple[str, str], str], line: Line) -> None:
    for kind, said in (("fuse", line.fuse), ("view", line.view)):
        found = outcomes[kind, line.code]
        assert found == WORKS if said == WORKS else said in found, (kind, found)
        for code in line.instead:
            assert outcomes[kind, code] == WORKS, (kind, code)


def test_the_page_has_lines() -> None:
    assert len(LINES) > 50


@pytest.mark.promise("S294")
@pytest.mark.parametrize("kind", ["fuse", "view"])
def test_lmdb_reads_an_environment_with_its_lock_file(outcomes: dict[tuple[str, str], str], kind: str) -> None:
    for path in ('"/data/lmdb"', '"/data/a.lmdb", subdir=False'):
        assert outcomes[kind, f"lmdb.open({path}, readonly=True)"] == WORKS


def links(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return [member.name for member in opened if member.islnk()]


@pytest.mark.parametrize("kind", ["fuse", "view"])
def test_an_object_of_two_volumes_is_one_inode_on_views_alone(mounts: Mounts, kind: str) -> None:
    names = (f"complete-{kind}", f"selected-{kind}")
    mounts.show(names[0], kind)
    mounts.show(names[1], kind, include="text/*")
    below = mounts.home / kind
    for name in names:  # through FUSE the objects are cached too
        until((below / name / "text" / "a.txt").read_bytes, "it is read")
    linked = ["selected-view/text/a.txt", "selected-view/text/train.csv"] if kind == "view" else []
    paths = [f"{name}/text" for name in names]

    subprocess.run(["tar", "-C", below, "-cf", mounts.home / "1.tar", *paths], check=True)
    assert sorted(links(mounts.home / "1.tar")) == linked
    subprocess.run(["tar", "-C", below, "--hard-dereference", "-cf", mounts.home / "2.tar", *paths], check=True)
    assert links(mounts.home / "2.tar") == []

    for dereference in (False, True):
        with tarfile.open(mounts.home / "3.tar", "w", dereference=dereference) as archive:
            for path in paths:
                archive.add(below / path, path)
        assert sorted(links(mounts.home / "3.tar")) == ([] if dereference else linked)

    for option, expected in (("-a", 2 if linked else 1), ("-r", 1)):
        copy = mounts.home / f"copy-{kind}{option}"
        copy.mkdir()
        subprocess.run(["cp", option, "--parents", *paths, copy], cwd=below, check=True)
        assert (copy / names[0] / "text" / "a.txt").stat().st_nlink == expected

    def used(*options: str) -> int:
        command = ["du", "--apparent-size", "-b", "-c", *options, *(f"{path}/a.txt" for path in paths)]
        return int(subprocess.check_output(command, cwd=below, text=True).splitlines()[-1].split()[0])

    assert used() == (2 if linked else 4)
    assert used("--count-links") == 4
