"""``hayloft doctor`` on machines that are made up: each finding is there when it should be, with its remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csi_driver.wiring.node_checks import (
    CheckResult,
    Level,
    Machine,
    disk_checks,
    fuse_checks,
    kernel_checks,
    limit_checks,
    proxy_checks,
    read_ahead_checks,
    selinux_checks,
)

pytestmark = pytest.mark.promise("S591")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "fuse").touch()
    return Machine(tmp_path / "proc", tmp_path / "sys", tmp_path / "fuse", tmp_path / "boot", "6.12.9-amd64")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def only(results: list[CheckResult], check: str) -> CheckResult:
    (found,) = (result for result in results if result.check == check)
    return found


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("5.3.0", Level.PROBLEM),
        ("5.15.0-1051-aws", Level.WARNING),
        ("6.8.12", Level.WARNING),
        ("6.9.0", Level.OK),
        ("6.18.4-fc", Level.OK),
        ("7.0", Level.OK),
    ],
)
def test_an_old_kernel_is_found(machine: Machine, release: str, level: Level) -> None:
    older = Machine(machine.proc, machine.sys, machine.fuse, machine.boot, release)
    result = only(list(kernel_checks(older)), "kernel")
    assert result.level is level
    assert ("6.9" in result.remedy) == (level is not Level.OK)


def test_a_limit_of_the_kernel_for_requests_is_found(machine: Machine) -> None:
    put(machine.proc / "sys/fs/fuse/max_request_timeout", "60\n")
    result = only(list(kernel_checks(machine)), "request timeout")
    assert result.level is Level.WARNING
    assert "aborts a whole mount" in result.text
    assert result.remedy.startswith("Set it to 0")


@pytest.mark.parametrize(
    ("text", "level"), [("CONFIG_FUSE_PASSTHROUGH=y\n", Level.OK), ("CONFIG_X=y\n", Level.WARNING)]
)
def test_a_kernel_without_passthrough_is_found(machine: Machine, text: str, level: Level) -> None:
    put(machine.boot / "config-6.12.9-amd64", text)
    assert only(list(fuse_checks(machine)), "passthrough").level is level


def test_a_machine_without_fuse_is_found(machine: Machine) -> None:
    assert only(list(fuse_checks(machine)), "fuse").level is Level.OK
    machine.fuse.unlink()
    result = only(list(fuse_checks(machine)), "fuse")
    assert (result.level, result.remedy) == (Level.PROBLEM, "Load the module on the node: modprobe fuse")


@pytest.mark.parametrize(("limit", "level"), [("1024", Level.PROBLEM), ("20000", Level.WARNING), ("1048576", Level.OK)])
def test_a_low_limit_of_open_files_is_found(machine: Machine, limit: str, level: Level) -> None:
    put(
        machine.proc / "7/limits",
        f"Limit   Soft Limit  Hard Limit  Units\nMax open files   {limit}   {limit}   files\n",
    )
    (machine.proc / "7/fd").mkdir()
    result = only(list(limit_checks(machine, 7)), "open files")
    assert result.level is level
    assert bool(result.remedy) == (level is not Level.OK)


@pytest.mark.parametrize(("anonymous", "level"), [(950, Level.WARNING), (200, Level.OK)])
def test_memory_that_is_nearly_used_up_is_found_without_the_page_cache(
    machine: Machine, anonymous: int, level: Level
) -> None:
    group = machine.sys / "fs/cgroup/pod"
    put(machine.proc / "7/cgroup", "0::/pod\n")
    put(group / "memory.stat", f"anon {anonymous}\nactive_file 700\ninactive_file 0\n")
    put(group / "memory.current", str(anonymous + 700))
    put(group / "memory.max", "1000")
    assert only(list(limit_checks(machine, 7)), "memory").level is level


def test_a_directory_that_is_not_there_or_in_memory_is_found(machine: Machine, tmp_path: Path) -> None:
    (missing,) = disk_checks(machine, tmp_path / "none", None)
    assert (missing.level, "--cache-dir" in missing.remedy) == (Level.PROBLEM, True)
    in_memory = Path("/dev/shm")
    if in_memory.is_dir():
        (unsuitable,) = disk_checks(machine, in_memory, None)
        assert "tmpfs" in unsuitable.text


@pytest.mark.parametrize(
    ("rotational", "model", "level"),
    [
        ("1", "ST4000", Level.WARNING),
        ("0", "Amazon Elastic Block Store", Level.WARNING),
        ("0", "Amazon EC2 NVMe Instance Storage", Level.OK),
    ],
)
def test_a_slow_kind_of_disk_is_found(
    machine: Machine, tmp_path: Path, rotational: str, model: str, level: Level
) -> None:
    device = os.stat(tmp_path).st_dev
    block = machine.sys / "dev/block" / f"{os.major(device)}:{os.minor(device)}"
    put(block / "queue/rotational", rotational)
    put(block / "device/model", f"{model}\n")
    results = list(disk_checks(machine, tmp_path, None))
    if results[0].level is Level.PROBLEM:
        pytest.skip("the temporary directory is in memory")
    assert results[0].level is level
    assert model in results[0].text
    assert bool(results[0].remedy) == (level is not Level.OK)


def test_a_disk_that_kubelet_shares_and_a_limit_beyond_it_are_found(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "kubelet").mkdir()
    shared = [result for result in disk_checks(machine, tmp_path, tmp_path / "kubelet") if result.check == "free space"]
    alone = [result for result in disk_checks(machine, tmp_path, None, 1 << 60) if result.check == "free space"]
    if not shared:
        pytest.skip("the temporary directory is in memory")
    assert "kubelet" in shared[0].text
    assert "disk of its own" in shared[0].remedy
    assert (alone[0].level, "--cache-limit" in alone[0].remedy) == (Level.WARNING, True)


@pytest.mark.parametrize(("text", "level"), [("1", Level.NOTE), ("0", Level.OK)])
def test_selinux_is_reported(machine: Machine, text: str, level: Level) -> None:
    assert list(selinux_checks(machine)) == []
    put(machine.sys / "fs/selinux/enforce", text)
    assert only(list(selinux_checks(machine)), "SELinux").level is level


def test_a_small_read_ahead_is_found(machine: Machine) -> None:
    put(machine.sys / "class/bdi/0:71/read_ahead_kb", "128\n")
    put(machine.sys / "class/bdi/0:72/read_ahead_kb", "4096\n")
    result = only(list(read_ahead_checks(machine, {"small": "0:71", "large": "0:72"})), "read-ahead")
    assert (result.level, "small 128 KiB" in result.text, "large" in result.text) == (Level.WARNING, True, False)
    assert only(list(read_ahead_checks(machine, {"large": "0:72"})), "read-ahead").level is Level.OK


def test_a_proxy_is_named_without_its_password() -> None:
    environment = {"HTTPS_PROXY": "http://user:secret@proxy:3128", "NO_PROXY": ".internal"}
    used = only(list(proxy_checks(environment, "https://store.example")), "proxies")
    assert "goes through the proxy http://proxy:3128" in used.text
    assert "secret" not in used.text + used.remedy
    direct = only(list(proxy_checks(environment, "https://a.internal")), "proxies")
    assert "is dialled directly" in direct.text
    assert only(list(proxy_checks({})), "proxies").level is Level.OK
