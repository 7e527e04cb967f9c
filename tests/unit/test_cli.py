"""Flags, environment, exit codes, and one line for each error."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from csi_driver import cli, telemetry
from csi_driver.cli.application import run_command
from csi_driver.cli.flag_values import parse_size, parse_size_or_share
from csi_driver.model.errors import EndpointUnreachable, InvalidParameter, RegistryUnavailable, TransientStoreError
from csi_driver.objects.retrying import RetryPolicy
from csi_driver.rpc.interceptor import _outcome_of
from csi_driver.settings import (
    AllInOneSettings,
    CacheDaemonSettings,
    ControllerSettings,
)
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.wiring import all_in_one
from csi_driver.wiring import cache_process as cache
from csi_driver.wiring import controller_process as controller
from csi_driver.wiring import node_process as node
from csi_driver.wiring.node_process import NodeSettings

HEAVY = ("typer", "pydantic", "grpc", "google.protobuf", "rich", "obstore", "boto3", "pyarrow")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("500GiB", 500 << 30),
        ("500Gi", 500 << 30),
        ("2TB", 2 * 10**12),
        ("2T", 2 * 10**12),
        ("1.5 MiB", 3 << 19),
        ("64k", 64_000),
        ("12B", 12),
    ],
)
def test_sizes_are_parsed_in_all_common_units(text: str, size_bytes: int) -> None:
    assert parse_size("--cache-limit", text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "12XB", "1e9", "10 %", "ten", "1,5GiB"])
def test_an_invalid_size_is_refused_with_the_name_of_its_flag(text: str) -> None:
    with pytest.raises(InvalidParameter, match="--small-object"):
        parse_size("--small-object", text)


def test_a_share_is_of_the_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    total = status.f_blocks * status.f_frsize
    assert parse_size_or_share("--cache-limit", "20%").on(tmp_path) == pytest.approx(total * 0.2, rel=1e-6)
    assert parse_size_or_share("--cache-limit", "5GiB").on(tmp_path) == 5 << 30
    for text in ("0%", "101%", "x%"):
        with pytest.raises(InvalidParameter):
            parse_size_or_share("--cache-limit", text)


@pytest.fixture
def settings_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings with which the processes would be run."""
    settings: list[Any] = []
    for wiring in (cache, node, controller, all_in_one):
        monkeypatch.setattr(wiring, "run", settings.append)
    monkeypatch.setattr("csi_driver.telemetry.set_up_logging", lambda *_, **__: None)
    for name in [name for name in os.environ if name.startswith("HAYLOFT_")]:
        monkeypatch.delenv(name)
    return settings


def cache_arguments(directory: Path, *more: str) -> list[str]:
    return ["cache", "--socket=/s", "--state-dir=/d", f"--cache-dir={directory}", "--registry=/r", *more]


def test_flags_become_settings(settings_run: list[Any], tmp_path: Path) -> None:
    flags = ("--cache-limit=5GiB", "--free-floor=1MiB", "--no-passthrough", "--fetch-threads=3", "--keeper-socket=/k")
    assert (
        run_command(cache_arguments(tmp_path, *flags, "--allowed-endpoint=https://a", "--allowed-endpoint=https://b"))
        == 0
    )
    (settings,) = settings_run
    assert isinstance(settings, CacheDaemonSettings)
    assert settings.chunk_store.directory == tmp_path
    assert (settings.chunk_store.limit_bytes, settings.chunk_store.free_floor_bytes) == (5 << 30, 1 << 20)
    assert (settings.fuse.passthrough, settings.reading.fetch_threads) == (False, 3)
    assert settings.keeper_socket == Path("/k")
    assert settings.policy.allowed_endpoints == ("https://a", "https://b")
    assert not settings.policy.allow_file_urls


def test_watermarks_are_shares_in_ascending_order(settings_run: list[Any], tmp_path: Path, capsys: Any) -> None:
    marks = ("--cache-high-watermark=90%", "--cache-low-watermark=80%")
    assert run_command(cache_arguments(tmp_path, *marks)) == 0
    assert (settings_run[0].chunk_store.low_watermark, settings_run[0].chunk_store.high_watermark) == (0.8, 0.9)
    assert run_command(cache_arguments(tmp_path, "--cache-high-watermark=90%")) != 0
    assert "--cache-low-watermark" in capsys.readouterr().err
    assert run_command(cache_arguments(tmp_path, "--cache-high-watermark=0.9")) != 0
    assert "--cache-high-watermark" in capsys.readouterr().err


