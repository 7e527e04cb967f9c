"""Prints the options with which pip installs wheels for the processor of the image: ``python wheel_options.py arm64``.

None where that is the processor of the machine that builds, or is not named: pip knows it then. Otherwise the wheels
are installed by their names alone, with the pip of this machine, into a directory (``--into``): nothing of them is run,
so nothing has to be emulated. What is installed so has no commands; the driver, which has one, is installed afterwards
as always. Needs the standard library alone, since it runs while the image is built.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The names that images use, and those that ``uname -m`` prints."""

_OLDEST = 17
"""manylinux2014: the C library 2.17, the oldest that wheels name."""


def options(architecture: str, machine: str, c_library: str, into: Path) -> list[str]:
    """``machine`` is that of the builder, and ``c_library`` what ``os.confstr("CS_GNU_LIBC_VERSION")`` says of it. The
    image has the same, as both are of one distribution. Raises ValueError."""
    if architecture not in ("", *MACHINES):
        raise ValueError(f"{architecture}: the image is built for {' and '.join(MACHINES)} alone")
    wanted = MACHINES.get(architecture, machine)
    if wanted == machine:
        return []
    name, _, version = c_library.partition(" ")
    major, _, minor = version.partition(".")
    if name != "glibc" or major != "2" or not minor.isdecimal():
        raise ValueError(f"{c_library}: wheels for another processor need the GNU C library 2")
    # pip wants each version of the C library named that a wheel may have been built for.
    platforms = [f"manylinux_2_{one}_{wanted}" for one in range(int(minor), _OLDEST - 1, -1)]
    words = [word for one in (*platforms, f"manylinux2014_{wanted}") for word in ("--platform", one)]
    return [*words, "--only-binary=:all:", "--target", os.fspath(into)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints pip's options for the processor of the image.")
    parser.add_argument("architecture", nargs="?", default="", help="amd64 or arm64 (default: that of this machine)")
    parser.add_argument("--into", type=Path, required=True, help="the site-packages of the image's environment")
    arguments = parser.parse_args()
    try:
        c_library = os.confstr("CS_GNU_LIBC_VERSION") or "no glibc"
        words = options(arguments.architecture, os.uname().machine, c_library, arguments.into)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(" ".join(words) + "\n" if words else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
