"""``hayloft bench cluster``, small."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hayloft_bench.cli import run_command

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.nginx]


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hb-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.promise("S562")
def test_nodes_that_join_cost_the_bucket_nothing(home: Path) -> None:
    arguments = ["cluster", "--nodes=2", "--replicas=2", "--size=32", f"--directory={home}", f"--out={home}"]
    assert run_command(arguments) == 0
    one, without, with_tier, joined = json.loads((home / "cluster.json").read_text())["epochs"]
    assert one["datasets_sent"] == pytest.approx(1, abs=0.02)
    assert without["datasets_sent"] == pytest.approx(2, abs=0.02)
    assert with_tier["datasets_sent"] <= 1.05
    assert joined["datasets_sent"] <= 0.02
    assert with_tier["tier_cpu_s"] > 0
    assert sorted(path.name for path in home.iterdir()) == ["cluster.json"], "nothing is left behind"
