"""The image that ``.ci/image`` has built: what is in it, and the controller in it without root."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.rpc.pb import csi_pb2
from tests.architecture.kubernetes_files import DEPLOY, containers, documents
from tests.architecture.source_tree import REPOSITORY
from tests.support.all_in_one import until
from tests.support.csi_calls import CsiClient, Mode, mount_capability
from tests.support.hostile_s3 import HostileS3
from tests.support.kubernetes_node import KubernetesNode, image_root, image_user
from tests.support.software_lists import problems_of

IMAGE = image_root()

pytestmark = pytest.mark.fuse

INSTALLED = """
import importlib.metadata, json
print(json.dumps({d.metadata["Name"].lower().replace("_", "-").replace(".", "-"): d.version
                  for d in importlib.metadata.distributions()}))
"""


def in_the_image(*command: str) -> str:
    assert IMAGE is not None
    return subprocess.run(["chroot", IMAGE, *command], capture_output=True, text=True, check=True, timeout=120).stdout


def installed() -> dict[str, str]:
    found: dict[str, str] = json.loads(in_the_image("/opt/hayloft/bin/python", "-I", "-c", INSTALLED))
    return found


@pytest.fixture(scope="module")
def software() -> dict[str, Any]:
    assert IMAGE is not None
    text = (IMAGE / "opt/hayloft/sbom.cdx.json").read_text()
    assert problems_of(text) == []
    found: dict[str, Any] = json.loads(text)
    return found


def components(software: dict[str, Any], kind: str) -> dict[str, str]:
    found = [one for one in software["components"] if one.get("purl", "").startswith(f"pkg:{kind}/")]
    return {one["name"]: one["version"] for one in found}


@pytest.mark.promise("S308")
def test_every_package_of_the_image_is_in_its_bill_of_materials(software: dict[str, Any]) -> None:
    assert components(software, "pypi") == installed()
    listing = in_the_image("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\n").splitlines()
    assert listing
    distribution = components(software, "deb/debian") or components(software, "deb/ubuntu")
    assert distribution == dict(line.split("\t") for line in listing)


def test_the_bill_of_materials_names_licences_and_what_was_installed(software: dict[str, Any]) -> None:
    assert software["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]
    packages = [one for one in software["components"] if one.get("purl", "").startswith("pkg:pypi/")]
    assert [one["name"] for one in packages if "licenses" not in one] == []
    lines = (REPOSITORY / "locks/driver.txt").read_text()
    digests = {one["name"]: one["hashes"][0]["content"] for one in packages if one["name"] != "hayloft"}
    assert [name for name, digest in digests.items() if digest not in lines] == []


def test_the_image_has_the_locked_packages_and_the_driver_alone() -> None:
    lines = (REPOSITORY / "locks/driver.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", lines, re.MULTILINE))
    found = installed()
    assert found.pop("hayloft")
    assert found.items() <= locked.items()
    # What is for other platforms and implementations is not installed.
    assert set(locked) - set(found) <= {"colorama"}


def test_no_file_of_the_driver_can_be_changed_by_the_user_of_the_image() -> None:
    assert IMAGE is not None
    writable = [
        path
        for path in (IMAGE / "opt").rglob("*")
        if not path.is_symlink() and (path.stat().st_uid == image_user() or path.stat().st_mode & 0o022)
    ]
    assert writable == []


@pytest.mark.promise("S309")
def test_the_controller_needs_neither_root_nor_a_capability() -> None:
    files = documents(DEPLOY / "kubernetes")
    (shipped,) = (one for one in containers(files) if one.is_ours and one.body["args"][0] == "controller")
    security = {name: value for name, value in shipped.body["securityContext"].items() if name != "runAsUser"}
    assert security["readOnlyRootFilesystem"]
    controller = dataclasses.replace(shipped, body={**shipped.body, "securityContext": security})
    config: dict[str, str] = next(one.body["data"] for one in files if one.kind == "ConfigMap")
    node = KubernetesNode()
    try:
        for directory in (node.outside("/var/lib/hayloft/registry"), *node.empty_directories(controller)):
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, image_user(), image_user())
        node.start(controller, config)
        name = f"{controller.document.name}-{controller.name}"
        client = CsiClient(node.socket(controller, controller.flags["--endpoint"]))
        with HostileS3({"train/a.bin": b"a" * 1000}) as server:
            until(partial(is_ready, client), f"the controller is ready, or {node.log(name)} says why not")
            status = Path(f"/proc/{node.running[name].pid}/status").read_text()
            assert re.search(rf"^Uid:\t{image_user()}\t{image_user()}\t", status, re.MULTILINE)
            assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
            location = {"endpoint": server.endpoint, "region": "us-east-1", "addressingStyle": "path"}
            volume = client.create(
                "pvc-1",
                parameters={"url": f"s3://{server.bucket}/train", **location},
                secrets={"access_key_id": "key", "secret_access_key": "secret"},
                volume_capabilities=[mount_capability(Mode.MULTI_NODE_READER_ONLY)],
            )
            client.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id), timeout=60)
        client.close()
    finally:
        node.close()


def is_ready(client: CsiClient) -> bool:
    try:
        return bool(client.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value)
    except grpc.RpcError:
        return False
