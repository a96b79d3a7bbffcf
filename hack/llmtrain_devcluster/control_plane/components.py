"""The command lines of the control plane's components, with reasons for unusual flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.control_plane.build import Binaries

API_ONLY_ADMISSION_OFF = "ServiceAccount,TaintNodesByCondition"


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one cluster, all on 127.0.0.1."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True, slots=True)
class Options:
    """The optional components of a cluster, and their flags."""

    controller_manager: bool = True
    scheduler: bool = True
    audit: bool = False
    node_monitor_grace: str = "1h"
    gogc: int = 400
    """Growth of a component's heap between two garbage collections, in per cent. With 400 the API
    server takes a quarter less CPU time than with Go's default of 100, and 300 MiB more memory."""
    apiserver_args: Sequence[str] = ()
    controller_manager_args: Sequence[str] = ()
    scheduler_args: Sequence[str] = ()


def signing_key(folder: Path) -> Path:
    """Return the key that signs ServiceAccount tokens.

    It is the serving key, which the API server generates before it reads this option, so no other
    tool has to generate keys.
    """
    return folder / "tls" / "apiserver.key"


def etcd_command(binaries: Binaries, folder: Path, ports: Ports) -> list[str]:
    """Return etcd's command line. Its data is temporary, so it does not wait for the disk."""
    client = f"http://127.0.0.1:{ports.etcd}"
    peer = f"http://127.0.0.1:{ports.etcd_peer}"
    return [
        str(binaries.etcd),
        "--name=devcluster",
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=devcluster={peer}",
        "--log-level=warn",
    ]


def apiserver_command(
    binaries: Binaries, folder: Path, ports: Ports, options: Options
) -> list[str]:
    """Return the API server's command line."""
    command = [
        str(binaries.apiserver),
        f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        # The reconciler rejects a loopback address, and the API server would exit.
        "--endpoint-reconciler-type=none",
        f"--secure-port={ports.apiserver}",
        f"--cert-dir={folder / 'tls'}",
        "--authorization-mode=RBAC",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={signing_key(folder)}",
        f"--service-account-signing-key-file={signing_key(folder)}",
        # Process nodes serve logs at their loopback address, not at their name.
        "--kubelet-preferred-address-types=InternalIP",
    ]
    if not options.controller_manager:
        # No controller creates ServiceAccounts or removes the not-ready taint.
        command.append(f"--disable-admission-plugins={API_ONLY_ADMISSION_OFF}")
    if options.audit:
        command += [
            f"--audit-policy-file={folder / 'audit-policy.yaml'}",
            f"--audit-log-path={folder / 'audit.log'}",
        ]
    return [*command, *options.apiserver_args]


def component_environment(options: Options) -> dict[str, str]:
    """Return a component's variables: when it collects garbage, with a limit of 2 GiB."""
    return {"GOGC": str(options.gogc), "GOMEMLIMIT": "2GiB"}


def controller_manager_command(
    binaries: Binaries, folder: Path, ports: Ports, options: Options
) -> list[str]:
    """Return the controller manager's command line.

    The endpoint controllers are disabled: an EndpointSlice rejects the loopback addresses of
    pods, and the controllers would retry forever.
    """
    off = ("endpointslice-controller", "endpoints-controller", "endpointslice-mirroring-controller")
    return [
        str(binaries.controller_manager),
        f"--kubeconfig={folder / 'controller-manager.kubeconfig'}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={signing_key(folder)}",
        f"--root-ca-file={folder / 'tls' / 'apiserver.crt'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports.controller_manager}",
        f"--cert-dir={folder / 'tls-controller-manager'}",
        f"--node-monitor-grace-period={options.node_monitor_grace}",
        # The default limits slow down the start.
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        "--controllers=*," + ",".join(f"-{name}" for name in off),
        *options.controller_manager_args,
    ]


def scheduler_command(
    binaries: Binaries, folder: Path, ports: Ports, options: Options
) -> list[str]:
    """Return the scheduler's command line."""
    return [
        str(binaries.scheduler),
        f"--kubeconfig={folder / 'scheduler.kubeconfig'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports.scheduler}",
        f"--cert-dir={folder / 'tls-scheduler'}",
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        *options.scheduler_args,
    ]


WRITES = ("create", "update", "patch", "delete", "deletecollection")


def audit_policy(users: Sequence[str]) -> str:
    """Return a policy that records all writes, and all requests of these users."""
    requests = [{"level": "Metadata", "users": list(users)}] if users else []
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [*requests, {"level": "Metadata", "verbs": list(WRITES)}, {"level": "None"}],
    }
    return json.dumps(policy)
