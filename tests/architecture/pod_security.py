"""The Pod Security Standards (https://kubernetes.io/docs/concepts/security/pod-security-standards/), as far as a pod of
this driver can meet or miss them."""

from __future__ import annotations

from typing import Any

_BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
_RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}


def missed_of_baseline(spec: dict[str, Any]) -> set[str]:
    """Why a namespace that enforces ``baseline`` would refuse the pod; empty: it would not."""
    missed = {name for name in ("hostPID", "hostNetwork", "hostIPC") if spec.get(name)}
    if any("hostPath" in volume for volume in spec.get("volumes", ())):
        missed.add("hostPath")
    for container in _containers(spec):
        context = container.get("securityContext", {})
        if context.get("privileged"):
            missed.add("privileged")
        if set(context.get("capabilities", {}).get("add", ())) - _BASELINE_CAPABILITIES:
            missed.add("capabilities")
        if any(port.get("hostPort") for port in container.get("ports", ())):
            missed.add("hostPort")
        if context.get("procMount", "Default") != "Default":
            missed.add("procMount")
    for context in (spec.get("securityContext", {}), *(one.get("securityContext", {}) for one in _containers(spec))):
        if context.get("seccompProfile", {}).get("type") == "Unconfined":
            missed.add("seccompProfile")
        options = context.get("seLinuxOptions", {})
        if (
            options.get("user")
            or options.get("role")
            or options.get("type", "container_t")
            not in (*("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"),)
        ):
            missed.add("seLinuxOptions")
    return missed


def missed_of_restricted(spec: dict[str, Any]) -> set[str]:
    """As ``missed_of_baseline``, for ``restricted``."""
    missed = missed_of_baseline(spec)
    pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", ()):
        if not (set(volume) - {"name"}) <= _RESTRICTED_VOLUMES:
            missed.add("volume types")
    for container in _containers(spec):
        context = {**pod, **container.get("securityContext", {})}
        if context.get("allowPrivilegeEscalation") is not False:
            missed.add("allowPrivilegeEscalation")
        if not context.get("runAsNonRoot"):
            missed.add("runAsNonRoot")
        if context.get("runAsUser") == 0:
            missed.add("runAsUser: 0")
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            missed.add("seccompProfile")
        capabilities = context.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            missed.add("capabilities")
    return missed


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("containers", ()), *spec.get("initContainers", ()), *spec.get("ephemeralContainers", ())]
