"""Makes a row of the results from a reading and the counters. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from hayloft_bench.results.model import SCHEMA_VERSION, Measurement, Phase, Reading

QUANTILES = 200


@dataclass(frozen=True, slots=True)
class Where:
    """The part of a row that is known before the clock starts: what is measured, where and when."""

    run_id: str
    workload: str
    target: str
    phase: Phase
    epoch: int
    repetition: int
    rank: int
    ranks: int
    readers: int
    dataset_id: str
    dataset_bytes: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Counted:
    """The counters beside those of the readers. None: not known for this target."""

    cpu_s: float | None
    """Processor time of the target's processes."""
    peak_bytes: int | None
    origin_bytes: int | None
    origin_requests: int | None
    needed_bytes: int
    money: float | None
    passes: int = 1
    """The number of epochs in the reading."""


@dataclass(frozen=True, slots=True)
class Emulated:
    """The accelerators of a measurement."""

    name: str
    count: int
    utilisation: float


def without_figure(where: Where, reason: str) -> Measurement:
    """A row with nothing but the reason for it."""
    return _row(where, valid=False, reason=reason)


def of_reading(
    where: Where, reading: Reading, counted: Counted, reason: str, emulated: Emulated | None = None
) -> Measurement:
    """``reason``: why the figures do not count; empty if they do. Counts over several epochs are given per epoch."""
    samples, batches = reading.sample_latencies_s, reading.batch_latencies_s
    cpu_s = reading.reader_cpu_s + (counted.cpu_s or 0.0)
    passes = counted.passes
    origin_bytes = None if counted.origin_bytes is None else counted.origin_bytes // passes
    return _row(
        where,
        valid=not reason,
        reason=reason,
        seconds=reading.seconds / passes,
        bytes=reading.read_bytes // passes,
        samples=reading.samples // passes,
        samples_per_s=_ratio(reading.samples, reading.seconds),
        bytes_per_s=_ratio(reading.read_bytes, reading.seconds),
        first_batch_s=reading.first_batch_s,
        sample_p50_s=_percentile(samples, 50),
        sample_p95_s=_percentile(samples, 95),
        sample_p99_s=_percentile(samples, 99),
        batch_p50_s=_percentile(batches, 50),
        batch_p95_s=_percentile(batches, 95),
        batch_p99_s=_percentile(batches, 99),
        sample_latencies_s=_quantiles(samples),
        accelerator=emulated.name if emulated else "",
        accelerators=emulated.count if emulated else None,
        utilisation=emulated.utilisation if emulated else None,
        cpu_reader_s=reading.reader_cpu_s / passes,
        cpu_target_s=None if counted.cpu_s is None else counted.cpu_s / passes,
        cpu_s_per_gb=_ratio(cpu_s, reading.read_bytes / 1e9),
        peak_reader_bytes=reading.reader_peak_bytes,
        peak_target_bytes=counted.peak_bytes,
        origin_bytes=origin_bytes,
        origin_requests=None if counted.origin_requests is None else counted.origin_requests // passes,
        read_amplification=None if origin_bytes is None else _ratio(origin_bytes, counted.needed_bytes),
        hit_ratio=None if origin_bytes is None else _hit_ratio(origin_bytes, reading.read_bytes / passes),
        money_per_epoch=None if counted.money is None else counted.money / passes,
    )


def of_latencies(where: Where, latencies_s: Sequence[float], reason: str) -> Measurement:
    """Of reads that were performed one after the other. With a reason, the longest of them is a lower bound."""
    return _row(
        where,
        valid=not reason,
        reason=reason,
        seconds=sum(latencies_s) if latencies_s else None,
        samples=len(latencies_s) if latencies_s else None,
        sample_p50_s=_percentile(latencies_s, 50),
        sample_p95_s=_percentile(latencies_s, 95),
        sample_p99_s=_percentile(latencies_s, 99),
        sample_latencies_s=_quantiles(latencies_s),
    )


def of_work(
    where: Where, *, seconds: float, count_bytes: int, samples: int, cpu_s: float, origin_bytes: int | None, reason: str
) -> Measurement:
    """Of work that is no epoch: so many bytes, in so many files, were brought to where they are needed."""
    return _row(
        where,
        valid=not reason,
        reason=reason,
        seconds=seconds,
        bytes=count_bytes,
        samples=samples,
        samples_per_s=_ratio(samples, seconds),
        bytes_per_s=_ratio(count_bytes, seconds),
        cpu_target_s=cpu_s,
        cpu_s_per_gb=_ratio(cpu_s, count_bytes / 1e9),
        origin_bytes=origin_bytes,
        read_amplification=None if origin_bytes is None else _ratio(origin_bytes, where.dataset_bytes),
    )


def _row(where: Where, **values: object) -> Measurement:
    return Measurement(
        schema=SCHEMA_VERSION,
        run_id=where.run_id,
        workload=where.workload,
        target=where.target,
        phase=where.phase,
        epoch=where.epoch,
        repetition=where.repetition,
        rank=where.rank,
        ranks=where.ranks,
        readers=where.readers,
        started_at=where.started_at,
        dataset_id=where.dataset_id,
        dataset_bytes=where.dataset_bytes,
        **values,  # type: ignore[arg-type]
    )


def _ratio(value: float, by: float) -> float | None:
    return value / by if by > 0 else None


def _hit_ratio(origin_bytes: int, read_bytes: float) -> float | None:
    return max(0.0, 1.0 - origin_bytes / read_bytes) if read_bytes > 0 else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank: a latency that was measured, not one in between."""
    if not values:
        return None
    return float(numpy.percentile(values, percent, method="inverted_cdf"))


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """At most ``QUANTILES``, evenly spaced, from the least to the most."""
    if len(values) <= QUANTILES:
        return tuple(sorted(values))
    found = numpy.quantile(values, numpy.linspace(0.0, 1.0, QUANTILES))
    return tuple(float(value) for value in found)
