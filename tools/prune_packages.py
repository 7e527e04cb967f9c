"""Takes out of a virtual environment what the driver does not load: ``python prune_packages.py /opt/hayloft``.

For the image, whose packages are large for what the driver uses of them. Only whole files go, and from shared objects
what is not read when they are loaded, so what is left behaves as before. Three steps:

1. files are removed, by the table ``REMOVALS``. A row that matches nothing is an error: a new version of the package
   has another layout, and the row has to follow it;
2. libraries that a shared object names but uses no symbol of (``UNUSED_LIBRARIES``) are no longer named, so that they
   can be removed too. This needs the program patchelf;
3. shared objects lose their symbol tables (not the dynamic one). This needs the program strip of binutils.

``tools/check_packages.py`` shows that everything left can still be loaded. Needs the standard library alone, since it
runs while the image is built.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Removal:
    """Files and directories of one directory of site-packages (``""``: of it and of everything below)."""

    directory: str
    names: str
    """A regular expression for the complete name of a file or directory."""
    reason: str
    but: str = ""
    """Names that stay although ``names`` matches."""


REMOVALS = (
    Removal("", r".*\.(h|hpp|c|cc|cpp|pyx|pxd|pxi|pyi)", "sources and stubs: for compilers and type checkers"),
    Removal("pyarrow", r"include|includes|src", "what is left of Arrow's headers and sources"),
    Removal("", r"tests", "tests of the packages, and their data"),
    Removal(
        "pyarrow",
        r".*\.so(\..*)?",
        "Arrow's Flight, S3, JSON, datasets and Substrait. catalog/ uses arrays, compute functions and IPC files, and "
        "of inventories Parquet, ORC and CSV. The libraries are there once more under a second and a third name",
        # _fs and _hdfs, 0.4 MB: datasets of hdfs://, once the image has Java and Hadoop's client.
        but=r"(lib|_compute|_fs|_hdfs|_parquet|_orc|_csv)\..*\.so|lib(arrow|arrow_compute|arrow_python|parquet)\.so\.\d+",
    ),
    Removal(
        "botocore/data",
        r".*(?<!\.json)",
        "services other than S3 and those that give credentials for it",
        but="s3|sts|sso|sso-oidc|signin",
    ),
    Removal(
        "pygments/lexers",
        r".*\.py",
        "languages that rich would colour; the driver prints tables and a progress bar",
        but=r"__init__\.py|_mapping\.py|python\.py|special\.py",
    ),
    Removal(
        "pygments/formatters",
        r".*\.py",
        "formats of files that rich does not write",
        but=r"__init__\.py|_mapping\.py|terminal.*\.py",
    ),
    Removal(
        ".",
        r"pyasn1|pyasn1_modules|cffi|pycparser",
        "google-auth signs with cryptography, which needs of cffi its compiled part alone",
    ),
    Removal("pydantic", r"v1|mypy\.py", "its first version, and a plugin of a type checker"),
    Removal("google", r"api|longrunning|type", "protocols of Google's services: OpenTelemetry uses google.rpc alone"),
    Removal(
        "opentelemetry/semconv/_incubating/attributes",
        r".*_attributes\.py",
        "names of attributes that the SDK does not set",
        but=r"(otel|rpc|service|host|process|os|container)_attributes\.py",
    ),
    Removal(
        "opentelemetry/semconv/_incubating/metrics",
        r".*_metrics\.py",
        "names of metrics that the SDK does not have",
        but=r"otel_metrics\.py",
    ),
    Removal("rich/_unicode_data", r"unicode.*\.py", "widths in older terminals", but=r"unicode17-0-0\.py"),
    Removal("azure/identity", r"aio", "credentials for coroutines"),
    Removal("google/auth", r"aio", "credentials for coroutines"),
    Removal("grpc", r"beta|framework", "interfaces of its first versions"),
    Removal("", r"RECORD|sboms", "lists of files of each package, for pip"),
)

UNUSED_LIBRARIES = ("pyarrow", r"lib(arrow_substrait|arrow_dataset|arrow_acero)\.so\..*")
"""A directory, and the libraries that no shared object left in it needs: pyarrow's build links each of its modules with
all of Arrow's libraries. The linker resolves every symbol in ``tools/check_packages.py``."""


class Stale(Exception):
    """The table does not fit the installed packages."""


