"""Listings of stores that a tenant runs: each ends in its own process, within its limits, and starves no one."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.dataset import Credentials
from csi_driver.model.errors import (
    BudgetExceeded,
    HayloftError,
    Interrupted,
    InvalidParameter,
    ManifestInvalid,
    StoreProtocolError,
    StoreUnavailable,
)
from csi_driver.model.tenant import Tenant
from csi_driver.objects.store_factory import open_store
from csi_driver.rpc import callers
from csi_driver.rpc.callers import Caller
from csi_driver.settings import GIB, ListingSettings, PolicySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_lister import ListingRequest, SelectionRequest
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.wiring.listing_processes import ListingProcesses
from tests.support.daemons import DaemonBench, stop, wait_until
from tests.support.hostile_listings import (
    BOMB,
    BOMB_BYTES,
    DEEP,
    DRIP,
    EMPTY,
    ENDLESS,
    GOOD,
    HEADERS,
    LONG,
    REPEATING,
    SAME_KEYS,
    SILENT,
    HostileListings,
    hostile_listings,
)

TENANT = Tenant("attackers", inline=True)
VICTIM = Tenant("victims", inline=True)
LOOPBACK = "127.0.0.0/8"
POLICY = PolicySettings(allowed_addresses=(LOOPBACK,))
SECRETS = {"access_key_id": "AKIAEXAMPLEONLY", "secret_access_key": "a-secret-of-the-test"}


@pytest.fixture(scope="module")
def server() -> Iterator[HostileListings]:
    with hostile_listings() as started:
        yield started


@pytest.fixture
def store(server: HostileListings) -> HostileListings:
    """Has received no request of this test."""
    server.requests.clear()
    return server


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonBench]:
    """Trusts the loopback addresses of the stores in this test."""
    bench = DaemonBench(tmp_path, flags=(f"--allowed-address={LOOPBACK}",))
    bench.start()
    yield bench
    bench.close()


def request(daemon: DaemonBench, store: HostileListings, bucket: str, name: str, tenant: Tenant) -> MountRequest:
    mount_point = daemon.directory / f"mount-{name}"
    mount_point.mkdir(exist_ok=True)
    daemon.mount_points.append(mount_point)
    return MountRequest(f"csi-{name:0>64}", os.fspath(mount_point), store.attributes(bucket), {}, tenant)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def listing_server(daemon: DaemonBench) -> int:
    """The process of the daemon that starts listings."""
    (found,) = children(daemon.processes[-1].pid)
    assert Path(f"/proc/{found}/comm").read_text() == "listing-server\n"
    return found


def assert_gives_way(daemon: DaemonBench, server: int) -> None:
    """The kernel may share processors between sessions first (sched(7), autogroup): a priority counts within one."""
    pid = daemon.processes[-1].pid
    assert os.getsid(server) == os.getsid(pid)
    assert os.getpgid(server) != os.getpgid(pid), "Ctrl-C reaches the daemon alone"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- through the daemon -----------------------------------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.timeout(240)
@pytest.mark.promise("S150", "S152", "S154")
def test_70_slow_listings_of_a_tenant_hold_up_no_mount_unmount_or_report_of_others(
    daemon: DaemonBench, store: HostileListings
) -> None:
    clients = [DaemonClient(daemon.run / "cache.sock") for _ in range(70)]
    refusals: list[HayloftError] = []

    def attack(number: int) -> None:
        mount = request(daemon, store, DRIP, f"attack-{number}", TENANT)
        try:
            clients[number].mount(mount)
        except HayloftError as error:
            refusals.append(error)

    with ThreadPoolExecutor(70) as pool, daemon.client() as client:
        for number in range(70):
            pool.submit(attack, number)
        server = listing_server(daemon)
        wait_until(lambda: len(children(server)) == 3)  # half of what one store may have
        wait_until(lambda: len(refusals) >= 50)  # those that find no place are refused, and named
        assert {type(error) for error in refusals} == {BudgetExceeded}
        assert "attackers" in str(refusals[0])
        done = threading.Event()
        victims = pool.submit(_live, daemon, store, client, done)
        assert done.wait(30), "the victim's calls wait for the attacker's"
        victims.result()
        assert len(children(server)) == 3, "the attack went on meanwhile"
        for attacker in clients:
            attacker.close()
        wait_until(lambda: not children(server))  # the listings end with their callers
    with daemon.client() as client:
        client.mount(request(daemon, store, GOOD, "later", TENANT))
    assert not list((daemon.directory / "state" / "manifests" / "unfinished").iterdir())


def _live(daemon: DaemonBench, store: HostileListings, client: DaemonClient, done: threading.Event) -> None:
    """What a node does for another tenant."""
    mount = request(daemon, store, GOOD, "victim", VICTIM)
    for _ in range(3):
        assert client.mount(mount).file_count == 3
        client.report()
        client.unmount(mount.volume_id, mount.mount_point)
    done.set()


@pytest.mark.fuse
@pytest.mark.promise("S151", "S700")
def test_no_process_of_a_listing_outlives_a_killed_daemon_nor_has_its_descriptors(
    daemon: DaemonBench, store: HostileListings
) -> None:
    with daemon.client() as client, ThreadPoolExecutor(1) as pool:
        client.mount(request(daemon, store, GOOD, "good", VICTIM))
        server = listing_server(daemon)
        mount = request(daemon, store, DRIP, "slow", TENANT)
        slow = MountRequest(mount.volume_id, mount.mount_point, {**mount.attributes, "anonymous": "false"}, SECRETS)
        failed = pool.submit(client.mount, slow)
        wait_until(lambda: store.requests[-1:] == [DRIP])
        (listing,) = children(server)
        assert_gives_way(daemon, server)
        assert os.getsid(listing) == os.getsid(server)
        own = os.getpriority(os.PRIO_PROCESS, daemon.processes[-1].pid)
        assert os.getpriority(os.PRIO_PROCESS, listing) > own
        for pid in (server, listing):
            names = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            assert not [name for name in names if "fuse" in name or os.fspath(daemon.directory) in name]
            for file in ("cmdline", "environ"):
                assert SECRETS["secret_access_key"].encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
        stop(daemon.processes[-1], signal.SIGKILL)
        wait_until(lambda: not is_running(server) and not is_running(listing))
        with pytest.raises(HayloftError):
            failed.result()


@pytest.mark.fuse
@pytest.mark.promise("S700")
def test_listings_work_again_after_the_process_that_starts_them_was_killed(
    daemon: DaemonBench, store: HostileListings
) -> None:
    with daemon.client() as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.mount, request(daemon, store, DRIP, "slow", TENANT))
        wait_until(lambda: store.requests[-1:] == [DRIP])
        os.kill(listing_server(daemon), signal.SIGKILL)
        with pytest.raises(HayloftError, match="ended; retry"):
            slow.result()
        assert client.mount(request(daemon, store, GOOD, "good", VICTIM)).file_count == 3
        assert_gives_way(daemon, listing_server(daemon))


# -- limits of one listing --------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "manifest.arrow"


@contextmanager
def lister(**limits: Any) -> Iterator[ListingProcesses]:
    """May send requests to the store of this test. Its process has started, which is no part of the limits below."""
    with closing(ListingProcesses(ListingSettings(**limits), POLICY)) as processes:
        wait_until(lambda: has_started(processes))
        yield processes


def has_started(processes: ListingProcesses) -> bool:
    """False after the deadline of a listing."""
    nothing = Path(os.devnull)
    try:
        processes.select_into(SelectionRequest(nothing, ("*",), TENANT), nothing)
    except BudgetExceeded:
        return False
    except ManifestInvalid:
        return True
    raise AssertionError("not a manifest")


def listing(store: HostileListings, bucket: str, **attributes: str) -> ListingRequest:
    return ListingRequest(VolumeParameters.parse(store.attributes(bucket, **attributes)), {}, TENANT)


@pytest.mark.promise("S153")
@pytest.mark.parametrize(
    ("bucket", "error", "text"),
    [
        (ENDLESS, BudgetExceeded, "--listing-objects"),
        # By their number, or by the time that a listing may stand still, where a busy machine takes longer for them.
        (EMPTY, (StoreProtocolError, StoreUnavailable), "pages without an object"),
        (REPEATING, StoreProtocolError, "continuation token again"),
        (SAME_KEYS, StoreProtocolError, "same keys again"),
        (BOMB, BudgetExceeded, "33554432 bytes"),
        (LONG, BudgetExceeded, "33554432 bytes"),
        (HEADERS, StoreUnavailable, "retries exhausted"),
        (SILENT, StoreUnavailable, "retries exhausted"),
        (DRIP, BudgetExceeded, "--listing-deadline"),
    ],
)
def test_a_listing_without_end_or_measure_is_refused_by_the_limit_that_it_exceeds(
    store: HostileListings,
    target: Path,
    bucket: str,
    error: type[HayloftError] | tuple[type[HayloftError], ...],
    text: str,
) -> None:
    with lister(objects=20_000, deadline_s=100 if bucket == EMPTY else 12) as processes:
        with pytest.raises(error, match=text):
            processes.list_into(listing(store, bucket), target)
        assert processes.list_into(listing(store, GOOD), target).file_count == 3


@pytest.mark.timeout(240)
@pytest.mark.promise("S153")
def test_pages_without_an_object_are_refused_by_their_number_where_there_is_time(store: HostileListings) -> None:
    parameters = VolumeParameters.parse(store.attributes(EMPTY))
    opened = open_store(parameters.url, parameters.store_options, Credentials(), deadline_s=200)
    with closing(opened), pytest.raises(StoreProtocolError, match="1000 pages without an object in a row"):
        list(opened.list(parameters.url.prefix))
    assert len(store.requests) >= 1000


@pytest.mark.promise("S153")
def test_a_listing_that_needs_too_much_memory_is_refused_and_not_a_defect(store: HostileListings, target: Path) -> None:
    limits = {"memory_bytes": GIB // 4, "page_bytes": 2 * BOMB_BYTES}
    with lister(**limits) as processes, pytest.raises(BudgetExceeded, match="memory"):
        processes.list_into(listing(store, BOMB), target)


@pytest.mark.promise("S154")
@pytest.mark.parametrize(
    ("inline", "timed_out", "ends"),
    [(True, False, True), (True, True, True), (False, False, True), (False, True, False)],
)
def test_a_listing_ends_with_its_caller_unless_an_administrators_call_timed_out(
    store: HostileListings, target: Path, inline: bool, timed_out: bool, ends: bool
) -> None:
    caller = Caller()
    request = listing(store, DRIP)
    request = ListingRequest(request.parameters, {}, Tenant("team", inline=inline))

    def leave() -> None:
        wait_until(lambda: store.requests[-1:] == [DRIP])
        caller.timed_out, caller.gone = timed_out, True

    leaving = threading.Thread(target=leave)
    leaving.start()
    expected = pytest.raises(Interrupted if ends else BudgetExceeded)
    with lister(deadline_s=6) as processes, callers.working_for(caller), expected:
        processes.list_into(request, target)
    leaving.join()
    assert not list(target.parent.iterdir())


@pytest.mark.promise("S155")
def test_a_glob_cannot_hold_up_a_listing(store: HostileListings, target: Path) -> None:
    """With backtracking this would take minutes: three ``**`` over 500 parts."""
    with lister(deadline_s=60) as processes:
        request = listing(store, DEEP, include="/a/**/a/**/a/**/b\n/a/**/a/**/a/**/c")
        assert processes.list_into(request, target).file_count == 1


@pytest.mark.promise("S155")
def test_more_globs_than_a_volume_may_have_are_refused_by_name() -> None:
    for many in (",".join(["*.jpg"] * 257), "x" * 8_193):
        attributes = {"url": "s3://bucket/data", "warmupInclude": many}
        with pytest.raises(InvalidParameter, match="warmupInclude"):
            VolumeParameters.parse(attributes, PolicySettings())


# -- globs of a warmup ------------------------------------------------------------------------------------------------


@pytest.mark.promise("S155")
def test_globs_of_a_warmup_are_matched_in_a_process_that_ends_with_the_warmup(
    store: HostileListings, target: Path
) -> None:
    selected, caller = target.with_name("selected"), Caller()
    with lister() as processes, callers.working_for(caller):
        processes.list_into(listing(store, GOOD), target)
        processes.select_into(SelectionRequest(target, ("[bc]", "/a/**/a/**/b"), TENANT), selected)
        assert array("Q", selected.read_bytes()).tolist() == [1, 2]
        caller.gone = True
        worst = ("*" + "a" * 500 + "b",) * 16
        blocked = target.with_name("blocked")
        os.mkfifo(blocked)  # without a reader, so the process goes on until it is ended
        with pytest.raises(Interrupted):
            processes.select_into(SelectionRequest(target, worst, TENANT), blocked)
        wait_until(lambda: not [pid for started in children(os.getpid()) for pid in children(started)])
    with lister() as processes, pytest.raises(ManifestInvalid):
        processes.select_into(SelectionRequest(selected, ("*",), TENANT), target)
