"""The lock files have what both distributions ask for, each package once, with hashes and without addresses."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.source_tree import REPOSITORY

OURS = {"hayloft", "hayloft-bench"}
FILES = ("build", "driver", "bench", "peers", "dev", "docs")
REMEDY = "run: .ci/lock --keep"


def lines(file: str) -> list[str]:
    """Logical lines: a package with its hashes."""
    text = (REPOSITORY / "locks" / f"{file}.txt").read_text()
    joined = text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def locked(*files: str) -> dict[str, list[Requirement]]:
    """Several versions of a package differ in their markers."""
    found: dict[str, list[Requirement]] = {}
    for file in files:
        for line in lines(file):
            requirement = Requirement(line.partition("--hash")[0].strip())
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def project(folder: str) -> dict[str, Any]:
    metadata: dict[str, Any] = tomllib.loads((REPOSITORY / folder / "pyproject.toml").read_text())["project"]
    return metadata


def dependencies(folder: str, extra: str | None = None) -> list[Requirement]:
    metadata = project(folder)
    texts = metadata["optional-dependencies"][extra] if extra else metadata["dependencies"]
    return [requirement for requirement in map(Requirement, texts) if canonicalize_name(requirement.name) not in OURS]


@pytest.mark.parametrize("file", FILES)
def test_every_package_has_hashes_and_no_address(file: str) -> None:
    assert lines(file)
    for line in lines(file):
        assert re.fullmatch(r"[a-z0-9-]+==[^ ]+( ; [^-]+)?( +--hash=sha256:[0-9a-f]{64})+ *", line), line
    text = (REPOSITORY / "locks" / f"{file}.txt").read_text()
    assert not re.search(r"://|@|^\s*-[^-]|--(index|extra|find)", text, re.MULTILINE)


def test_each_package_is_in_one_file() -> None:
    """On Linux: colorama is in two, once for Windows."""
    names = [
        name
        for file in FILES
        for name, requirements in locked(file).items()
        if any(one.marker is None or one.marker.evaluate({"sys_platform": "linux"}) for one in requirements)
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("folder", "extra", "files"),
    [
        (".", None, ["driver"]),
        ("benchmarks", None, ["driver", "bench"]),
        ("benchmarks", "peers", ["peers"]),
        (".", "dev", ["build", "driver", "bench", "peers", "dev"]),
        (".", "migrate", ["dev"]),
        (".", "docs", ["docs"]),
    ],
)
def test_the_locked_versions_are_what_pyproject_allows(folder: str, extra: str | None, files: list[str]) -> None:
    found = locked(*files)
    for requirement in dependencies(folder, extra):
        versions = found.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement} is in none of {files}; {REMEDY}"
        for version in versions:
            (exact,) = (specifier.version for specifier in version.specifier)
            assert requirement.specifier.contains(exact), f"{requirement}, but {version} is locked; {REMEDY}"


def test_torch_is_not_locked() -> None:
    assert "torch" not in locked(*FILES)