def site_packages(environment: Path) -> Path:
    found = sorted(environment.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise Stale(f"{environment}: not a virtual environment of one Python (lib/python3.*/site-packages)")
    return found[0]


def chosen(packages: Path, removal: Removal) -> list[Path]:
    """What a row removes. Raises Stale if that is nothing."""
    directory = packages / removal.directory
    names, but = re.compile(removal.names), re.compile(removal.but or r"(?!)")
    candidates = directory.rglob("*") if not removal.directory else directory.glob("*")
    found = [path for path in candidates if names.fullmatch(path.name) and not but.fullmatch(path.name)]
    if not found:
        raise Stale(f"nothing in {removal.directory or 'site-packages'} matches {removal.names!r}: adapt REMOVALS")
    return found


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        # A directory of an earlier match may have taken it along.
        path.unlink(missing_ok=True)


def shared_objects(packages: Path) -> Iterator[Path]:
    for path in sorted(packages.rglob("*")):
        if re.search(r"\.so(\.\d+)*$", path.name) and path.is_file() and not path.is_symlink():
            yield path


def own_copy(path: Path) -> None:
    """Replaces the file by a copy of itself, so that other hard links to it do not change with it."""
    if path.stat().st_nlink > 1:
        copy = path.with_name(f"{path.name}.copy")
        shutil.copy2(path, copy)
        os.replace(copy, path)


def output(program: str, *arguments: str | Path) -> str:
    """What the program prints. Raises CalledProcessError, and FileNotFoundError without the program."""
    command = [program, *(os.fspath(argument) for argument in arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout  # noqa: S603


def forget_unused_libraries(packages: Path, patchelf: str) -> None:
    """The libraries are named in each file's list of needed ones, which the dynamic linker would look for."""
    directory, libraries = UNUSED_LIBRARIES
    for path in shared_objects(packages / directory):
        unused = [name for name in output(patchelf, "--print-needed", path).split() if re.fullmatch(libraries, name)]
        if unused:
            own_copy(path)
            output(patchelf, *(word for name in unused for word in ("--remove-needed", name)), path)


def refuse_missing_libraries(packages: Path, removed: set[str], patchelf: str) -> None:
    """Raises Stale if a shared object that is left needs a library that was removed. It loads none, so it also tells of
    the packages of another processor."""
    for path in shared_objects(packages):
        if missing := removed.intersection(output(patchelf, "--print-needed", path).split()):
            raise Stale(f"{path.relative_to(packages)} needs {', '.join(sorted(missing))}: adapt REMOVALS")


def strip(packages: Path, program: str) -> None:
    """Before patchelf: strip does not know all that patchelf leaves in a file."""
    for path in shared_objects(packages):
        own_copy(path)
        output(program, "--strip-unneeded", path)


def size(packages: Path) -> float:
    """Megabytes (1,000,000 bytes) of all files."""
    return sum(path.stat().st_size for path in packages.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def prune(environment: Path, patchelf: str, strip_program: str | None = "strip") -> None:
    """Prints what each row saves. Without ``strip_program`` symbol tables stay. Raises Stale, CalledProcessError, and
    OSError for a program that is missing."""
    packages = site_packages(environment)
    left = size(packages)

    def report(what: str) -> None:
        nonlocal left
        before, left = left, size(packages)
        sys.stdout.write(f"{before - left:6.1f} MB  {what}\n")

    libraries = {path.name for path in shared_objects(packages)}
    for removal in REMOVALS:
        for path in chosen(packages, removal):
            remove(path)
        report(f"{removal.directory or 'all packages'}: {removal.reason}")
    # Modules are compiled again where the sources are; what is compiled of removed ones would stay otherwise.
    for path in packages.rglob("__pycache__/*.pyc"):
        if not (path.parent.parent / f"{path.name.partition('.')[0]}.py").exists():
            path.unlink()
    report("compiled modules whose sources are gone")
    if strip_program is not None:
        strip(packages, strip_program)
        report("symbol tables of shared objects")
    forget_unused_libraries(packages, patchelf)
    refuse_missing_libraries(packages, libraries - {path.name for path in shared_objects(packages)}, patchelf)
    sys.stdout.write(f"{left:6.1f} MB  left\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes out of a virtual environment what the driver does not load.")
    parser.add_argument("environment", type=Path, help="the virtual environment; it is changed")
    parser.add_argument("--patchelf", default="patchelf", help="the program")
    parser.add_argument("--strip", default="strip", help="the program; of binutils for the processor of the packages")
    parser.add_argument("--keep-symbols", action="store_true", help="without strip")
    arguments = parser.parse_args()
    try:
        prune(arguments.environment, arguments.patchelf, None if arguments.keep_symbols else arguments.strip)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{error}: {error.stderr.strip()}\n")
        return 1
    except (Stale, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