def test_the_environment_sets_values_without_a_flag(
    settings_run: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HAYLOFT_ENDPOINT": "unix:///e",
        "HAYLOFT_NODE_ID": "from-environment",
        "HAYLOFT_DAEMON_SOCKET": "/s",
        "HAYLOFT_KUBELET_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    assert run_command(["node", "--node-id=from-flag"]) == 0
    assert settings_run == [
        NodeSettings(endpoint="unix:///e", node_id="from-flag", daemon_socket=Path("/s"), kubelet_directory=tmp_path)
    ]


def test_the_old_name_of_the_warmup_flag_works_with_a_warning(
    settings_run: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(cache_arguments(tmp_path, "--warmup-fetches=3")) == 0
    assert capfd.readouterr().err == ""
    assert run_command(cache_arguments(tmp_path, "--warm-up-fetches=5")) == 0
    assert capfd.readouterr().err.startswith("hayloft: warning: --warm-up-fetches")
    monkeypatch.setenv("HAYLOFT_WARM_UP_FETCHES", "6")
    assert run_command(cache_arguments(tmp_path)) == 0
    assert "use --warmup-fetches" in capfd.readouterr().err
    assert [settings.reading.warmup_fetches for settings in settings_run] == [3, 5, 6]
    assert run_command(["cache", "--help"]) == 0
    assert "--warm-up-fetches" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["bench", "demo"])
def test_a_command_of_the_benchmark_without_hayloft_bench_prints_the_pip_line_and_exits_with_1(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("csi_driver.telemetry.set_up_logging", lambda *_, **__: None)
    monkeypatch.setattr("csi_driver.cli.extension_commands.entry_points", lambda **_: [])
    assert run_command([name, "--help"]) == 1
    assert capfd.readouterr() == (
        "",
        f"hayloft: {name}: needs the package hayloft-bench, which is not installed; pip install 'hayloft[bench]'\n",
    )


def test_a_command_of_the_benchmark_gets_its_arguments_and_returns_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[str]] = []

    class EntryPoint:
        def load(self) -> Any:
            return lambda arguments: calls.append(arguments) or 7

    monkeypatch.setattr("csi_driver.telemetry.set_up_logging", lambda *_, **__: None)
    monkeypatch.setattr("csi_driver.cli.extension_commands.entry_points", lambda **_: [EntryPoint()])
    assert run_command(["bench", "run", "--quick", "--help"]) == 7
    assert calls == [["run", "--quick", "--help"]]


def test_every_flag_has_a_variable_of_its_name() -> None:
    group: Any = typer.main.get_command(cli.app)
    checked = 0
    for command in group.commands.values():
        for parameter in command.params:
            if parameter.opts[0].startswith("--") and parameter.opts[0] != "--help":
                expected = "HAYLOFT_" + parameter.opts[0].removeprefix("--").replace("-", "_").upper()
                if (command.name, expected) == ("inspect", "HAYLOFT_ENDPOINT"):  # of CSI; here deprecated
                    expected = None
                assert parameter.envvar == expected, (command.name, parameter.opts)
                checked += 1
    assert checked > 50


def test_the_controller_and_all_in_one_get_their_settings(settings_run: list[Any], tmp_path: Path) -> None:
    assert (
        run_command(["controller", "--endpoint=unix:///e", "--registry=s3://b/p", "--registry-endpoint=http://x"]) == 0
    )
    arguments = ["all-in-one", "--endpoint=unix:///e", f"--registry={tmp_path}/r", f"--cache-dir={tmp_path}"]
    assert run_command([*arguments, "--cache-limit=10%", "--log-level=debug"]) == 0
    first, second = settings_run
    assert isinstance(first, ControllerSettings)
    assert (first.registry.location, first.registry.endpoint) == ("s3://b/p", "http://x")
    assert isinstance(second, AllInOneSettings)
    assert second.node_id
    assert second.policy.allow_file_urls
    assert "--cache-limit=10%" in second.cache_arguments
    assert "--log-level=debug" in second.child_arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["cache"], "--socket"),
        (["bogus"], "bogus"),
        (["node", "--endpoint=e", "--node-id=n", "--daemon-socket=/s", "--bogus=1"], "--bogus"),
        (["cache", "--log-level=loud"], "--log-level"),
        (["cache", "--fuse-threads=two"], "--fuse-threads"),
        (["inspect", "nothing-like-a-url"], "url"),
        (["keeper", "--socket"], "--socket"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hayloft: ")
    assert named in err


@pytest.mark.promise("S280")
@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--cache-dir=/does/not/exist", "--cache-dir: /does/not/exist"),
        ("--cache-limit=much", "--cache-limit: 'much'"),
        ("--cache-limit=10", "--cache-limit: '10' is not allowed"),
        ("--cache-limit=10", "10 has no unit"),
        ("--cache-limit=500000", "1MiB or more"),
        ("--cache-limit=20kB", "1MiB or more"),
        ("--free-floor=10", "10 has no unit"),
        ("--free-floor=100%", "less than the file system"),
        ("--free-floor=9999TiB", "less than the file system"),
        ("--write-queue=128", "128 has no unit"),
        ("--small-object=4", "4 has no unit"),
        ("--scrub-rate=16", "16 has no unit"),
        ("--inline-reservation=1.5", "1.5 has no unit"),
        ("--fuse-threads=0", "--fuse-threads: 0"),
        ("--fetch-chunks=17", "--fetch-chunks: 17"),
        ("--entry-timeout=-1", "--entry-timeout: -1"),
        ("--metrics-port=70000", "--metrics-port: 70000"),
    ],
)
def test_a_value_out_of_range_is_reported_with_its_flag(
    settings_run: list[Any], tmp_path: Path, flag: str, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(cache_arguments(tmp_path, flag)) == 2
    err = capfd.readouterr().err
    assert named in err
    assert err.count("\n") == 1
    assert settings_run == []


def test_the_free_floor_is_automatic_unless_it_is_given(settings_run: list[Any], tmp_path: Path) -> None:
    for flags in ((), ("--free-floor=auto", "--kubelet-dir=/k"), ("--free-floor=0",)):
        assert run_command(cache_arguments(tmp_path, *flags)) == 0
    floors = [(one.chunk_store.free_floor_bytes, str(one.chunk_store.kubelet_directory)) for one in settings_run]
    assert floors == [(None, "/var/lib/kubelet"), (None, "/k"), (0, "/var/lib/kubelet")]


def test_a_failure_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: object) -> None:
        raise RegistryUnavailable("registry s3://b: down;\nask its operator")

    monkeypatch.setattr(cache, "run", fail)
    monkeypatch.setattr("csi_driver.telemetry.set_up_logging", lambda *_, **__: None)
    assert run_command(cache_arguments(tmp_path)) == 1
    assert capfd.readouterr().err == "hayloft: registry s3://b: down; ask its operator\n"


