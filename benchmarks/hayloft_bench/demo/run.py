"""The course of the demonstration, from an empty directory back to an empty directory."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from csi_driver.model.errors import HayloftError
from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.demo import prerequisites
from hayloft_bench.demo.crew import ReaderPool
from hayloft_bench.demo.dataset import DatasetPlan, MadeDataset, make_dataset
from hayloft_bench.demo.driver import Driver, unmount_below
from hayloft_bench.demo.errors import DemoFailed, Stopped
from hayloft_bench.demo.measuring import Measuring
from hayloft_bench.demo.options import DemoOptions
from hayloft_bench.demo.page_cache import cached_share, evict, write_out
from hayloft_bench.demo.picture import draw
from hayloft_bench.demo.results import Results, Row
from hayloft_bench.demo.showing import Steps
from hayloft_bench.demo.stopping import Stopping
from hayloft_bench.demo.table import TARGET_TITLES, TARGETS, results_table, sentences
from hayloft_bench.demo.undo import Undo
from hayloft_bench.demo.upload import upload
from hayloft_bench.demo.workloads import WORKLOADS
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet, Volume
from hayloft_lab.seaweedfs import SeaweedFsServer

BUCKET, PREFIX, VOLUME = "datasets", "train/", "pvc-demo"
EPOCHS = 3
LOG_COLUMNS = 120
"""Where there is no terminal; the table needs 92."""
COLD_SHARE = 0.98
"""In a cold epoch at least this part of the bytes must have come from the store, else something was cached."""


def run_demo(options: DemoOptions, console: Console | None = None) -> int:
    """Runs it all and cleans up, whatever happens. Gives the exit code: 0, 1, or 128 + the signal's number."""
    console = console or Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    stopping = Stopping()
    begun = time.monotonic()
    with stopping.watching(), contextlib.ExitStack() as stack:
        try:
            _Demo(options, console, stopping, stack).run()
        except Stopped as stopped:
            console.print("stopping: unmounting, ending the driver and the store")
            return 128 + stopped.signal_number
        except (DemoFailed, CallRefused, HayloftError, OSError) as error:
            reason = escape(str(error) or type(error).__name__)
            console.print(f"[bold red]The demonstration failed:[/] {reason}", highlight=False)
            return 1
        finally:
            stopping.stop_listening()
    console.print(f"Everything is unmounted and stopped; it took {time.monotonic() - begun:.0f} s.", highlight=False)
    return 0


