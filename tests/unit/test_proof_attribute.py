"""Proofs of access in the extended attribute of an object file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi_driver.cache.disk import LocalDisk
from csi_driver.cache.proof_attribute import MOST_PROOFS, NAME, AccessProof, read_proof, write_proof

DISK = LocalDisk()


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "object", os.O_RDWR | os.O_CREAT, 0o444)
    yield descriptor
    os.close(descriptor)


def credential(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_file_without_the_attribute_and_a_file_that_does_not_exist_prove_nothing(
    descriptor: int, tmp_path: Path
) -> None:
    assert read_proof(DISK, descriptor, credential(1)) == 0
    assert read_proof(DISK, str(tmp_path / "none"), credential(1)) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(proofs=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 2**32 - 1)), max_size=40))
def test_the_newest_proofs_of_the_last_credentials_are_found(descriptor: int, proofs: list[tuple[int, int]]) -> None:
    expected: dict[int, int] = {}
    for place, (number, at_s) in enumerate(proofs):
        write_proof(DISK, descriptor, AccessProof(credential(number), at_s), new_file=place == 0)
        expected.pop(number, None)
        expected[number] = at_s
    last = dict(list(expected.items())[-MOST_PROOFS:])
    found = {number: read_proof(DISK, descriptor, credential(number)) for number in range(21)}
    if proofs:
        assert found == {number: last.get(number, 0) for number in range(21)}


def test_the_bytes_of_two_neighbours_are_no_third_credential(descriptor: int) -> None:
    write_proof(DISK, descriptor, AccessProof(bytes([1] * 16), 0x01010101))
    write_proof(DISK, descriptor, AccessProof(bytes([2] * 16), 0x01010101))
    assert read_proof(DISK, descriptor, bytes([1] * 16)) == 0x01010101
    packed = os.getxattr(descriptor, NAME)
    assert read_proof(DISK, descriptor, packed[10:26]) == 0


def test_three_proofs_fit_into_an_inode_of_ext4(descriptor: int) -> None:
    for number in range(3):
        write_proof(DISK, descriptor, AccessProof(credential(number), 1))
    assert os.fstat(descriptor).st_blocks == 0


def test_a_file_system_without_attributes_proves_nothing_and_is_no_error() -> None:
    descriptor = os.open("/proc/self/comm", os.O_RDONLY)
    try:
        write_proof(DISK, descriptor, AccessProof(credential(1), 1))
        assert read_proof(DISK, descriptor, credential(1)) == 0
    finally:
        os.close(descriptor)
