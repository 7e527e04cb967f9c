"""A chart or manifest that was edited by itself is noticed, also where there is no Helm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.architecture.source_tree import REPOSITORY
from tools import plain_manifests
from tools.plain_manifests import CHART, DIGESTS, MANIFESTS

pytestmark = pytest.mark.promise("S303")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in (CHART, MANIFESTS):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    return tmp_path


def test_the_manifests_are_current(tree: Path) -> None:
    assert plain_manifests.differences(tree) == []


@pytest.mark.parametrize(
    "path", [CHART / "values.yaml", CHART / "templates" / "node.yaml", MANIFESTS / "controller.yaml"], ids=str
)
def test_an_edited_file_is_named(tree: Path, path: Path) -> None:
    (tree / path).write_text((tree / path).read_text() + "# edited\n")
    assert plain_manifests.differences(tree) == [str(path)]


def test_a_file_that_is_new_or_gone_is_named(tree: Path) -> None:
    (tree / MANIFESTS / "service.yaml").write_text("kind: Service\n")
    (tree / CHART / "templates" / "rbac.yaml").unlink()
    assert plain_manifests.differences(tree) == [str(CHART / "templates/rbac.yaml"), str(MANIFESTS / "service.yaml")]


def test_digests_can_be_checked_by_other_programs() -> None:
    for line in (REPOSITORY / DIGESTS).read_text().splitlines():
        digest, _, path = line.partition("  ")
        assert len(digest) == 64
        assert (REPOSITORY / path).is_file()
