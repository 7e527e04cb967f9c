"""The Indexed Job of the benchmark fits the command, and its parts fit each other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main

from hayloft_bench import cli
from hayloft_bench.distributed.gang import Rank
from hayloft_bench.results.model import PHASES
from hayloft_bench.targets import TARGETS
from hayloft_bench.workloads import WORKLOADS
from tests.architecture.kubernetes_files import DEPLOY, Document, containers, documents, pod_spec
from tests.architecture.source_tree import REPOSITORY

FOLDER = DEPLOY / "benchmarks"
COMMANDS: dict[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009  # of a group alone


def of_kind(kind: str) -> Document:
    (found,) = (document for document in documents(FOLDER) if document.kind == kind)
    return found


JOB, SERVICE = of_kind("Job"), of_kind("Service")
(BENCH,) = containers([JOB])
ENVIRONMENT = {entry["name"]: entry.get("value", "") for entry in BENCH.body["env"]}


def test_every_flag_exists_in_the_command() -> None:
    assert BENCH.body["args"][0] == "bench"
    command = COMMANDS[BENCH.body["args"][1]]
    assert set(BENCH.flags) <= {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize(("flag", "known"), [("--workloads", WORKLOADS), ("--targets", TARGETS), ("--phases", PHASES)])
def test_every_name_in_a_flag_exists(flag: str, known: Any) -> None:
    assert set(BENCH.flags[flag].split(",")) <= set(known)


def test_the_environment_of_a_pod_makes_a_rank() -> None:
    spec = JOB.body["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(ENVIRONMENT["HAYLOFT_BENCH_RANKS"])
    last = Rank.from_environment(ENVIRONMENT | {"JOB_COMPLETION_INDEX": str(spec["completions"] - 1)})
    assert (last.rank, last.ranks) == (spec["completions"] - 1, spec["completions"])


def test_ranks_look_for_rank_0_where_the_service_has_it() -> None:
    pod = pod_spec(JOB)
    assert pod["subdomain"] == SERVICE.name
    assert ENVIRONMENT["HAYLOFT_BENCH_ADDRESS"] == f"{JOB.name}-0.{SERVICE.name}"
    assert SERVICE.body["spec"]["clusterIP"] == "None"
    assert SERVICE.body["spec"]["publishNotReadyAddresses"] is True
    labels = JOB.body["spec"]["template"]["metadata"]["labels"]
    assert SERVICE.body["spec"]["selector"].items() <= labels.items()
    assert SERVICE.namespace == JOB.namespace


def test_the_port_is_one_everywhere() -> None:
    (port,) = SERVICE.body["spec"]["ports"]
    (container_port,) = BENCH.body["ports"]
    assert str(port["port"]) == ENVIRONMENT["HAYLOFT_BENCH_PORT"] == str(container_port["containerPort"])
    assert port["targetPort"] == container_port["name"]


def test_a_rank_that_fails_is_not_started_again_and_nodes_have_one_each() -> None:
    assert JOB.body["spec"]["backoffLimit"] == 0
    assert pod_spec(JOB)["restartPolicy"] == "Never"
    assert "requiredDuringSchedulingIgnoredDuringExecution" in pod_spec(JOB)["affinity"]["podAntiAffinity"]


def test_the_service_cannot_change_settings() -> None:
    """Kubernetes would set HAYLOFT_BENCH_PORT to tcp://… for a Service called hayloft-bench."""
    assert pod_spec(JOB)["enableServiceLinks"] is False


def test_directories_of_the_flags_are_mounted() -> None:
    mounted = {mount["mountPath"] for mount in BENCH.body["volumeMounts"]}
    assert {BENCH.flags["--directory"], BENCH.flags["--out"]} == mounted


def test_the_token_differs_between_jobs_and_is_in_no_argument() -> None:
    (token,) = (entry for entry in BENCH.body["env"] if entry["name"] == "HAYLOFT_BENCH_TOKEN")
    assert token["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['batch.kubernetes.io/controller-uid']"


def test_the_image_is_made_of_what_exists() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    sources = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert sources
    assert all((REPOSITORY / source).exists() for source in sources)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    image = BENCH.body["image"]
    assert any(f"-t {image} " in line for line in lines if line.startswith("#"))


def test_the_page_names_the_files_beside_it() -> None:
    named = set(re.findall(r"^\| `([\w.]+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE))
    present = {path.name for path in FOLDER.iterdir()} - {"README.md", "kustomization.yaml", "Dockerfile.dockerignore"}
    assert named == present
