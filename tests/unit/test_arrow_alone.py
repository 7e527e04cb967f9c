"""Arrow without numpy and pandas, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_CODE = """
import sys
from csi_driver.catalog.arrow_alone import import_arrow, use_arrow_alone
{first}
import_arrow()
import csi_driver.catalog.manifest
import pyarrow, pyarrow.compute
pyarrow.compute.add(pyarrow.array([1]), 1)
print(*sorted({{"numpy", "pandas"}} & sys.modules.keys()))
import numpy, pandas
print(numpy.arange(2).sum(), pandas.Series([2]).sum(), pyarrow.array([3]).to_pylist())
"""


def _run(first: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(first=first)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.promise("S285")
def test_a_process_of_the_driver_has_neither_and_others_can_import_them_later() -> None:
    assert _run("use_arrow_alone()") == ["", "1 2 [3]"]


def test_a_process_that_is_not_the_drivers_has_what_arrow_finds() -> None:
    assert _run("") == ["numpy pandas", "1 2 [3]"]


def test_where_numpy_is_imported_before_arrow_has_it() -> None:
    assert _run("import numpy; use_arrow_alone()") == ["numpy pandas", "1 2 [3]"]
