"""Objects whose bytes follow from their names, so that a pod can check what it reads without having been told."""

from __future__ import annotations

import hashlib
import random

from hayloft_lab.buckets import client_of
from hayloft_lab.cluster.cluster import Cluster
from hayloft_lab.seaweedfs import SeaweedFsServer

BUCKET = "datasets"
VERSIONED_BUCKET = "versions"


def content(name: str, size: int, version: str = "") -> bytes:
    """The bytes of an object; ``name`` is its key below the prefix of its dataset."""
    return hashlib.shake_256(f"{version}{name}".encode()).digest(size)


def some_files(count: int, *, large: int = 0) -> dict[str, int]:
    """Names and sizes: small files in a few directories, and ``large`` ones of some megabytes."""
    draw = random.Random(count)
    small = {f"part-{number % 7}/sample-{number:05d}.bin": draw.randrange(1, 40_000) for number in range(count)}
    return small | {f"large/shard-{number}.tar": 5_000_000 + number for number in range(large)}


TRAIN = some_files(300, large=2)
"""The dataset ``train`` of the store."""


def upload(
    cluster: Cluster,
    store: SeaweedFsServer,
    prefix: str,
    files: dict[str, int],
    *,
    bucket: str = BUCKET,
    version: str = "",
) -> None:
    """Writes a dataset to the store."""

    def write() -> None:
        client = client_of(store.endpoint, store.access_key_id, store.secret_access_key)
        try:
            for name, size in files.items():
                client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content(name, size, version))
        finally:
            client.close()

    cluster.node.in_the_network(write)


def make_versioned_bucket(cluster: Cluster, store: SeaweedFsServer) -> None:
    """A bucket that keeps the versions of its objects."""

    def make() -> None:
        store.create_bucket(VERSIONED_BUCKET)
        client = client_of(store.endpoint, store.access_key_id, store.secret_access_key)
        try:
            client.put_bucket_versioning(Bucket=VERSIONED_BUCKET, VersioningConfiguration={"Status": "Enabled"})
        finally:
            client.close()

    cluster.node.in_the_network(make)


def delete_version(cluster: Cluster, store: SeaweedFsServer, key: str) -> str:
    """Deletes the oldest version of an object of the bucket with versions, as a lifecycle rule does. Returns its id."""

    def delete() -> str:
        client = client_of(store.endpoint, store.access_key_id, store.secret_access_key)
        try:
            listed = client.list_object_versions(Bucket=VERSIONED_BUCKET, Prefix=key)["Versions"]
            oldest = min((one for one in listed if one["Key"] == key), key=lambda one: one["LastModified"])
            client.delete_object(Bucket=VERSIONED_BUCKET, Key=key, VersionId=oldest["VersionId"])
            return str(oldest["VersionId"])
        finally:
            client.close()

    return cluster.node.in_the_network(delete)


CHECK_ONCE = """
import hashlib, os, sys
root = sys.argv[1]
files = total = 0
for folder, _, names in os.walk(root, onerror=lambda error: sys.exit(f"cannot list: {error}")):
    for name in names:
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            data = file.read()
        if data != hashlib.shake_256(os.path.relpath(path, root).encode()).digest(len(data)):
            sys.exit(f"wrong bytes in {path}")
        files += 1
        total += len(data)
print(f"read {files} files, {total} bytes")
"""
"""Reads and checks every file below a directory, and prints how many."""

READ_ALL = """
import os, time
for folder, _, names in os.walk("/data"):
    for name in names:
        try:
            open(os.path.join(folder, name), "rb").read()
        except OSError as error:
            print(os.path.join(folder, name), error, flush=True)
time.sleep(1000)
"""
"""Reads every file, whatever happens, and stays."""

READ_ALWAYS = """
import hashlib, os, random, sys, time
root = sys.argv[1]
names = [os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names]
count = errors = 0
reported = time.time()
print(f"reading {len(names)} files", flush=True)
while True:
    name = random.choice(names)
    begun = time.time()
    try:
        with open(os.path.join(root, name), "rb", buffering=0) as file:
            # So that the next reader of the file asks the file system again.
            data = file.readall()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if data != hashlib.shake_256(name.encode()).digest(len(data)):
            print(f"wrong {name}", flush=True)
    except OSError as error:
        print(f"error {name}: {error}", flush=True)
        time.sleep(0.2)
    ended = time.time()
    count += 1
    if ended - begun > 0.25:
        print(f"stall {begun:.3f} {ended - begun:.3f}", flush=True)
    if ended - reported > 0.5:
        print(f"checked {ended:.3f} {count}", flush=True)
        reported = ended
"""
"""Reads and checks files at random until it is ended. Prints wrong bytes, errors, waits of more than 0.25 s with the
time of their begin, and twice a second the time and how many files were read."""
