"""The options of ``hayloft bench run``, checked before any work is done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hayloft_bench.errors import BenchError, NetworkError
from hayloft_bench.models.rounds import SUBJECTS
from hayloft_bench.network.shaped_path import Shape
from hayloft_bench.node_copies.copiers import COPIERS, OF_WEB_SERVERS
from hayloft_bench.results.model import PHASES, Phase, Sizes
from hayloft_bench.results.tenants import ATTACKS
from hayloft_bench.targets import TARGETS
from hayloft_bench.workloads import WORKLOADS

SEARCH = 0
"""As a value of ``accelerators``: search for the largest number that is fed."""
SOCKET_PATH = 107
"""The longest path of a Unix socket."""
SOCKET_PATH_REST = len("/hayloft-bench-12345678//t//csi.sock")
"""What a path has beside the names of a workload and of a target."""
DEFAULT_PHASES: tuple[Phase, ...] = ("cold", "warm", "hot")
WITH_ROUNDS = frozenset({"tenants", "warm", "warm-large", "warm-small", "web-large", "web-small", "model-load"})
"""Workloads that have rounds of their own, and targets of their own in them."""
OWN_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("warm", "warm-large", "warm-small"), tuple(COPIERS)),
    **dict.fromkeys(("web-large", "web-small"), OF_WEB_SERVERS),
    "model-load": tuple(SUBJECTS),
}
"""By workload, the targets of its rounds; that of ``tenants`` is the driver."""
NOT_BY_DEFAULT = frozenset({"path", "juicefs-default", "long", "shards", "small"}) | WITH_ROUNDS
"""``path`` needs ``--path``; ``juicefs-default`` is a check of the settings of ``juicefs``; ``tenants`` attacks the
daemon, those of ``warm`` and ``model-load`` are no epochs; the other workloads measure the data path alone, not
training."""


class WronglyAsked(BenchError):
    """An argument that is not allowed; the text names it and the allowed values."""


@dataclass(frozen=True, slots=True)
class Options:
    """Names are those of the registries, without repetition and in the order in which they were given."""

    workloads: tuple[str, ...]
    targets: tuple[str, ...]
    phases: tuple[Phase, ...]
    sizes: Sizes
    epochs: int = 2
    repetitions: int = 3
    directory: Path = Path("/var/tmp")  # noqa: S108 - a new directory of mode 0700 is made in it
    out: Path | None = None
    path: Path | None = None
    network: str | None = None
    accelerators: int | None = None
    """How many to emulate, or ``SEARCH``. None: none."""
    prices: str | None = None
    verify: bool = True
    budget_s: float | None = None
    """For all workloads together: repetitions that would exceed it are left out."""
    continuous: bool = False
    """Take each target from cold to warm without a restart, one after the other: fewer starts, but a slow minute of the
    machine affects one target alone."""
    evict_own_files: bool = False
    """Evict the files of the run from the page cache, instead of dropping the page cache of the machine."""
    keep: bool = False
    """Leave the files of the run where they are."""
    own_targets: tuple[str, ...] = ()
    """Of workloads that have targets of their own; without any, all of them."""
    attacks: tuple[str, ...] = tuple(ATTACKS)
    """Of the workload ``tenants``, in this order."""


def named(flag: str, given: Sequence[str], known: Iterable[str], default: Sequence[str]) -> tuple[str, ...]:
    """The given names, separated by commas or one by one; ``all`` stands for all. Raises WronglyAsked with the nearest
    known name."""
    known = tuple(known)
    wanted = [name for text in given for name in text.split(",") if name]
    if not wanted:
        return tuple(default)
    if wanted == ["all"]:
        return known
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise WronglyAsked(f"{flag}: there is no {name!r}{hint} There are: {', '.join(known)}")
    return tuple(dict.fromkeys(wanted))


def default_targets(path: Path | None) -> list[str]:
    """All but those that have to be named."""
    return [name for name in TARGETS if name not in NOT_BY_DEFAULT or (name == "path" and path is not None)]


def checked(options: Options) -> Options:
    """The options, unchanged. Raises WronglyAsked."""
    for flag, value, least, most in (
        ("--epochs", options.epochs, 1, 100),
        ("--repetitions", options.repetitions, 1, 100),
        ("--readers", options.sizes.readers, 1, 256),
        ("--accelerators", options.accelerators, 0, 256),
    ):
        if value is not None and not least <= value <= most:
            raise WronglyAsked(f"{flag} {value} is out of range: {least} to {most}")
    if not 0.0001 <= options.sizes.scale <= 1000:
        raise WronglyAsked(f"--scale {options.sizes.scale:g} is out of range: 0.0001 to 1000")
    if options.network is not None:
        try:
            Shape.parse(options.network)
        except NetworkError as error:
            raise WronglyAsked(str(error)) from error
    _check_paths(options)
    return options


def _check_paths(options: Options) -> None:
    if not options.directory.is_dir():
        raise WronglyAsked(f"--directory {options.directory} is not a directory; make it, or name another")
    most = SOCKET_PATH - max(map(len, WORKLOADS)) - max(map(len, TARGETS)) - SOCKET_PATH_REST
    if len(str(options.directory)) > most:
        raise WronglyAsked(
            f"--directory {options.directory}: sockets below it need a path of at most {most} characters"
        )
    if "path" in options.targets and options.path is None:
        raise WronglyAsked("the target path needs --path DIR")
    if options.path is not None and not options.path.is_dir():
        raise WronglyAsked(f"--path {options.path} is not a directory")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise WronglyAsked(f"--out {options.out} is not a directory")


def parse_accelerators(text: str | None) -> int | None:
    """A number, or ``search``. Raises WronglyAsked."""
    if text is None:
        return None
    if text == "search":
        return SEARCH
    if text.isdigit() and int(text):
        return int(text)
    raise WronglyAsked(f"--accelerators {text!r}: a number from 1, or search")


def workload_names(given: Sequence[str]) -> tuple[str, ...]:
    """Raises WronglyAsked."""
    return named("--workloads", given, WORKLOADS, [name for name in WORKLOADS if name not in NOT_BY_DEFAULT])


def target_names(
    given: Sequence[str], workloads: Sequence[str], path: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``Options.targets`` and ``Options.own_targets`` for these workloads. Raises WronglyAsked."""
    have_rounds = WITH_ROUNDS.issuperset(workloads)
    if not any(name for text in given for name in text.split(",")):
        return ("hayloft",) if have_rounds else tuple(default_targets(path)), ()
    of_rounds = {name: OWN_TARGETS[name] for name in workloads if name in OWN_TARGETS}
    own = dict.fromkeys(target for names in of_rounds.values() for target in names)
    known = own if have_rounds and own else dict.fromkeys((*TARGETS, *own))
    wanted = named("--targets", given, known, ())
    for workload, names in of_rounds.items():
        if not set(names) & set(wanted):
            raise WronglyAsked(f"--targets: none of them is one of {workload}, which has {', '.join(names)}")
    ordinary = tuple(name for name in wanted if name in TARGETS)
    others = [name for name in workloads if name not in WITH_ROUNDS]
    if others and not ordinary:
        raise WronglyAsked(f"--targets: none of them is one of {others[0]}, which has {', '.join(TARGETS)}")
    return ordinary or ("hayloft",), tuple(name for name in wanted if name in own)


def attack_names(given: Sequence[str]) -> tuple[str, ...]:
    """In the order in which they are run; ``all`` is one of them. Raises WronglyAsked."""
    wanted = given if list(given) == ["all"] else named("--attacks", given, ATTACKS, tuple(ATTACKS))
    return tuple(attack for attack in ATTACKS if attack in wanted)


def phase_names(given: Sequence[str]) -> tuple[Phase, ...]:
    """In the order in which they are run. Raises WronglyAsked."""
    wanted = named("--phases", given, PHASES, DEFAULT_PHASES)
    return tuple(phase for phase in PHASES if phase in wanted)
