"""``hayloft node``. Imports no settings: see ``application.py``."""

from __future__ import annotations

from pathlib import Path

from csi_driver import telemetry
from csi_driver.cli import options as flags
from csi_driver.cli.flag_values import parse_port, parse_topology
from csi_driver.model.errors import InvalidParameter


def node(
    endpoint: flags.Endpoint,
    node_id: flags.NodeId,
    daemon_socket: flags.DaemonSocket,
    kubelet_dir: flags.KubeletDirectory = None,
    registration_dir: flags.RegistrationDirectory = None,
    registration_endpoint: flags.RegistrationEndpoint = "",
    topology: flags.Topology = None,
    max_volumes: flags.MostVolumes = 0,
    health_port: flags.HealthPort = 0,
    standby: flags.Standby = False,
    remove_startup_taint: flags.RemoveStartupTaint = False,
    ready_condition: flags.ReadyCondition = False,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Serve CSI Identity and Node: publishes volumes to pods."""
    from csi_driver.wiring import node_process as wiring

    if max_volumes < 0:
        raise InvalidParameter("--max-volumes", max_volumes, "0 (no limit) or more")
    if registration_endpoint and not registration_endpoint.startswith("/"):
        raise InvalidParameter("--registration-endpoint", registration_endpoint, "an absolute path on the host")
    settings = wiring.NodeSettings(
        endpoint=endpoint,
        node_id=node_id,
        daemon_socket=daemon_socket,
        kubelet_directory=absolute(kubelet_dir),
        registration_directory=absolute(registration_dir),
        registration_endpoint=registration_endpoint,
        topology=parse_topology("--topology", topology or ()),
        most_volumes=max_volumes,
        health_port=parse_port("--health-port", health_port),
        standby=standby,
        remove_startup_taint=remove_startup_taint,
        ready_condition=ready_condition,
    )
    telemetry.set_up_logging("node", log_level, log_format, node=node_id)
    telemetry.change_level_on_signals()
    wiring.run(settings)


def absolute(path: Path | None) -> Path | None:
    """Of a flag that may be absent."""
    return None if path is None else path.absolute()
