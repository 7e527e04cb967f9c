"""Captions of the plots, one sentence each. Every number in them is computed from the results."""

from __future__ import annotations

from hayloft_bench.report import number_format as wording
from hayloft_bench.report.tables import utilisation_curves
from hayloft_bench.results.model import Measurement, Phase, Results
from hayloft_bench.results.noise import best_peer, case_verdict, ratio_to_best_peer, ratio_to_limit
from hayloft_bench.results.row_selection import (
    Case,
    cases,
    hayloft_of,
    limit_of,
    middle,
    of_kind,
    phases_of,
    target_facts,
    targets_of,
    workload_facts,
)

NO_HAYLOFT = "Hayloft has no figure here that counts."


def speed_caption(results: Results, workload: str) -> str:
    """Against the limit and the best mounted peer, in every phase that has them."""
    ours = hayloft_of(results, workload)
    if ours is None:
        return _fastest(results, workload)
    limits, peers, names = [], [], []
    for phase in phases_of(results, workload):
        case = Case(workload, ours, phase)
        limit, times = ratio_to_limit(results, case), ratio_to_best_peer(results, case)
        if limit is not None:
            limits.append(f"{wording.percent(limit)} ({phase})")
        if times is not None:
            peers.append(f"{times:.2f} ({phase})" if times < 2 else f"{times:.1f} ({phase})")
            names.append(title(results, best_peer(results, workload, phase) or ""))
    clauses = [f"{wording.listed(limits)} of local files"] if limits else []
    if peers:
        clauses.append(f"{wording.listed(peers)} times the best mounted peer, {' or '.join(dict.fromkeys(names))}")
    if not clauses:
        return _fastest(results, workload)
    return f"{title(results, ours)} reaches {', and '.join(clauses)}.{_noise_remark(results, workload, ours)}"


def _fastest(results: Results, workload: str) -> str:
    """For runs without Hayloft, or without a target to compare it with."""
    phase = _last(results, workload)
    speeds = {
        name: value
        for name in targets_of(results)
        if (value := middle(_rows(results, Case(workload, name, phase)), "speed"))
    }
    if not speeds:
        return "No figure counts here."
    best = max(speeds, key=lambda name: speeds[name])
    return f"The fastest when {phase} is {title(results, best)}, with {wording.significant(speeds[best])} per second."


def _noise_remark(results: Results, workload: str, target: str) -> str:
    phases = phases_of(results, workload)
    noisy = [phase for phase in phases if case_verdict(results, Case(workload, target, phase)).kind == "noisy"]
    return f" Its repetitions vary too much when {wording.listed([*noisy])}." if noisy else ""


def epochs_caption(results: Results, workload: str) -> str:
    """How the first epoch compares with the last."""
    ours = hayloft_of(results, workload)
    phases = phases_of(results, workload)
    if ours is None:
        return NO_HAYLOFT
    speeds = [
        (phase, value) for phase in phases if (value := middle(_rows(results, Case(workload, ours, phase)), "speed"))
    ]
    if len(speeds) < 2:
        return f"{title(results, ours)} was measured in one phase only."
    (first, slow), (last, fast) = speeds[0], speeds[-1]
    return f"{title(results, ours)} is {_times(fast / slow)} as fast {last} as {first}."


def latency_caption(results: Results, workload: str, phase: Phase) -> str:
    """The 99th percentile."""
    ours, peer = hayloft_of(results, workload), best_peer(results, workload, phase)
    mine = middle(_rows(results, Case(workload, ours, phase)), "sample_p99_s") if ours else None
    if ours is None or mine is None:
        return NO_HAYLOFT
    text = f"99 of 100 samples take {title(results, ours)} at most {wording.seconds(mine)}"
    theirs = middle(_rows(results, Case(workload, peer, phase)), "sample_p99_s") if peer else None
    limit = limit_of(results)
    local = middle(_rows(results, Case(workload, limit, phase)), "sample_p99_s") if limit else None
    others = [
        f"{name} {wording.seconds(value)}"
        for name, value in (("local files", local), (title(results, peer or ""), theirs))
        if value is not None
    ]
    return f"{text}; {', '.join(others)}." if others else f"{text}."


def utilisation_caption(results: Results, workload: str, phase: Phase) -> str:
    """How many accelerators stay fed."""
    threshold = workload_facts(results, workload).threshold or 0.9
    curves = {
        case.target: curve for case, curve in utilisation_curves(results).items() if case[::2] == (workload, phase)
    }
    ours = hayloft_of(results, workload)
    if ours not in curves:
        return NO_HAYLOFT

    def fed(target: str) -> int:
        return max((count for count, busy in curves[target] if busy >= threshold), default=0)

    most = max(count for count, _ in curves[ours])
    beyond = "all" if fed(ours) == most else str(fed(ours))
    text = f"{title(results, ours)} keeps {beyond} of up to {most} accelerators at {wording.percent(threshold)} or more"
    others = [f"{title(results, name)} {fed(name)}" for name in curves if name != ours]
    return f"{text}; {', '.join(others)}." if others else f"{text}."


def cost_caption(results: Results, workload: str) -> str:
    """Against the cheapest mounted peer, in the warmest phase that was measured."""
    ours, phase = hayloft_of(results, workload), _last(results, workload)
    mine = middle(_rows(results, Case(workload, ours, phase)), "cpu_s_per_gb") if ours else None
    if ours is None or mine is None:
        return NO_HAYLOFT
    text = f"{phase}, {title(results, ours)} costs {wording.significant(mine)} CPU seconds per GB"
    peers = {
        name: value
        for name in of_kind(results, "mount")
        if (value := middle(_rows(results, Case(workload, name, phase)), "cpu_s_per_gb"))
    }
    if not peers:
        return f"{text[0].upper()}{text[1:]}."
    best = min(peers, key=lambda name: peers[name])
    rest = f"{title(results, best)}, the cheapest mounted peer, {wording.significant(peers[best])}"
    return f"{text[0].upper()}{text[1:]}; {rest}."


def origin_caption(results: Results, workload: str) -> str:
    """Bytes from the store ÷ bytes needed."""
    ours = hayloft_of(results, workload)
    mine = middle(_rows(results, Case(workload, ours, "cold")), "read_amplification") if ours else None
    if ours is None or mine is None:
        return NO_HAYLOFT
    reads = {
        name: value
        for name in targets_of(results)
        if (value := middle(_rows(results, Case(workload, name, "cold")), "read_amplification"))
    }
    most = max(reads, key=lambda name: reads[name], default=ours)
    text = f"A cold epoch of {title(results, ours)} takes {mine:.2f} times the bytes that it needs from the store"
    return f"{text}; the most is {reads[most]:.2f}, by {title(results, most)}." if most != ours else f"{text}."


def title(results: Results, target: str) -> str:
    """The target's name for a sentence."""
    return target_facts(results, target).title


def _rows(results: Results, case: Case) -> list[Measurement]:
    return cases(results).get(case, [])


def _last(results: Results, workload: str) -> Phase:
    """hot, if it was measured: the phases after it are about faults."""
    present = phases_of(results, workload)
    return next((phase for phase in ("hot", "warm", "cold") if phase in present), present[-1])


def _times(value: float) -> str:
    return f"{value:.2f} times" if value < 2 else f"{value:.1f} times"
