"""What a cluster needs beside Kubernetes: enforced NetworkPolicies, a closed DNS, and GPUs."""

from __future__ import annotations

import json
import re
from typing import Any

from llmtrain_kind.guard import SERVICES
from llmtrain_kind.kubectl import Kubectl
from llmtrain_kind.kubernetes_images import ROUTER

SYSTEM = "kube-system"
TIMEOUT = "--timeout=180s"
ROUTER_NAME = "kube-router"


def install_addons(kubectl: Kubectl) -> None:
    """Install the enforcement of NetworkPolicies and set up the DNS server; wait until both run."""
    kubectl.apply(*_network_policies())
    _resolve_cluster_names(kubectl)
    for name in (f"daemonset/{ROUTER_NAME}", "daemonset/kube-proxy", "deployment/coredns"):
        kubectl("rollout", "status", "--namespace", SYSTEM, name, TIMEOUT)


def add_gpus(kubectl: Kubectl, node: str, count: int) -> None:
    """Let a node report GPUs. The kubelet keeps a resource that it does not know."""
    patch = [
        {"op": "add", "path": f"/status/{field}/nvidia.com~1gpu", "value": str(count)}
        for field in ("capacity", "allocatable")
    ]
    options = ("--subresource=status", "--type=json", f"--patch={json.dumps(patch)}")
    kubectl("patch", "node", node, *options)


def _resolve_cluster_names(kubectl: Kubectl) -> None:
    """Refuse names outside the cluster at once; they would time out after seconds otherwise."""
    text = kubectl.get("configmap/coredns", "--namespace", SYSTEM)["data"]["Corefile"]
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "coredns", "namespace": SYSTEM},
        "data": {"Corefile": re.sub(r"    forward [^{]*\{[^}]*\}\n", "", text)},
    }
    kubectl.apply(config)
    # One replica, where a test that kills a worker does not end it. The change starts a new pod,
    # which reads the configuration.
    pod = {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}
    patch = {"spec": {"replicas": 1, "template": {"spec": pod}}}
    kubectl("patch", "-n", SYSTEM, "deployment/coredns", f"--patch={json.dumps(patch)}")


def _network_policies() -> list[dict[str, Any]]:
    """Return kube-router as the controller of NetworkPolicies only: kube-proxy does the rest."""
    metadata = {"name": ROUTER_NAME, "namespace": SYSTEM}
    group = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": ROUTER_NAME, "namespace": SYSTEM}
    read = ["get", "list", "watch"]
    core = ["endpoints", "namespaces", "nodes", "pods", "services"]
    rules = [
        {"apiGroups": [""], "resources": core, "verbs": read},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": read},
    ]
    role = {"apiGroup": group, "kind": "ClusterRole", "name": ROUTER_NAME}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": ROUTER_NAME},
            "rules": rules,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ROUTER_NAME},
            "roleRef": role,
            "subjects": [account],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": {"app": ROUTER_NAME}},
                "template": {
                    "metadata": {"labels": {"app": ROUTER_NAME}},
                    "spec": _router_pod(),
                },
            },
        },
    ]


def _router_pod() -> dict[str, Any]:
    node = {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    return {
        "serviceAccountName": ROUTER_NAME,
        "hostNetwork": True,
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": ROUTER_NAME,
                "image": ROUTER,
                "imagePullPolicy": "Never",
                "command": [
                    ROUTER_NAME,
                    "--run-firewall=true",
                    "--run-router=false",
                    "--run-service-proxy=false",
                    f"--service-cluster-ip-range={SERVICES}",
                    "--iptables-sync-period=1m",
                ],
                "env": [node],
                "securityContext": {"privileged": True},
                "volumeMounts": [{"name": "lock", "mountPath": "/run/xtables.lock"}],
            }
        ],
        "volumes": [
            {"name": "lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}}
        ],
    }
