"""What import-linter cannot express: system calls, paths, an allow list of libraries, names, the drawing in the docs.

`make lint` runs import-linter over the contracts of pyproject.toml.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict

from tests.architecture.source_tree import REPOSITORY, Module, modules, packages

KERNEL_FLOOR = {"fuse", "mounts"}
FOUNDATION = {"model", "settings", "telemetry"}


def floors() -> list[set[str]]:
    """The packages of each layer of the contract, top first."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "floors")
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def test_the_drawing_in_the_docs_has_the_floors_of_the_contract() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    drawn = re.findall(r"^floor \d+ +(\w+(?: *[|:] *\w+)*)", page, re.MULTILINE)
    assert [set(re.findall(r"\w+", floor)) for floor in drawn] == floors()


def test_the_lowest_floor_imports_the_standard_library_and_pydantic_alone() -> None:
    allowed = {*sys.stdlib_module_names, "pydantic", "pydantic_core"}
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


FOREIGN_FUNCTIONS = {
    "csi_driver/cache/disk.py": "fallocate(2): os has only posix_fallocate, which writes where a file system cannot",
    "csi_driver/cache/page_cache.py": "cachestat(2) and mincore(2), which no module of the standard library has",
}


def test_foreign_functions_are_called_in_fuse_and_mounts_alone() -> None:
    """Processes that must end with their parent ask for it with prctl(2), in wiring."""
    found = {str(module) for module in _outside(KERNEL_FLOOR | {"wiring"}) if "CDLL" in module.attributes()}
    assert found == set(FOREIGN_FUNCTIONS)


def test_the_fuse_device_is_known_to_fuse_and_mounts_alone() -> None:
    found = [str(module) for module in _outside(KERNEL_FLOOR) if "/dev/fuse" in module.texts()]
    assert found == []


ENVIRONMENT = {
    "csi_driver/objects/credentials.py": "the ambient identity of the cloud, as boto3 and others find it",
    "csi_driver/objects/s3/ambient_identity.py": "the same, of AWS",
    "csi_driver/objects/s3/identity.py": "the same, of keys in the environment",
    "csi_driver/objects/endpoints.py": "the storage account that belongs to that identity",
    "csi_driver/objects/azure/azure_store.py": "the key or the signature of that account",
    "csi_driver/objects/s3/region.py": "the region of the node, which belongs to that identity",
    "csi_driver/objects/http/connection_pool.py": "the proxies of the node's network",
    "csi_driver/objects/google/google_identity.py": "the ambient identity of Google",
    "csi_driver/objects/google/google_federation.py": "where gcloud is told to find Google's identity services",
    "csi_driver/fuse/mounting.py": "passed on to fusermount3",
}
"""Modules that may read the environment although settings come to them by section, and why."""


def test_the_environment_is_read_where_programs_start_alone() -> None:
    readers = {"environ", "environb", "getenv", "getenvb"}
    found = {str(module) for module in _outside({"cli", "wiring"}) if readers & set(module.attributes())}
    assert found - set(ENVIRONMENT) == set()


SAME_NAME = {
    "event_loop": "the package of one file: csi_driver/event_loop/event_loop.py",
}
"""Names that two files or classes have, and why they may."""


def test_no_file_and_no_public_class_has_the_name_of_another() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        path = module.path.parent if module.path.name in ("__init__.py", "__main__.py") else module.path
        places[path.stem].add(str(path.relative_to(REPOSITORY)))
        for name in module.public_classes():
            places[name].add(str(module))
    twice = {name: sorted(found) for name, found in places.items() if len(found) > 1 and name not in SAME_NAME}
    assert twice == {}
