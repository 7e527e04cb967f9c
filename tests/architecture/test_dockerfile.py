"""The Dockerfile copies what exists, installs what is locked, and starts what is installed."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib

import pytest
import yaml

from tests.architecture.kubernetes_files import DEPLOY, Container, containers, documents
from tests.architecture.source_tree import REPOSITORY

ALL = containers(documents(DEPLOY))


def instructions() -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined, comments left out."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copied() -> list[str]:
    """Sources of COPY that come from the repository."""
    arguments = [rest.split() for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    return [source for words in arguments for source in words[:-1]]


def test_every_copied_file_exists() -> None:
    assert copied()
    assert [source for source in copied() if not (REPOSITORY / source).exists()] == []


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert sent == set(copied())


def test_the_image_has_the_driver_alone() -> None:
    assert not [source for source in copied() if source.startswith(("benchmarks", "tests"))]


def test_every_package_is_installed_with_its_hash() -> None:
    installations = [
        part for word, rest in instructions() if word == "RUN" for part in rest.split("&&") if " install " in part
    ]
    by_pip = [part for part in installations if "/pip " in part]
    assert any("locks/driver.txt" in part for part in by_pip)
    # The wheel of Hayloft itself was built in the same stage.
    assert [part for part in by_pip if "--require-hashes" not in part and "/wheels/hayloft-" not in part] == []


def test_everything_that_the_build_reads_is_copied() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert wanted <= set(copied())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(any(fnmatch.fnmatch(source, pattern) for source in copied()) for pattern in packages)


def test_both_stages_start_from_the_base_image_of_the_argument() -> None:
    """The first one on the processor of the builder, where the base may have another name."""
    bases = [rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"]
    assert bases == ["--platform=${BUILDPLATFORM} ${BUILD_IMAGE}", "--platform=${TARGETPLATFORM} ${BASE_IMAGE}"]
    assert [word for word, _ in instructions()[:2]] == ["ARG", "ARG"]
    assert instructions()[0][1].startswith("BASE_IMAGE=")
    assert instructions()[1][1] == "BUILD_IMAGE=${BASE_IMAGE}"


def test_what_runs_is_checked_on_its_own_processor() -> None:
    """The first stage may be of another one, where the packages cannot be loaded."""
    words = [word for word, _ in instructions()]
    last = len(words) - 1 - words[::-1].index("FROM")
    checks = ("tools/check_machine_code.py", "tools/check_packages.py")
    run = [check for word, rest in instructions()[last:] if word == "RUN" for check in checks if check in rest]
    assert run == list(checks)


@pytest.mark.promise("S683")
def test_nothing_in_kubernetes_asks_for_a_processor() -> None:
    """A cluster may have nodes of both; the image of each is chosen by its container runtime."""
    pinned = re.compile(r"kubernetes\.io/arch|\b(amd64|arm64|x86_64|aarch64)\b")
    files = [path for path in (REPOSITORY / "deploy").rglob("*") if path.suffix in (".yaml", ".yml", ".json", ".tpl")]
    assert len(files) > 20
    assert [path for path in files if pinned.search(path.read_text())] == []


def test_the_image_starts_the_installed_command() -> None:
    (entry,) = (rest for word, rest in instructions() if word == "ENTRYPOINT")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert json.loads(entry)[0] in project["scripts"]


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    """``runAsNonRoot`` of Kubernetes refuses a name, since only the image knows its number."""
    (user,) = (rest for word, rest in instructions() if word == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.mark.parametrize("container", [one for one in ALL if one.is_ours], ids=lambda one: f"{one.document}/{one.name}")
def test_what_needs_root_asks_for_it(container: Container) -> None:
    """Only the controller needs none of it."""
    if "args" in container.body and container.command in ("node", "cache", "keeper"):
        assert container.body["securityContext"]["runAsUser"] == 0


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f'image.version="{version}"' in (REPOSITORY / "Dockerfile").read_text()
    for path in sorted((REPOSITORY / "deploy").rglob("*.yaml")):
        assert set(re.findall(r"image: hayloft/hayloft:(\S+)", path.read_text())) <= {version}, path
        assert set(re.findall(r"newTag: (\S+)", path.read_text())) <= {version}, path
    chart = yaml.safe_load((REPOSITORY / "deploy/chart/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
