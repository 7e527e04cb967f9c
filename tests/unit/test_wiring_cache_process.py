"""What the cache daemon does beside its calls."""

from __future__ import annotations

import threading

import pytest

from csi_driver.wiring.cache_process import every


def test_a_periodic_job_that_fails_is_retried_and_does_not_prevent_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[None] = []
    others = threading.Semaphore(0)

    def fail() -> None:
        failures.append(None)
        raise OSError("no such disk")

    with every(0.001, "test", fail, others.release):
        assert others.acquire(timeout=20)
        assert others.acquire(timeout=20)
    assert len(failures) >= 2
    assert "no such disk" in caplog.text
