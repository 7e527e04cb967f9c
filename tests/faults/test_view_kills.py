"""SIGKILL of the daemon while it builds, mounts and removes views: no incomplete view is shown, and no view is left.

``HAYLOFT_FAULT_COUNT`` is the number of kills: 3 in the suite; ``make faults COUNT=100`` makes more.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from csi_driver.mounts.materialised_views import view_shown_by
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.all_in_one import AllInOne, until
from tests.support.csi_calls import CsiClient

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))

pytestmark = [pytest.mark.fuse, pytest.mark.faults, pytest.mark.timeout(90 + 20 * COUNT)]

FILES = {f"{number % 40:02}/{number:05}": b"%d" % number for number in range(1_500)}
"""Enough for about a tenth of a second of linking."""


@pytest.fixture
def driver() -> Iterator[AllInOne]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    made = AllInOne(home)
    yield made
    made.close()
    shutil.rmtree(home)


@pytest.fixture
def volume(driver: AllInOne) -> csi_pb2.Volume:
    """A staged volume that is completely cached."""
    for name, content in FILES.items():
        path = driver.home / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    client = driver.start()
    volume = client.create("pvc-1", parameters={"url": f"file://{driver.home}/data"})
    (driver.home / "staging").mkdir()
    client.stage(volume, driver.home / "staging")
    assert tree(driver.home / "staging") == FILES
    until(lambda: driver.cached_objects() == len(FILES), "all that was read is in the cache")
    return volume


def tree(root: Path) -> dict[str, bytes]:
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def retry_until_it_works(call: Callable[[], object]) -> None:
    def works() -> bool:
        with suppress(grpc.RpcError):
            call()
            return True
        return False

    until(works, "the call works")


def runs_again(driver: AllInOne, killed: int) -> bool:
    return driver.children().get("cache") not in (None, killed)


@pytest.mark.promise("S108")
def test_a_daemon_killed_while_it_builds_leaves_no_view_and_the_next_publish_works(
    driver: AllInOne, volume: csi_pb2.Volume
) -> None:
    assert isinstance(driver.client, CsiClient)
    client, draw = driver.client, random.Random(COUNT)
    staging, target, views = driver.home / "staging", driver.home / "target", driver.cache / "views"

    def publish() -> None:
        client.publish(volume, staging, target)

    def unpublish() -> None:
        client.unpublish(volume.volume_id, target)

    for number in range(COUNT):
        for call in (publish, unpublish):
            if (number + (call is publish)) % 2:
                call()
                continue
            daemon = driver.children()["cache"]
            caller = threading.Thread(target=lambda call=call: retry_until_it_works(call))
            caller.start()
            time.sleep(draw.uniform(0.0, 0.25))
            os.kill(daemon, signal.SIGKILL)
            caller.join()
            until(partial(runs_again, driver, daemon), "it is started again")
            until(driver.is_ready, "the driver is ready again")
            if call is publish:
                assert tree(target) == FILES
        assert MountTable.read().at(target) is None
        until(lambda: list(views.iterdir()) == [], "no view stays")
    publish()
    entry = MountTable.read().at(target)
    assert entry is not None
    assert view_shown_by(entry), "the volume is still completely cached"
    assert tree(target) == FILES
