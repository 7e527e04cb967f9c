"""Checks that all machine code in directories is of one processor: ``python check_machine_code.py /opt/hayloft``.

For the image, which is built for two processors, one of them mostly by emulation. A wheel of another processor, or a
library that patchelf or strip has left unfit for the larger pages of some arm64 kernels, cannot be loaded; this says so
when the image is built, and without loading anything, so also of the packages of another processor. Symbolic links are
not followed. Exits with 1 and names the files. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Processor:
    number: int
    """``e_machine`` of the ELF header."""
    page_bytes: int
    """The largest pages that a Linux kernel for it has. Segments are mapped whole, so they begin at multiples."""


PROCESSORS = {"x86_64": Processor(62, 4096), "aarch64": Processor(183, 65536)}
"""By the name that ``uname -m`` prints. Kernels for arm64 have pages of 4, 16 or 64 KiB."""

_MAGIC = b"\x7fELF"
_KIND = {1: "32", 2: "64"}
_LITTLE_ENDIAN = 1
_HEADER = struct.Struct("<16sHHIQQQIHHH")
"""Identification, type, machine, version, entry, offsets of program and section headers, flags, size of this header,
and size and number of program headers."""
_SEGMENT = struct.Struct("<IIQQQQQQ")
"""Type, flags, offset in the file, address, physical address, size in the file and in memory, alignment."""
_LOAD = 1


def fault(path: Path, processor: Processor) -> str | None:
    """What is wrong with a file of machine code. None: nothing, or it is another kind of file. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if not head.startswith(_MAGIC):
            return None
        if len(head) < _HEADER.size:
            return "its ELF header is cut off"
        identification, _, machine, _, _, at, _, _, _, entry_bytes, count = _HEADER.unpack(head)
        if (kind := _KIND.get(identification[4])) != "64" or identification[5] != _LITTLE_ENDIAN:
            return f"it is for {kind or 'unknown'} bits or a big-endian processor"
        if machine != processor.number:
            return f"it is for the processor {_name(machine)}"
        if count and entry_bytes != _SEGMENT.size:
            return f"its program headers have {entry_bytes} bytes"
        file.seek(at)
        table = file.read(count * _SEGMENT.size)
    if len(table) < count * _SEGMENT.size:
        return "its program headers are cut off"
    for kind_of_segment, _, offset, address, _, _, _, align_bytes in _SEGMENT.iter_unpack(table):
        if kind_of_segment == _LOAD and (
            align_bytes % processor.page_bytes or not align_bytes or (offset - address) % processor.page_bytes
        ):
            return (
                f"a segment is aligned to {align_bytes} bytes: kernels with pages of {processor.page_bytes} refuse it"
            )
    return None


def machine_code(directory: Path) -> Iterator[Path]:
    """Every file that begins as ELF does, below the directory. Raises OSError."""
    for place, _, names in os.walk(directory):
        for name in sorted(names):
            path = Path(place, name)
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) == _MAGIC:
                    yield path


def _name(number: int) -> str:
    return next((name for name, one in PROCESSORS.items() if one.number == number), f"number {number}")


def main(words: Sequence[str] | None = None) -> int:
    """``words``: the arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description="Checks that all machine code is of one processor.")
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--machine", choices=sorted(PROCESSORS), help="as uname -m prints it (default: this machine's)")
    arguments = parser.parse_args(words)
    machine = arguments.machine or os.uname().machine
    if machine not in PROCESSORS:
        sys.stderr.write(f"{machine}: the image is built for {' and '.join(PROCESSORS)} alone\n")
        return 1
    checked = wrong = 0
    for directory in arguments.directories:
        found = list(machine_code(directory))
        if not found:
            sys.stderr.write(f"{directory}: there is no machine code below it\n")
            wrong += 1
        for path in found:
            checked += 1
            if reason := fault(path, PROCESSORS[machine]):
                sys.stderr.write(f"{path}: not for {machine}: {reason}\n")
                wrong += 1
    sys.stdout.write(f"{checked} files of machine code, {wrong} faults\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
