"""Ways to have a dataset on a node: Hayloft's warmup, and programs that copy."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import TargetFacts
from hayloft_bench.run import usage
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.targets.base import REGION, cannot_mount
from hayloft_lab.driver import Driver
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet
from hayloft_lab.nginx_files import NginxFiles
from hayloft_lab.programs import program
from hayloft_lab.seaweedfs import SeaweedFsServer

BUCKET, PREFIX = "bench", "data"
TRANSFERS = 16
LIMIT_S = 3600.0


class Copied(NamedTuple):
    """A dataset is on the node. ``cpu_s`` is of the processes that brought it there."""

    seconds: float
    cpu_s: float
    directory: Path
    """Below which its bytes are."""


@dataclass(frozen=True)
class Node:
    """Where a copy goes: an empty directory, with a path that is short enough for sockets."""

    directory: Path
    server: SeaweedFsServer | NginxFiles
    stopping: Stopping
    touch_memory: Callable[[], None]
    """To be called when the time begins, and not before: the host takes back what is free."""

    @property
    def store(self) -> SeaweedFsServer:
        """For ways that know buckets alone."""
        assert isinstance(self.server, SeaweedFsServer)
        return self.server


Copy = Callable[[Node], Copied]


@dataclass(frozen=True)
class Copier:
    """One way. ``unavailable`` says why it cannot be used here; empty if it can."""

    facts: TargetFacts
    copy: Copy
    unavailable: Callable[[], str]
    setting: str


def _hayloft(node: Node) -> Copied:
    """From the claim until the pod would start: CreateVolume lists, and NodeStageVolume waits for the warmup."""
    driver = Driver(node.directory)
    with contextlib.ExitStack() as stack:
        with node.stopping.shield():
            stack.callback(driver.stop)
            driver.start()
        kubelet = EmulatedKubelet(driver.endpoint, node.directory / "kubelet")
        stack.callback(kubelet.close)
        driver.wait_until_ready(kubelet)
        node.touch_memory()
        before_s = usage.of_tree(driver.pid, driver.cache_directory).cpu_s
        began_s = time.perf_counter()
        try:
            if isinstance(node.server, NginxFiles):
                parameters, secrets = {"url": node.server.url}, {}
            else:
                parameters = {"url": f"s3://{BUCKET}/{PREFIX}", "endpoint": node.server.endpoint, "region": REGION}
                secrets = _secrets(node.server)
            volume = kubelet.create("pvc-warm", {**parameters, "warmup": "wait"}, secrets)
            while True:
                try:
                    kubelet.stage(volume)
                    break
                except CallRefused as refused:  # kubelet repeats a call that has timed out
                    if refused.code != "ABORTED" or time.perf_counter() - began_s > LIMIT_S:
                        raise
            kubelet.publish(volume)
        except CallRefused as refused:
            raise ProcessFailed(f"Hayloft: {refused}") from None
        seconds = time.perf_counter() - began_s
        cpu_s = usage.of_tree(driver.pid, driver.cache_directory).cpu_s - before_s
        kubelet.unpublish(volume)
        kubelet.unstage(volume)
    return Copied(seconds, cpu_s, driver.cache_directory / "objects")


def _secrets(server: SeaweedFsServer) -> dict[str, str]:
    return {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}


def _run(node: Node, command: list[str], environment: Mapping[str, str], wanted: object = None) -> Copied:
    """Runs a program that copies into ``files``. Raises ProcessFailed."""
    log_path, files = node.directory / "log", node.directory / "files"
    files.mkdir()
    node.touch_memory()
    began_s = time.perf_counter()
    with log_path.open("wb") as log, node.stopping.shield():
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(wanted).encode() + b"\n")
        process.stdin.close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        end = log_path.read_text(errors="replace").splitlines()[-3:]
        raise ProcessFailed(f"{Path(command[0]).name} ended with {process.returncode}: {' '.join(end)}")
    return Copied(time.perf_counter() - began_s, used.ru_utime + used.ru_stime, files)


def _rclone(node: Node) -> Copied:
    if isinstance(node.server, NginxFiles):
        source, remote = "store:", {"TYPE": "http", "URL": node.server.url}
    else:
        source, remote = (
            f"store:{BUCKET}/{PREFIX}",
            {
                "TYPE": "s3",
                "PROVIDER": "SeaweedFS",
                "ENDPOINT": node.server.endpoint,
                "REGION": REGION,
                "ACCESS_KEY_ID": node.server.access_key_id,
                "SECRET_ACCESS_KEY": node.server.secret_access_key,
            },
        )
    environment = {f"RCLONE_CONFIG_STORE_{name}": value for name, value in remote.items()}
    command = [str(program("rclone")), "copy", source, str(node.directory / "files")]
    command += [f"--transfers={TRANSFERS}", "--stats=0"]
    return _run(node, command, {"RCLONE_CONFIG": os.devnull, **environment})


def _aws_variables(node: Node) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": node.store.access_key_id,
        "AWS_SECRET_ACCESS_KEY": node.store.secret_access_key,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _s5cmd(node: Node) -> Copied:
    command = [str(program("s5cmd")), f"--endpoint-url={node.store.endpoint}", f"--numworkers={TRANSFERS}", "cp"]
    return _run(node, [*command, f"s3://{BUCKET}/{PREFIX}/*", f"{node.directory}/files/"], _aws_variables(node))


def _aws(node: Node) -> Copied:
    command = [str(program("aws")), f"--endpoint-url={node.store.endpoint}", "s3", "sync", "--only-show-errors"]
    return _run(node, [*command, f"s3://{BUCKET}/{PREFIX}", f"{node.directory}/files"], _aws_variables(node))


def _obstore(node: Node) -> Copied:
    wanted = {**_secrets(node.store), "endpoint": node.store.endpoint, "bucket": BUCKET, "prefix": PREFIX}
    wanted["directory"] = str(node.directory / "files")
    return _run(node, [sys.executable, "-m", "hayloft_bench.node_copies.obstore_copy"], {}, wanted)


def _needs(name: str, remedy: str) -> Callable[[], str]:
    return lambda: "" if program(name) is not None else f"{name} is not installed: {remedy}"


COPIERS: dict[str, Copier] = {
    "hayloft": Copier(
        TargetFacts("Hayloft, warmup: wait", "hayloft"), _hayloft, lambda: cannot_mount() or "", "warmup: wait"
    ),
    "rclone-copy": Copier(
        TargetFacts("rclone copy", "mount"),
        _rclone,
        _needs("rclone", "pip install 'hayloft[bench]'"),
        f"--transfers={TRANSFERS}",
    ),
    "s5cmd-cp": Copier(
        TargetFacts("s5cmd cp", "mount"), _s5cmd, _needs("s5cmd", "see its releases"), f"--numworkers={TRANSFERS}"
    ),
    "aws-sync": Copier(TargetFacts("aws s3 sync", "mount"), _aws, _needs("aws", "pip install awscli"), "its defaults"),
    "obstore-files": Copier(
        TargetFacts("obstore to files", "limit"), _obstore, lambda: "", f"{TRANSFERS} threads, ranges of 8 MiB"
    ),
}
"""By the name of the target in the results. The programs are compared as peers, obstore as the limit."""
OF_WEB_SERVERS = ("hayloft", "rclone-copy")
"""Those that can also copy from a web server."""
