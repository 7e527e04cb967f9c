"""One error tree, two tables: every leaf has an errno and a gRPC code, and no table knows a class that is not there."""

from __future__ import annotations

import errno

import grpc
import pytest

from csi_driver.fuse.errnos import ERRNOS, errno_of
from csi_driver.model.errors import HayloftError, StoreError
from csi_driver.rpc.statuses import STATUS_OF, leaves, status_of

pytestmark = pytest.mark.promise("S27")

LEAVES = sorted(leaves(), key=lambda cls: cls.__name__)


def test_the_tree_is_walked_to_its_leaves() -> None:
    assert len(LEAVES) >= 30
    assert HayloftError not in LEAVES
    assert StoreError not in LEAVES


def test_every_leaf_has_a_line_in_both_tables_and_no_table_has_another() -> None:
    assert set(STATUS_OF) == set(LEAVES)
    assert set(ERRNOS) == set(LEAVES)


def test_every_status_and_errno_says_something() -> None:
    assert not {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN} & set(STATUS_OF.values())
    assert set(ERRNOS.values()) <= set(errno.errorcode)


def test_a_subclass_from_elsewhere_gets_what_its_base_gets() -> None:
    leaf = LEAVES[0]
    special = type("Special", (leaf,), {})
    error: HayloftError = special.__new__(special)  # type: ignore[call-overload]  # without its arguments
    assert status_of(error) is STATUS_OF[leaf]
    assert errno_of(error) == ERRNOS[leaf]
    assert special not in set(leaves())


def test_a_class_between_root_and_leaf_is_an_internal_failure() -> None:
    assert status_of(HayloftError("raised by mistake")) is grpc.StatusCode.INTERNAL
