"""How many locks one cold small object takes, by lock: a count, which does not depend on the machine's load.

Run it as ``python -m hayloft_bench.micro.lock_counts``, with ``--against CHECKOUT`` for another one too. Each count is
a process of its own, which reads objects of a SeaweedFS server on this machine one after the other through the
read-through cache: open, one read, close. Locks of Python's own library are not counted.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from hayloft_lab.seaweedfs import SeaweedFsServer

BUCKET = "locks"
SIZE_BYTES = 110_000
WARM = 20
"""Objects that are read first, so that connections are open and modules are imported."""
_allocate = threading.Lock


class _CountedLock:
    """A lock of the driver that counts how often it was taken."""

    made: list[_CountedLock] = []  # noqa: RUF012  # all of the process

    def __init__(self) -> None:
        self._lock = _allocate()
        frame = sys._getframe(1)
        self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{frame.f_lineno}"
        self.is_own = f"{os.sep}csi_driver{os.sep}" in frame.f_code.co_filename
        self.taken = 0
        self.made.append(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._lock.acquire(blocking, timeout):
            return False
        self.taken += 1  # under the lock
        return True

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def count(endpoint: str, access_key_id: str, secret_access_key: str, objects: int, directory: Path) -> None:
    """Reads the objects and prints the counts."""
    threading.Lock = _CountedLock  # type: ignore[assignment]
    from csi_driver.cache.chunk_store import ChunkStore
    from csi_driver.event_loop.event_loop import EventLoop
    from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
    from csi_driver.model.snapshot import ObjectVersion
    from csi_driver.objects.store_factory import open_store
    from csi_driver.reading.read_through_cache import ReadThroughCache
    from csi_driver.reading.services import ObjectSource
    from csi_driver.settings import ChunkStoreSettings, ReadingSettings

    chunk_store = ChunkStore(ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0))
    event_loop = EventLoop()
    cache = ReadThroughCache(chunk_store, ReadingSettings(), event_loop)
    event_loop.start()
    keys = Credentials({"access_key_id": access_key_id, "secret_access_key": secret_access_key})
    store = open_store(DatasetUrl.parse(f"s3://{BUCKET}/"), StoreOptions(endpoint=endpoint), keys)
    infos = [store.stat(f"{number:06}") for number in range(WARM + objects)]

    def read(number: int) -> None:
        info, answers = infos[number], queue.SimpleQueue[Any]()
        version = ObjectVersion("d", store.endpoint, BUCKET, info.key, info.etag, info.size_bytes)
        cache.open(ObjectSource(version, store), answers.put)
        opened = answers.get(timeout=60)
        opened.read(0, info.size_bytes, answers.put)
        answers.get(timeout=60)
        opened.close()

    for number in range(WARM):
        read(number)
    before = {lock: lock.taken for lock in _CountedLock.made}
    for number in range(WARM, WARM + objects):
        read(number)
    taken: Counter[str] = Counter()
    for lock in _CountedLock.made:
        if lock.is_own:
            taken[lock.place] += lock.taken - before.get(lock, 0)
    for place, times in taken.most_common():
        if times >= objects / 10:
            print(f"  {times / objects:5.1f}  {place}")
    print(f"  {sum(taken.values()) / objects:5.1f}  of an object, all together", flush=True)
    os._exit(0)


def _fill(server: SeaweedFsServer, objects: int) -> None:
    server.create_bucket(BUCKET)
    store = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    content = random.Random(3).randbytes(SIZE_BYTES)
    for number in range(objects):
        obstore.put(store, f"{number:06}", content[number:] + content[:number])


def main() -> None:
    """The counts of one or two checkouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout; without it this one is counted alone")
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--count", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        endpoint, access_key_id, secret_access_key, directory = arguments.count
        count(endpoint, access_key_id, secret_access_key, arguments.objects, Path(directory))
        return
    here = Path(__file__).resolve().parents[3]
    checkouts = [here] if arguments.against is None else [arguments.against.resolve(), here]
    with tempfile.TemporaryDirectory(prefix="locks-") as home, SeaweedFsServer(Path(home, "store")) as server:
        _fill(server, WARM + arguments.objects)
        for number, checkout in enumerate(checkouts):
            directory = Path(home, str(number))
            directory.mkdir()
            print(checkout, flush=True)
            given = [server.endpoint, server.access_key_id, server.secret_access_key, str(directory)]
            command = [sys.executable, __file__, f"--objects={arguments.objects}", "--count", *given]
            paths = os.pathsep.join([str(checkout), str(here / "benchmarks")])
            subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": paths}, check=True)


if __name__ == "__main__":
    main()
