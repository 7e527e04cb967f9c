"""``hayloft node``. Imports no settings: see ``application.py``."""

from __future__ import annotations

from pathlib import Path

from csi_driver import telemetry
from csi_driver.cli import options as flags


def node(
    endpoint: flags.Endpoint,
    node_id: flags.NodeId,
    daemon_socket: flags.DaemonSocket,
    kubelet_dir: flags.KubeletDirectory = None,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Serve CSI Identity and Node: publishes volumes to pods."""
    from csi_driver.wiring import node_process as wiring

    telemetry.set_up_logging("node", log_level, log_format)
    wiring.run(
        wiring.NodeSettings(
            endpoint=endpoint, node_id=node_id, daemon_socket=daemon_socket, kubelet_directory=absolute(kubelet_dir)
        )
    )


def absolute(path: Path | None) -> Path | None:
    """Of a flag that may be absent."""
    return None if path is None else path.absolute()
