"""Here every process of the driver is a new one, as on a node: memory is measured, and what a kill leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.all_in_one import AllInOne
from tests.support.daemons import DaemonBench


@pytest.fixture(scope="package", autouse=True)
def new_processes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DaemonBench, "forked", False)
        patch.setattr(AllInOne, "forked", False)
        yield
