"""Numbers of system calls and of ioctls, on x86-64 and arm64: a wrong one is another call, with our arguments."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Mapping

import pytest

from csi_driver.fuse import passthrough
from csi_driver.model import syscall_numbers
from tests.architecture.source_tree import REPOSITORY

X86_64: Mapping[str, int] = {
    **{"sched_setattr": 314, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432},
    **{"openat2": 437, "mount_setattr": 442, "cachestat": 451},
}
"""arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.18."""
AARCH64: Mapping[str, int] = {
    **{"sched_setattr": 274, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432},
    **{"openat2": 437, "mount_setattr": 442, "cachestat": 451},
}
"""include/uapi/asm-generic/unistd.h of Linux 6.18, whose numbers arm64 has."""


def numbers_for(machine: str) -> dict[str, int]:
    found = {name.lower(): value for name, value in vars(syscall_numbers).items() if name.isupper()}
    return {name: value if isinstance(value, int) else value[machine] for name, value in found.items()}


@pytest.mark.promise("S681")
@pytest.mark.parametrize(("machine", "table"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_each_number_is_that_of_the_kernel(machine: str, table: Mapping[str, int]) -> None:
    assert numbers_for(machine) == table


@pytest.mark.promise("S681")
def test_no_other_module_has_a_number_of_its_own() -> None:
    """What is passed to syscall(2) is a name of the table, or what was looked up in it."""
    known = {name for name in vars(syscall_numbers) if name.isupper()}
    first = re.compile(r"\.syscall\(\s*(?:ctypes\.c_long\()?(?:number_of\.)?([\w.]+)")
    calls = {
        (str(path.relative_to(REPOSITORY)), name)
        for path in (REPOSITORY / "csi_driver").rglob("*.py")
        for name in first.findall(path.read_text())
    }
    others = {call for call in calls if call[1] not in known}
    assert others == {("csi_driver/wiring/listing_process.py", "number")}
    assert len(calls) == len(X86_64)


@pytest.mark.promise("S681")
def test_ioctls_are_encoded_as_on_both_processors() -> None:
    """asm-generic/ioctl.h, which both have: direction, size of the argument, letter and number."""

    def writing(number: int, layout: str) -> int:
        return 1 << 30 | struct.calcsize(layout) << 16 | 229 << 8 | number

    assert passthrough.BACKING_OPEN == writing(1, "=iIQ") == 0x4010E501
    assert passthrough.BACKING_CLOSE == writing(2, "=I") == 0x4004E502


def test_a_long_and_a_pointer_have_64_bits() -> None:
    """Structs of the driver with long integers (timeval), and what passes offsets, assume it."""
    assert (ctypes.sizeof(ctypes.c_long), ctypes.sizeof(ctypes.c_void_p)) == (8, 8)