class _Demo:
    """One run. What it starts is ended by ``stack``."""

    def __init__(self, options: DemoOptions, console: Console, stopping: Stopping, stack: contextlib.ExitStack) -> None:
        self._options, self._console, self._stopping, self._stack = options, console, stopping, stack
        self._steps = Steps(console)

    def run(self) -> None:
        """Raises DemoFailed, CallRefused, HayloftError, OSError, Stopped."""
        work = self._make_work_directory(prerequisites.check(self._options))
        with self._steps.shown():
            dataset = self._make_dataset(work / "plain")
            server = self._start_store(work / "store")
            self._upload(work / "plain", dataset, server)
            measuring = Measuring(dataset, ReaderPool(self._stopping), server.bytes_sent)
            self._check_cold(work / "first", dataset, server, measuring)
            results = self._measure(work, dataset, server, measuring)
        self._report(results)

    # -- making what is read ------------------------------------------------------------------------------------------

    def _make_work_directory(self, directory: Path) -> Path:
        with self._stopping.shield():
            work = Path(tempfile.mkdtemp(prefix="hayloft-demo-", dir=directory)).resolve()
            self._stack.callback(self._remove, work)
        return work

    def _remove(self, work: Path) -> None:
        left = unmount_below(work)
        if left:
            # Deleting below a mount could delete what is shown there.
            self._console.print(f"[bold red]still mounted, so {work} stays:[/] {', '.join(left)}", highlight=False)
        elif self._options.keep:
            self._console.print(f"Kept: {work}", highlight=False)
        else:
            shutil.rmtree(work, ignore_errors=True)

    def _make_dataset(self, plain: Path) -> MadeDataset:
        plan = DatasetPlan.scaled(self._options.scale)
        with self._steps.step("making the dataset", prerequisites.DATASET_BYTES * self._options.scale) as step:
            dataset = make_dataset(plain, plan, step.advance)
        self._steps.note(
            f"{plan.images:,} images, {plan.shards} tar shards, {plan.tables} Parquet files: "
            f"{dataset.size_bytes / 1e6:,.0f} MB"
        )
        return dataset

    def _start_store(self, directory: Path) -> SeaweedFsServer:
        with self._steps.step("starting an S3 server (SeaweedFS)"), self._stopping.shield():
            server = self._stack.enter_context(SeaweedFsServer(directory))
        server.create_bucket(BUCKET)
        return server

    def _upload(self, plain: Path, dataset: MadeDataset, server: SeaweedFsServer) -> None:
        with self._steps.step("uploading it", dataset.size_bytes) as step:
            upload(
                plain,
                dataset.files,
                endpoint=server.endpoint,
                access_key_id=server.access_key_id,
                secret_access_key=server.secret_access_key,
                bucket=BUCKET,
                prefix=PREFIX,
                advance=step.advance,
            )
            # Now, lest the disk be busy with it while reads are measured.
            write_out(plain)

    # -- what kubelet does --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _published(self, directory: Path, server: SeaweedFsServer) -> Iterator[Path]:
        """The dataset as a directory of a pod, by a driver with an empty cache; afterwards nothing of it is left."""
        with contextlib.ExitStack() as stack:
            with self._steps.step("starting the driver"):
                kubelet = self._start_driver(Driver(directory), directory, stack)
                name, version, _ = kubelet.register()
            with Undo(self._steps.note) as undo:
                with self._steps.step("CreateVolume, NodeStageVolume, NodePublishVolume"):
                    volume = self._publish(kubelet, server, undo)
                self._say_what_is_mounted(kubelet, volume, f"{name} {version}")
                yield volume.target_path
            left = [entry.mount_point for entry in MountTable.read().below(directory)]
            if left:
                raise DemoFailed(f"still mounted after NodeUnstageVolume: {', '.join(left)}")

    def _start_driver(self, driver: Driver, directory: Path, stack: contextlib.ExitStack) -> EmulatedKubelet:
        with self._stopping.shield():
            directory.mkdir()
            stack.callback(unmount_below, directory)
            driver.start()
            stack.callback(driver.stop)
        kubelet = EmulatedKubelet(driver.endpoint, directory / "kubelet")
        stack.callback(kubelet.close)
        driver.wait_until_ready(kubelet)
        return kubelet

    def _publish(self, kubelet: EmulatedKubelet, server: SeaweedFsServer, undo: Undo) -> Volume:
        parameters = {"url": f"s3://{BUCKET}/{PREFIX}", "endpoint": server.endpoint, "region": "us-east-1"}
        secrets = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
        volume = kubelet.create(VOLUME, parameters, secrets)
        undo.later(lambda: kubelet.delete(volume))
        undo.later(lambda: kubelet.unstage(volume))
        kubelet.stage(volume)
        undo.later(lambda: kubelet.unpublish(volume))
        target = kubelet.publish(volume)
        if MountTable.read().at(target) is None:
            raise DemoFailed(f"the driver answered NodePublishVolume, but nothing is mounted at {target}")
        return volume

    def _say_what_is_mounted(self, kubelet: EmulatedKubelet, volume: Volume, driver: str) -> None:
        usage = kubelet.usage(volume)
        entry = MountTable.read().at(volume.target_path)
        kind = entry.fs_type if entry is not None else "?"
        self._steps.note(f"{driver}: {usage.files:,} files, {usage.total_bytes / 1e6:,.0f} MB, mounted as {kind}")

    # -- reading ------------------------------------------------------------------------------------------------------

    def _check_cold(self, directory: Path, dataset: MadeDataset, server: SeaweedFsServer, measuring: Measuring) -> None:
        with self._published(directory, server) as mount:
            with self._steps.step("SHA-256 of every byte through the mount, cold", dataset.size_bytes) as step:
                digest, origin_bytes = measuring.check_every_byte(mount, "cold", step.reach)
            self._steps.note(
                f"SHA-256 {digest[:16]}… is that of what was uploaded; the store sent "
                f"{origin_bytes / dataset.size_bytes:.3f} × the bytes of the dataset"
            )
        shutil.rmtree(directory)

    def _measure(self, work: Path, dataset: MadeDataset, server: SeaweedFsServer, measuring: Measuring) -> Results:
        plain = [work / "plain" / file.path for file in dataset.files]
        evict(plain)
        self._steps.note(f"plain files in the page cache before the cold epoch: {cached_share(plain):.1%}")
        results = Results()
        with self._published(work / "second", server) as mount:
            sources = _sources(work / "plain", mount, server)
            for epoch in range(1, EPOCHS + 1):
                self._epoch(dataset, sources, epoch, measuring, results)
            with self._steps.step("SHA-256 of every byte through the mount, warm", dataset.size_bytes) as step:
                measuring.check_every_byte(mount, "warm", step.reach)
        return results

    def _epoch(
        self,
        dataset: MadeDataset,
        sources: dict[str, dict[str, str]],
        epoch: int,
        measuring: Measuring,
        results: Results,
    ) -> None:
        """All targets of a workload one after the other, so that a slow moment of the machine does not hit one."""
        title = f"epoch {epoch}, {'cold' if epoch == 1 else 'warm'}"
        with self._steps.step(title, dataset.size_bytes * len(sources)) as step:
            done_bytes = 0
            for workload in WORKLOADS:
                folder_bytes = sum(file.size_bytes for file in dataset.below(workload))
                for target, source in sources.items():
                    step.rename(f"{title}: {workload}, {TARGET_TITLES[target]}")
                    row = measuring.epoch(workload, target, source, epoch, progress=_shifted(step.reach, done_bytes))
                    _require_cold(row)
                    results.rows.append(row)
                    done_bytes += folder_bytes
                    step.reach(done_bytes)
            step.rename(title)

    def _report(self, results: Results) -> None:
        results.write_json(self._options.json_path)
        draw(results, self._options.picture_path)
        self._console.print()
        self._console.print(results_table(results))
        for sentence in sentences(results):
            self._console.print(sentence, highlight=False)
        self._console.print(
            f"\nEvery byte was checked (SHA-256), cold and warm. {self._options.json_path} has all figures, "
            f"{self._options.picture_path} is the picture.",
            highlight=False,
        )


def _sources(plain: Path, mount: Path, server: SeaweedFsServer) -> dict[str, dict[str, str]]:
    remote = {
        "endpoint": server.endpoint,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        "bucket": BUCKET,
        "prefix": PREFIX,
    }
    sources = {
        "local": {"kind": "directory", "root": str(plain)},
        "hayloft": {"kind": "directory", "root": str(mount)},
        "boto3": {"kind": "boto3", **remote},
        "s3fs": {"kind": "s3fs", **remote},
    }
    return {target: sources[target] for target in TARGETS}


def _shifted(reach: Callable[[float], None], by: int) -> Callable[[int], None]:
    return lambda count: reach(by + count)


def _require_cold(row: Row) -> None:
    """Raises DemoFailed when a cold epoch through the mount was answered from somewhere else than the store."""
    if row.target == "hayloft" and row.phase == "cold" and row.origin_bytes < COLD_SHARE * row.bytes:
        raise DemoFailed(
            f"{row.workload}: the cold epoch was not cold: {row.bytes} bytes were read and the store sent only "
            f"{row.origin_bytes}"
        )
