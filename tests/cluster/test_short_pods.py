"""Pods that come and go leave nothing on the node."""

from __future__ import annotations

import pytest

from tests.cluster.datasets import TRAIN
from tests.cluster.installation import Installation, claim, inline, of_claim, pod

pytestmark = pytest.mark.promise("S313")

PODS = 20


def test_twenty_short_pods_of_a_cron_job(hayloft: Installation) -> None:
    """One after the other, as a CronJob starts them, by turns with a claim and with an inline volume."""
    hayloft.kubectl.apply(claim("cron", "train"))
    volumes = [of_claim("cron"), inline(hayloft.parameters("train"))]
    processes = ("cache", "node", "keeper")
    before: dict[str, int] = {}
    for number in range(PODS):
        template = pod("", volumes[number % 2])["spec"]
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"cron-{number}", "namespace": "default"},
            "spec": {"backoffLimit": 0, "template": {"spec": template}},
        }
        hayloft.kubectl.apply(job)
        hayloft.kubectl("wait", "--for=condition=complete", f"job/cron-{number}", "--timeout=60s")
        assert f"read {len(TRAIN)} files" in hayloft.kubectl("logs", f"job/cron-{number}")
        hayloft.kubectl.delete("job", f"cron-{number}")
        if number == 1:  # what is made once is made by now
            hayloft.wait_until_clean()
            before = {name: hayloft.descriptors(name) for name in processes}
    hayloft.wait_until_clean()
    after = {name: hayloft.descriptors(name) for name in processes}
    # Connections to the store are kept for the next request, a few more or less.
    assert all(after[name] <= before[name] + 5 for name in processes), (before, after)
    hayloft.kubectl.delete("pvc", "cron")
