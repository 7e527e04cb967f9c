"""Every error of the tree has an errno that the kernel accepts."""

from __future__ import annotations

import errno

import pytest

from csi_driver.fuse.errnos import ERRNOS, errno_of
from csi_driver.model import errors as e


def _leaves(kind: type[e.HayloftError]) -> set[type[e.HayloftError]]:
    below = [subclass for subclass in kind.__subclasses__() if subclass.__module__ == e.__name__]
    return set().union(*map(_leaves, below)) if below else {kind}


def test_every_leaf_of_the_error_tree_has_an_errno() -> None:
    assert _leaves(e.HayloftError) == set(ERRNOS)


def test_every_errno_is_one_that_exists_and_none_means_success() -> None:
    assert all(number in errno.errorcode for number in ERRNOS.values())


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (e.ObjectChanged("k"), errno.ESTALE),
        (e.AccessDenied("k"), errno.EACCES),
        (e.ReadOnlyVolume("v"), errno.EROFS),
        (e.Interrupted("r"), errno.EINTR),
        (e.HayloftError("without a leaf"), errno.EIO),
        (KeyError("a defect"), errno.EIO),
    ],
)
def test_errors_have_the_errno_that_an_application_understands(error: Exception, number: int) -> None:
    assert errno_of(error) == number
