"""The cluster of the tests has the sidecars that the chart installs."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.architecture.kubernetes_files import CHART
from tests.architecture.source_tree import REPOSITORY

MODULES = {
    "provisioner": "external-provisioner/v6",
    "snapshotter": "external-snapshotter/v8",
    "resizer": "external-resizer/v2",
}
SIDECARS: dict[str, str] = yaml.safe_load((CHART / "values.yaml").read_text())["sidecars"]


@pytest.mark.parametrize("sidecar", sorted(MODULES.keys() & SIDECARS.keys()))
def test_a_sidecar_of_the_chart_is_built_in_the_same_version(sidecar: str) -> None:
    module = f"github.com/kubernetes-csi/{MODULES[sidecar]}"
    required = re.findall(rf"^\t{module} (v\S+)", (REPOSITORY / "tools/go/sidecars/go.mod").read_text(), re.MULTILINE)
    assert [SIDECARS[sidecar].rpartition(":")[2]] == required
