"""What is in the two wheels, and what the driver's commands import where the driver's wheel alone is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import typer.main

from csi_driver.cli.typer_application import app

REPOSITORY = Path(__file__).resolve().parents[2]

IMPORTED = """
import importlib, pkgutil, sys
import csi_driver
from csi_driver.cli.application import run_command

for arguments in (["--help"], *([name, "--help"] for name in sys.argv[1:])):
    assert run_command(arguments) == 0, arguments
for module in pkgutil.walk_packages(csi_driver.__path__, "csi_driver."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
packages = {name.partition(".")[0] for name in sys.modules}
found = packages & {"hayloft_bench", "hayloft_lab", "benchmarks", "tests", "boto3"}
sys.exit(f"imported: {found}" if found else 0)
"""
"""Runs the help of each command, imports every module of the driver, and fails if that imported the benchmark."""


def build(source: Path, out: Path) -> Path:
    """The wheel of a copy of the distribution: setuptools writes into the tree that it builds."""
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__", "build", "dist", ".*")
    copy = shutil.copytree(source, out / "source", ignore=ignored)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy)),
        ],
        check=True,
        timeout=100,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def driver_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def bench_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY / "benchmarks", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def driver_python(driver_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the driver's wheel and the packages of this environment, but neither of the two distributions as
    this environment has them."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("hayloft", "__editable__")) and package.suffix != ".pth":
            (packages / package.name).symlink_to(package)
    with zipfile.ZipFile(driver_wheel) as wheel:
        wheel.extractall(packages)
    return folder / "bin" / "python"


def folders(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name.partition("/")[0] for name in archive.namelist()}


def files(folder: str, *patterns: str) -> set[str]:
    return {
        str(path.relative_to(REPOSITORY / folder))
        for pattern in patterns
        for path in (REPOSITORY / folder).glob(pattern)
        if path.is_file()
    }


def test_the_wheel_of_the_driver_has_csi_driver_alone(driver_wheel: Path) -> None:
    assert folders(driver_wheel) == {"csi_driver", "hayloft-0.1.0.dist-info"}
    with zipfile.ZipFile(driver_wheel) as archive:
        assert set(archive.namelist()) >= files(
            ".", "csi_driver/**/*.py", "csi_driver/py.typed", "csi_driver/wiring/page/*"
        )


def test_the_wheel_of_the_benchmark_has_its_two_packages_and_the_traces(bench_wheel: Path) -> None:
    assert folders(bench_wheel) == {"hayloft_bench", "hayloft_lab", "hayloft_bench-0.1.0.dist-info"}
    expected = files("benchmarks", "hayloft_*/**/*.py", "hayloft_*/py.typed", "hayloft_bench/micro/traces/*.gz")
    with zipfile.ZipFile(bench_wheel) as archive:
        assert set(archive.namelist()) >= expected


def test_the_driver_imports_nothing_of_the_benchmark(driver_python: Path, tmp_path: Path) -> None:
    commands = sorted(set(typer.main.get_command(app).commands) - {"bench", "demo"})  # type: ignore[attr-defined]
    assert "inspect" in commands
    run = subprocess.run(
        [str(driver_python), "-I", "-c", IMPORTED, *commands],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_without_the_benchmark_its_commands_name_the_package_to_install(
    driver_python: Path, tmp_path: Path, command: str
) -> None:
    run = subprocess.run(
        [str(driver_python), "-I", "-m", "csi_driver.cli", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "pip install 'hayloft[bench]'" in line
