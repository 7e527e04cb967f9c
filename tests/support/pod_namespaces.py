"""User namespaces as those of pods with ``hostUsers: false``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST_ID = 1_000_000
"""Of the node, for 0 in the pod."""


@contextmanager
def pod_user_namespace() -> Iterator[int]:
    """A descriptor of a namespace that maps the first 65,536 users and groups to those of the node from ``FIRST_ID``
    on."""
    command = ["unshare", "--user", "sh", "-c", "echo ready; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        proc = Path(f"/proc/{process.pid}")
        for name in ("uid_map", "gid_map"):
            (proc / name).write_text(f"0 {FIRST_ID} 65536\n")
        descriptor = os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        process.stdin.close()
        try:
            yield descriptor
        finally:
            os.close(descriptor)
