"""The check that everything in the image is for its processor: files of all kinds, and what is wrong with them."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from tools.check_machine_code import PROCESSORS, fault, machine_code, main

X86_64, AARCH64 = PROCESSORS["x86_64"], PROCESSORS["aarch64"]


def shared_object(
    machine: int, alignment: int, *, address: int = 0, bits: int = 2, endianness: int = 1, segments: int = 2
) -> bytes:
    """Headers of one, the first segment of which is none that is mapped."""
    identification = b"\x7fELF" + bytes((bits, endianness, 1)) + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", identification, 3, machine, 1, 0, 64, 0, 0, 64, 56, segments, 64, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 4, 0, 0, 0, 0, 0, 4)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, 176, 176, alignment)
    return header + (note + load)[: 56 * segments]


GOOD = shared_object(183, 65536)


@pytest.mark.promise("S680")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD, None),
        (shared_object(183, 65536, address=0x20000), None),
        (shared_object(183, 1 << 21), None),
        (b"#!/bin/sh\n", None),
        (b"", None),
        (shared_object(62, 65536), "the processor x86_64"),
        (shared_object(40, 65536), "the processor number 40"),
        (shared_object(183, 65536, bits=1), "for 32 bits"),
        (shared_object(183, 65536, endianness=2), "big-endian"),
        (shared_object(183, 4096), "aligned to 4096 bytes: kernels with pages of 65536 refuse it"),
        (shared_object(183, 0), "aligned to 0 bytes"),
        (shared_object(183, 65536, address=0x1000), "kernels with pages of 65536 refuse it"),
        (GOOD[:40], "header is cut off"),
        (GOOD[:100], "program headers are cut off"),
    ],
)
def test_a_file_of_arm64(tmp_path: Path, content: bytes, reason: str | None) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    found = fault(path, AARCH64)
    assert found is None if reason is None else found and reason in found


def test_pages_of_x86_64_have_4_kib(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(shared_object(62, 4096, address=0x3000))
    assert fault(path, X86_64) is None
    path.write_bytes(GOOD)
    assert fault(path, X86_64) == "it is for the processor aarch64"


def test_machine_code_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("lib.so.1", "bin/program"):
        (tmp_path / name).write_bytes(GOOD)
    (tmp_path / "text.so").write_text("INPUT(lib.so.1)")
    (tmp_path / "lib.so").symlink_to("lib.so.1")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert {path.name for path in machine_code(tmp_path)} == {"lib.so.1", "program"}


@pytest.mark.promise("S680")
def test_one_file_of_another_processor_fails_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (tmp_path / f"{number}.so").write_bytes(GOOD)
    assert main(["--machine", "aarch64", os.fspath(tmp_path)]) == 0
    assert capsys.readouterr().out == "3 files of machine code, 0 faults\n"
    (tmp_path / "1.so").write_bytes(shared_object(62, 65536))
    assert main(["--machine", "aarch64", os.fspath(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"{tmp_path}/1.so: not for aarch64: it is for the processor x86_64\n"
    assert printed.out == "3 files of machine code, 1 faults\n"


def test_a_directory_without_machine_code_fails_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or a wrong path in the Dockerfile would check nothing."""
    assert main(["--machine", "x86_64", os.fspath(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path}: there is no machine code below it\n"


def test_the_interpreter_of_this_machine_passes() -> None:
    assert main([os.fspath(Path(sys.executable).resolve().parent)]) == 0
