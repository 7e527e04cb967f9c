"""``kubectl hayloft`` beside a kubectl that is made up: two nodes, one of them with a daemon that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csi_driver.volumes.status_documents import status_document, volume_document
from tests.architecture.source_tree import REPOSITORY
from tools import command_examples as examples

pytestmark = pytest.mark.promise("S593")

PLUGIN = REPOSITORY / "deploy" / "kubectl" / "kubectl-hayloft"

KUBECTL = f"""#!{sys.executable}
import json, os, sys
answers = json.load(open(os.environ["ANSWERS"]))
words = " ".join(sys.argv[1:])
given = "" if sys.stdin.isatty() else sys.stdin.read()
open(os.environ["CALLS"], "a").write(words + chr(10))
if given:
    open(os.environ["GIVEN"], "a").write(given + chr(10))
for part, code, out, err in answers:
    if part in words:
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
sys.stderr.write("Error from server (NotFound): " + words)
sys.exit(1)
"""


@dataclass
class Cluster:
    directory: Path
    answers: list[tuple[str, int, str, str]]

    def run(self, *words: str) -> tuple[int, str, str]:
        (self.directory / "answers").write_text(json.dumps(self.answers))
        environment = {
            **os.environ,
            "PATH": f"{self.directory}:/usr/bin:/bin",
            "ANSWERS": str(self.directory / "answers"),
            "CALLS": str(self.directory / "calls"),
            "GIVEN": str(self.directory / "given"),
        }
        result = subprocess.run(
            (sys.executable, PLUGIN, *words),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return result.returncode, result.stdout, result.stderr

    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()


def pod(node: str, phase: str = "Running") -> dict[str, Any]:
    metadata = {"name": f"hayloft-node-{node}", "namespace": "storage"}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase}}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    claim = {"spec": {"volumeName": "pv-tokens"}}
    volume = {"spec": {"csi": {"driver": "csi.hayloft.dev", "volumeHandle": "tokens"}}}
    other = {"spec": {"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1"}}}
    pods = {"items": [pod("b"), pod("a"), pod("c", "Pending")]}
    silent = "Defaulted container\nhayloft: /s: the cache daemon did not answer within 1.2 s: process 7 is stopped\n"
    volumes = json.dumps([volume_document(examples.TOKENS), volume_document(examples.IMAGENET)])
    status = json.dumps(status_document(examples.STATUS, None))
    return Cluster(
        tmp_path,
        [
            ("get pods", 0, json.dumps(pods), ""),
            ("-n language get persistentvolumeclaim tokens", 0, json.dumps(claim), ""),
            ("get persistentvolumeclaim disk", 0, json.dumps({"spec": {"volumeName": "pv-disk"}}), ""),
            ("get persistentvolumeclaim new", 0, json.dumps({"spec": {}}), ""),
            ("get persistentvolume pv-tokens", 0, json.dumps(volume), ""),
            ("get persistentvolume pv-disk", 0, json.dumps(other), ""),
            ("exec hayloft-node-a -c cache -- hayloft volumes --json", 0, volumes, ""),
            ("exec hayloft-node-a -c cache -- hayloft status", 6, status, ""),
            ("exec hayloft-node-a -c cache -- hayloft warm", 0, "volume tokens: running\n", ""),
            ("exec hayloft-node-a -c cache -- hayloft doctor", 6, "problem  kernel\n", ""),
            ("exec hayloft-node-a -c cache -- hayloft top", 0, "top of a\n", ""),
            ("exec hayloft-node-b", 4, "", silent),
        ],
    )


def test_a_claim_is_shown_on_each_node_and_a_silent_node_is_named(cluster: Cluster) -> None:
    code, out, _ = cluster.run("status", "tokens", "-n", "language")
    assert code == 6
    lines = out.splitlines()
    assert lines[0].split() == ["NODE", "CACHED", "BYTES", "OF", "WARMUP", "STATE"]
    assert lines[1].split() == ["a", "25.0%", "201.0", "GiB", "805.0", "GiB", "running", "ObjectsChanged,", "pinned"]
    assert lines[2] == "b: /s: the cache daemon did not answer within 1.2 s: process 7 is stopped"
    assert "Make a volume of a new snapshot" in lines[3]
    code, out, _ = cluster.run("status", "tokens", "-n", "language", "--json")
    document = json.loads(out)
    assert [one["node"] for one in document["nodes"]] == ["a"]
    assert [one["node"] for one in document["problems"]] == ["b"]


def test_the_caches_of_all_nodes_are_one_table(cluster: Cluster) -> None:
    code, out, _ = cluster.run("status")
    assert code == 6
    assert out.splitlines()[1].split() == [
        *("a", "0.1.0", "339.0", "GiB", "1.7", "TiB", "97.5%", "2", "ObjectsChanged")
    ]


def test_a_warmup_is_started_where_the_claim_is_mounted(cluster: Cluster) -> None:
    code, out, _ = cluster.run("warm", "tokens", "-n", "language")
    assert (code, out) == (0, "a: volume tokens: running\n")
    warmed = [call for call in cluster.calls() if " warm " in call]
    assert warmed == ["-n storage exec hayloft-node-a -c cache -- hayloft warm tokens --no-wait"]
    code, out, _ = cluster.run("warm", "tokens", "-n", "language", "--node", "b")
    assert (code, "b: " in out) == (1, True)


def report(state: str, done: int, message: str = "") -> str:
    fields = {"volume_id": "tokens", "total_bytes": 400, "done_bytes": done, "fetched_bytes": done, "rate_bytes": 0}
    return json.dumps({**fields, "state": state, "message": message})


def on(node: str, words: str) -> str:
    return f"exec hayloft-node-{node} -c cache -- hayloft {words}"


@pytest.fixture
def pool(cluster: Cluster) -> Cluster:
    """Five nodes of a pool: three that mount the claim, one that does not, and one without the driver."""
    names = ("g1", "g2", "g3", "g4", "g5")
    nodes = {"items": [{"metadata": {"name": name}} for name in names]}
    pods = {"items": [pod(name) for name in (*names[:4], "a")]}
    volumes = json.dumps([volume_document(examples.TOKENS)])
    cluster.answers = [
        ("get pods", 0, json.dumps(pods), ""),
        ("get nodes -l pool=gpu", 0, json.dumps(nodes), ""),
        ("get nodes -l pool=none", 0, json.dumps({"items": []}), ""),
        (on("g4", "volumes"), 0, "[]", ""),
        *((on(name, "volumes"), 0, volumes, "") for name in names[:3]),
        *((on(name, "warm tokens --no-wait"), 0, "volume tokens: running", "") for name in names[:4]),
        (on("g1", "warm tokens --status"), 0, report("complete", 400), ""),
        (on("g2", "warm tokens --status"), 1, report("full", 100, "the rest does not fit"), ""),
        (on("g3", "warm tokens --status"), 0, report("complete", 400), ""),
        (on("g4", "warm tokens --status"), 0, report("complete", 400), ""),
        *cluster.answers[1:],
    ]
    return cluster


@pytest.mark.promise("S645")
def test_nodes_of_a_selector_begin_at_different_places_and_those_that_fail_are_named(pool: Cluster) -> None:
    code, out, err = pool.run("warm", "tokens", "-n", "language", "--nodes", "pool=gpu", "--wait")
    assert code == 1
    warmed = sorted(call.partition("hayloft warm ")[2] for call in pool.calls() if "--no-wait" in call)
    assert warmed == [
        "tokens --no-wait",
        "tokens --no-wait --start-at 33.33%",
        "tokens --no-wait --start-at 66.67%",
    ]
    rows = [line.split() for line in out.splitlines() if line.startswith("g") and ":" not in line]
    assert rows == [
        ["g1", "complete", *["400", "B"] * 3],
        ["g2", "full", "100", "B", "400", "B", "100", "B"],
        ["g3", "complete", *["400", "B"] * 3],
    ]
    assert "g2: full: the rest does not fit" in out
    assert "g4: the claim is mounted by no pod there; --mount does it" in out
    assert "g5: no pod of the driver runs there" in out
    assert "3 of 3 nodes have ended, 75.0% of 1.2 KiB" in err
    assert not [call for call in pool.calls() if "node-a" in call], "a is not of the pool"


@pytest.mark.promise("S645")
def test_a_claim_that_no_pod_mounts_there_is_mounted_for_the_time_of_the_warmup(pool: Cluster) -> None:
    described = {"spec": {"containers": [{"name": "hayloft", "image": "x"}, {"name": "cache", "image": "driver:1"}]}}
    pool.answers = [
        ("get pod hayloft-node-g4", 0, json.dumps(described), ""),
        ("create -f - -o name", 0, "pod/hayloft-warm-tokens-x\n", ""),
        ("wait --for=condition=Ready pod/hayloft-warm-tokens-x", 0, "", ""),
        ("delete --wait=false --ignore-not-found pod/hayloft-warm-tokens-x", 0, "", ""),
        *pool.answers,
    ]
    code, out, _ = pool.run("warm", "tokens", "-n", "language", "--nodes", "pool=gpu", "--mount")
    assert (code, "g4" in [line.split()[0] for line in out.splitlines()]) == (1, True)
    made = json.loads((pool.directory / "given").read_text())
    assert made["spec"]["nodeName"] == "g4"
    assert made["spec"]["containers"][0]["image"] == "driver:1"
    assert made["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "tokens", "readOnly": True}
    calls = pool.calls()
    assert calls[-1].startswith("-n language delete")
    assert max(number for number, call in enumerate(calls) if "--status" in call) < len(calls) - 1


@pytest.mark.promise("S645")
def test_a_pod_that_does_not_become_ready_is_removed_and_its_node_named(pool: Cluster) -> None:
    described = {"spec": {"containers": [{"name": "cache", "image": "driver:1"}]}}
    events = {"items": [{"message": "FailedMount: access denied"}]}
    pool.answers = [
        ("get pod hayloft-node-g4", 0, json.dumps(described), ""),
        ("create -f - -o name", 0, "pod/hayloft-warm-tokens-x\n", ""),
        ("wait --for=condition=Ready", 1, "", "error: timed out waiting"),
        ("get events --field-selector=involvedObject.name=hayloft-warm-tokens-x", 0, json.dumps(events), ""),
        ("delete", 0, "", ""),
        *pool.answers,
    ]
    code, out, _ = pool.run("warm", "tokens", "-n", "language", "--nodes", "pool=gpu", "--mount")
    assert code == 1
    assert "g4: pod/hayloft-warm-tokens-x was not ready within 180 s: FailedMount: access denied" in out
    assert pool.calls()[-1].endswith("pod/hayloft-warm-tokens-x")


@pytest.mark.promise("S645")
def test_a_selector_without_nodes_is_an_error(pool: Cluster) -> None:
    code, _, err = pool.run("warm", "tokens", "-n", "language", "--nodes", "pool=none")
    assert (code, "no node has the labels pool=none" in err) == (1, True)


def test_commands_on_a_node_pass_on_output_and_exit_code(cluster: Cluster) -> None:
    assert cluster.run("doctor", "a")[:2] == (6, "problem  kernel\n")
    assert cluster.run("on", "a", "top", "--interval", "1s")[:2] == (0, "top of a\n")
    assert cluster.calls()[-1].endswith("hayloft top --interval 1s")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "disk"), "is of another driver (ebs.csi.aws.com)"),
        (("status", "new"), "is not bound to a volume yet"),
        (("status", "none"), "NotFound"),
        (("doctor", "z"), "no pod of the driver runs on node z; it runs on a, b"),
    ],
)
def test_what_cannot_be_shown_is_explained(cluster: Cluster, words: tuple[str, ...], message: str) -> None:
    code, out, err = cluster.run(*words)
    assert (code, out) == (1, "")
    assert message in err