def test_no_arguments_show_the_help_and_are_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 2
    assert "all-in-one" in capfd.readouterr().out


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "csi_driver.cli", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_prints_its_version_and_no_traceback() -> None:
    printed = run_program("version")
    assert (printed.returncode, printed.stdout.split()[0]) == (0, "hayloft")
    assert run_program("--version").stdout == printed.stdout
    wrong = run_program("node", "--endpoint=tcp://1.2.3.4:5", "--node-id=n", "--daemon-socket=/s")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("hayloft: --endpoint: 'tcp://1.2.3.4:5'")
    assert "Traceback" not in wrong.stderr


def test_the_keeper_starts_with_the_standard_library_alone() -> None:
    program = (
        "import sys; import csi_driver.wiring.keeper_process; from csi_driver.cli import main\n"
        "try: main(['keeper', '--bogus'])\n"
        "except SystemExit as ended: assert ended.code == 2\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == "hayloft: unrecognized arguments: --bogus\n"


def test_the_keeper_requires_a_socket_and_known_levels(capfd: pytest.CaptureFixture[str]) -> None:
    from csi_driver.cli.keeper_command import run_keeper

    assert run_keeper([]) == 2
    assert "HAYLOFT_SOCKET" in capfd.readouterr().err
    assert run_keeper(["--socket=/s", "--daemon-timeout=soon"]) == 2
    assert "--daemon-timeout: 'soon' is not allowed; allowed: a duration such as 90s" in capfd.readouterr().err
    assert run_keeper(["--socket=/s", "--log-level=loud"]) == 2
    assert "loud" in capfd.readouterr().err


@pytest.mark.promise("S265")
def test_libraries_of_a_command_find_one_rule_for_proxies_in_the_environment() -> None:
    program = (
        "import os; from csi_driver.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(os.environ['https_proxy'], os.environ['NO_PROXY'].split(',')[0])"
    )
    environment = {"PATH": os.environ["PATH"], "ALL_PROXY": "http://proxy:1", "no_proxy": ".svc"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "http://proxy:1 svc", ended.stderr


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `hayloft inspect` would list: URL, include, exclude, options."""
    calls: list[Any] = []
    monkeypatch.setattr("csi_driver.wiring.dataset_inspection.inspect", lambda *values, **_: calls.append(values[:4]))
    monkeypatch.setattr("csi_driver.telemetry.set_up_logging", lambda *_, **__: None)
    return calls


@pytest.mark.promise("S288")
def test_globs_of_inspect_mean_what_the_parameters_mean(inspected: list[Any]) -> None:
    assert run_command(["inspect", "s3://b", "--include=a/*,*.jpg", "--include=x", "--exclude=b,c\nd\n"]) == 0
    assert inspected[0][1:3] == (("a/*", "*.jpg", "x"), ("b,c", "d"))
    parameters = VolumeParameters.parse({"url": "s3://b", "include": "a/*,*.jpg", "exclude": "b,c\nd\n"})
    assert (parameters.include, parameters.exclude) == (("a/*", "*.jpg"), inspected[0][2])


@pytest.mark.promise("S288")
def test_the_old_name_of_the_store_endpoint_works_with_a_warning(
    inspected: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAYLOFT_ENDPOINT", "unix:///csi.sock")  # of CSI
    assert run_command(["inspect", "s3://b", "--store-endpoint=https://a"]) == 0
    assert capfd.readouterr().err == ""
    assert run_command(["inspect", "s3://b", "--endpoint=https://b"]) == 0
    assert "use --store-endpoint" in capfd.readouterr().err
    assert [call[3].endpoint for call in inspected] == ["https://a", "https://b"]
    assert run_command(["inspect", "--help"]) == 0
    assert " --endpoint" not in capfd.readouterr().out


@pytest.mark.promise("S289")
def test_inspect_says_once_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def wait(*_: Any, **__: Any) -> None:
        now = iter(range(100))
        policy = RetryPolicy(5.0, clock=lambda: next(now), sleep=lambda _: None)
        error = TransientStoreError("nothing answers at http://store", when_exhausted=EndpointUnreachable)

        def fail() -> None:
            raise error

        policy.call(fail)

    monkeypatch.setattr("csi_driver.wiring.dataset_inspection.inspect", wait)
    monkeypatch.setattr("csi_driver.telemetry.set_up_logging", lambda *_, **__: None)
    assert run_command(["inspect", "s3://b"]) == 1
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("hayloft: retrying: nothing answers at http://store; until 120 s have passed")
    assert last.startswith("hayloft: retries exhausted within 5 s: nothing answers at http://store")
    logging.getLogger("csi_driver.objects.retrying").debug("afterwards nothing is said")
    assert capfd.readouterr().err == ""


@pytest.mark.promise("S292")
def test_an_unexpected_error_names_the_process_that_has_it_in_its_log() -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        for name in ("cache", "controller", "node", "all-in-one"):
            telemetry.set_up_logging(name, out=io.StringIO())
            outcome = _outcome_of("Mount", ZeroDivisionError(), telemetry.Mask(()))
            assert outcome.message.endswith(f"see the log of `hayloft {name}`")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
