"""What may be asked of ``hayloft bench run``, and what is said when it may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from hayloft_bench.results.model import Sizes
from hayloft_bench.run.disk_space import SPARE_BYTES, fitting
from hayloft_bench.run.options import (
    SEARCH,
    Options,
    WronglyAsked,
    attack_names,
    checked,
    parse_accelerators,
    phase_names,
    target_names,
    workload_names,
)
from hayloft_bench.run.quick import quick
from hayloft_bench.targets import TARGETS
from hayloft_bench.targets.base import MountedPeer, TargetBase

OPTIONS = Options(("imagenet",), ("plain",), ("cold",), Sizes(1.0, 1))


def test_an_unknown_workload_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(WronglyAsked, match=r"'imagnet'; did you mean imagenet\? There are: imagenet, retinanet"):
        workload_names(["imagnet"])


def test_an_unknown_target_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(WronglyAsked, match=r"--targets: there is no 'hayloft-fus'; did you mean hayloft-fuse\?"):
        target_names(["plain,hayloft-fus"], ["small"], None)


def test_names_are_given_by_commas_or_one_by_one_and_counted_once() -> None:
    assert target_names(["plain,rclone", "plain"], ["small"], None) == (("plain", "rclone"), ())


def test_attacks_are_run_in_their_own_order_and_all_is_one_of_them() -> None:
    assert attack_names(["all,globs"]) == ("globs", "all")
    assert attack_names(["all"]) == ("all",)
    assert attack_names([]) == ("globs", "listings", "hanging", "metrics", "shares", "all")
    with pytest.raises(WronglyAsked, match=r"--attacks: there is no 'glob'; did you mean globs\?"):
        attack_names(["glob"])


def test_phases_are_run_in_their_own_order() -> None:
    assert phase_names(["hot,cold"]) == ("cold", "hot")


def test_all_is_everything_and_nothing_is_the_default() -> None:
    assert target_names(["all"], ["small"], None) == (tuple(TARGETS), ())
    assert "path" not in target_names([], ["small"], None)[0]
    assert "path" in target_names([], ["small"], Path("/mnt"))[0]
    assert target_names([], ["warm", "tenants"], None) == (("hayloft",), ())


def test_workloads_with_targets_of_their_own_take_these() -> None:
    assert target_names(["rclone-copy,hayloft"], ["warm-small"], None) == (("hayloft",), ("rclone-copy", "hayloft"))
    assert target_names(["runai-s3"], ["model-load"], None) == (("hayloft",), ("runai-s3",))
    both = target_names(["rclone", "hayloft-mmap", "hayloft"], ["small", "warm", "model-load"], None)
    assert both == (("rclone", "hayloft"), ("hayloft-mmap", "hayloft"))
    with pytest.raises(WronglyAsked, match="none of them is one of imagenet, which has plain"):
        target_names(["rclone-copy"], ["warm", "imagenet"], None)
    assert target_names([""], ["imagenet"], None) == target_names([], ["imagenet"], None)
    with pytest.raises(WronglyAsked, match="there is no 'rclone'; did you mean rclone-copy"):
        target_names(["rclone"], ["warm"], None)
    with pytest.raises(WronglyAsked, match="none of them is one of model-load, which has plain-mmap, hayloft-mmap"):
        target_names(["rclone-copy"], ["warm", "model-load"], None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (replace(OPTIONS, epochs=0), "--epochs 0 is out of range"),
        (replace(OPTIONS, repetitions=0), "--repetitions 0"),
        (replace(OPTIONS, sizes=Sizes(-1.0, 1)), "--scale -1"),
        (replace(OPTIONS, sizes=Sizes(1.0, 1, 0)), "--readers 0"),
        (replace(OPTIONS, directory=Path("/no/such")), "--directory /no/such is not a directory"),
        (replace(OPTIONS, targets=("path",)), "the target path needs --path DIR"),
        (replace(OPTIONS, path=Path("/no/such")), "--path /no/such is not a directory"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(options: Options, said: str) -> None:
    with pytest.raises(WronglyAsked, match=said):
        checked(options)


def test_a_directory_whose_sockets_would_have_too_long_a_path_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 90)
    directory.mkdir()
    with pytest.raises(WronglyAsked, match="sockets below it need a path of at most"):
        checked(replace(OPTIONS, directory=directory))


def test_accelerators_are_a_number_or_searched() -> None:
    assert (parse_accelerators(None), parse_accelerators("4"), parse_accelerators("search")) == (None, 4, SEARCH)
    for text in ("0", "-1", "many"):
        with pytest.raises(WronglyAsked, match="--accelerators"):
            parse_accelerators(text)


def test_the_quick_run_makes_small_what_was_not_asked_for() -> None:
    made = quick(OPTIONS, workloads=False, targets=True, phases=True)
    assert made.workloads != OPTIONS.workloads
    assert (made.targets, made.phases) == (OPTIONS.targets, OPTIONS.phases)
    assert made.sizes.scale < OPTIONS.sizes.scale
    assert made.budget_s is not None
    assert made.budget_s < 300


class _Small(TargetBase):
    name: ClassVar[str] = "small"


class _Large(MountedPeer):
    name: ClassVar[str] = "large"
    copies: ClassVar[int] = 5


def test_targets_that_the_disk_has_no_room_for_are_dropped_with_the_reason() -> None:
    found = fitting(SPARE_BYTES + 3_000, 1_000, [_Small, _Large])
    assert found.kept == ("small",)
    assert "not enough disk for it" in found.dropped["large"]
    assert fitting(SPARE_BYTES + 30_000, 1_000, [_Small, _Large]).kept == ("small", "large")


def test_a_disk_that_is_too_small_for_the_dataset_itself_leaves_out_the_workload() -> None:
    found = fitting(SPARE_BYTES, 1_000_000_000, [_Small])
    assert found.kept == ()
    assert "not enough disk: 2.1 GB are free and 4.2 GB are needed" in found.reason


def test_a_target_without_its_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hayloft_bench.targets.base.program", lambda name: None)
    assert TARGETS["rclone"].unavailable() == "rclone is not installed: pip install 'hayloft[bench]'"


def test_without_root_mounts_are_unavailable_and_clients_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert TARGETS["hayloft"].unavailable() == "mounting needs root: run it with sudo"
    assert TARGETS["plain"].unavailable() is None
    assert TARGETS["boto3"].unavailable() is None


def test_every_setting_of_a_peer_has_its_reason() -> None:
    for name, target in TARGETS.items():
        assert all(setting and reason for setting, reason in target.settings.items()), name
