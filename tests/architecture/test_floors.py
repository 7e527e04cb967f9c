"""The floors of the house hold: imports point down, and a library or a system call is known only where it belongs.

import-linter checks the contracts of pyproject.toml; what it cannot say (system calls, paths) is read from the source.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.source_tree import PACKAGE, REPOSITORY, Module, modules, packages

KERNEL_FLOOR = {"fuse", "mounts"}
FOUNDATION = {"model", "settings", "telemetry"}


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """The package and its contracts in another place, to be broken there."""
    shutil.copytree(PACKAGE, tmp_path / "csi_driver", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def floors() -> list[str]:
    """The layers of the contract, top first, as pyproject.toml writes them, without the marks for optional ones."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "floors")
    return [re.sub(r"[()]", "", layer) for layer in layers]


def test_imports_point_down_and_libraries_stay_where_they_belong() -> None:
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("place", "line", "broken"),
    [
        ("chunks", "import csi_driver.reading", "chunks is not allowed to import csi_driver.reading"),
        ("objects", "import csi_driver.cache", "objects is not allowed to import csi_driver.cache"),
        ("fuse", "from csi_driver.csi import pb", "fuse is not allowed to import csi_driver.csi"),
        ("reading", "import grpc", "reading is not allowed to import grpc"),
        ("filesystem", "import obstore.store", "filesystem is not allowed to import obstore"),
        ("wiring", "import pyarrow.parquet", "wiring is not allowed to import pyarrow"),
        ("model", "import typer", "model is not allowed to import typer"),
    ],
)
def test_an_import_that_points_up_is_found(copied_tree: Path, place: str, line: str, broken: str) -> None:
    (copied_tree / "csi_driver" / place / "intruder.py").write_text(f"{line}\n")
    result = lint_imports(copied_tree)
    assert result.returncode != 0
    assert broken in result.stdout


def test_a_package_without_a_floor_is_found(copied_tree: Path) -> None:
    (copied_tree / "csi_driver" / "helpers").mkdir()
    (copied_tree / "csi_driver" / "helpers" / "__init__.py").write_text("")
    result = lint_imports(copied_tree)
    assert result.returncode != 0
    assert "helpers" in result.stdout


def test_the_drawing_in_the_docs_has_the_floors_of_the_contract() -> None:
    drawing = (REPOSITORY / "docs" / "architecture.md").read_text()
    drawn = re.findall(r"^floor \d+ +(.+?)(?: {3,}.*)?$", drawing, re.MULTILINE)
    assert [re.split(r"\W+", floor.strip()) for floor in drawn] == [re.split(r"\W+", floor) for floor in floors()]


def test_the_lowest_floor_imports_the_standard_library_and_pydantic_alone() -> None:
    allowed = {*sys.stdlib_module_names, "pydantic"}
    foreign = [
        f"{module}: {name}"
        for module in modules()
        if module.package in FOUNDATION
        for name in module.imports()
        if name.split(".")[0] not in allowed
        and name.split(".")[:1] + name.split(".")[1:2] not in [["csi_driver", part] for part in FOUNDATION]
    ]
    assert foreign == []


def _outside(allowed: set[str]) -> list[Module]:
    unknown = allowed - packages()
    assert not unknown, f"these packages do not exist any more: {unknown}"
    return [module for module in modules() if module.package not in allowed]


def test_ioctl_and_mount_calls_are_made_in_fuse_and_mounts_alone() -> None:
    calls = {"ioctl", "umount2", "mount_setattr", "open_tree", "move_mount", "fsopen", "fsmount", "pivot_root"}
    found = [f"{module}: {name}" for module in _outside(KERNEL_FLOOR) for name in module.attributes() if name in calls]
    assert found == []


def test_foreign_functions_are_called_in_fuse_and_mounts_alone() -> None:
    """Processes that must end with their parent ask for it with prctl(2), in demo and wiring."""
    found = [str(module) for module in _outside(KERNEL_FLOOR | {"demo", "wiring"}) if "ctypes" in module.imports()]
    assert found == []


def test_the_fuse_device_is_known_to_fuse_and_mounts_alone() -> None:
    """demo looks whether it is there before it starts anything."""
    found = [str(module) for module in _outside(KERNEL_FLOOR | {"demo"}) if "/dev/fuse" in module.texts()]
    assert found == []


ENVIRONMENT = {
    "csi_driver/objects/credentials.py": "the ambient identity of the cloud, as boto3 and others find it",
    "csi_driver/objects/s3/identity.py": "the same, of AWS",
    "csi_driver/objects/endpoints.py": "the storage account that belongs to that identity",
    "csi_driver/fuse/mounting.py": "handed on to fusermount3",
}
"""Modules that may look at the environment although settings come to them by section, and why."""


def test_the_environment_is_read_where_programs_start_alone() -> None:
    readers = {"environ", "environb", "getenv", "getenvb"}
    above = {"cli", "demo", "wiring"} & packages()
    found = {str(module) for module in _outside(above) if readers & set(module.attributes())}
    assert found - set(ENVIRONMENT) == set()
