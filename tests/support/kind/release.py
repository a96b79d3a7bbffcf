"""The release of the chart in the kind cluster, and what is in the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_chart.helm import Major, run_helm
from llmtrain_chart.paths import CHART
from llmtrain_kind.cluster import KindCluster

SYSTEM = "llmtrain-system"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
CHANGING = {
    "componentstatuses",
    "controllerrevisions.apps",
    "events",
    "events.events.k8s.io",
    "ipaddresses.networking.k8s.io",
}
"""Kinds whose objects come and go, or only repeat others."""
BACKGROUND = ("kube-node-lease", "kube-public", "kube-system", "local-path-storage")
"""Namespaces of the cluster itself."""


@dataclass(frozen=True, slots=True)
class KindRelease:
    """Helm in the namespace of the operator."""

    cluster: KindCluster
    values: Mapping[str, Any]
    folder: Path

    def helm(self, *arguments: str, major: Major = 4) -> str:
        """Run Helm; raise HelmError if it fails."""
        env = {"KUBECONFIG": str(self.cluster.kubeconfig)}
        return run_helm([*arguments, "--namespace", SYSTEM], major, env)

    def package(self, chart: Path = CHART) -> Path:
        """Return the chart as the file that a user would install."""
        text = run_helm(["package", str(chart), "--destination", str(self.folder)])
        return Path(text.strip().rpartition(" ")[2])

    def install(
        self, *options: str, name: str = "llmtrain", chart: Path = CHART, major: Major = 4
    ) -> None:
        """Install the chart and wait until the operator is ready."""
        self._apply("install", name, chart, *options, major=major)

    def upgrade(self, *options: str, name: str = "llmtrain", chart: Path = CHART) -> None:
        """Install or upgrade the release and wait until the operator is ready."""
        self._apply("upgrade", name, chart, "--install", *options)

    def uninstall(self, name: str = "llmtrain") -> None:
        """Uninstall the release and wait until its objects are gone."""
        self.helm("uninstall", name, "--wait", "--timeout=300s")

    def _apply(self, command: str, name: str, chart: Path, *options: str, major: Major = 4) -> None:
        file = self.folder / "values.json"
        file.write_text(json.dumps(self.values))
        wait = ("--wait", "--timeout=300s", "--values", str(file))
        self.helm(command, name, str(self.package(chart)), *wait, *options, major=major)


def inventory(cluster: KindCluster) -> set[str]:
    """Return all objects outside the namespaces of the cluster itself, as KIND/NAMESPACE/NAME."""
    kubectl = cluster.kubectl
    kinds = set(kubectl("api-resources", "--verbs=list", "--output=name").split()) - CHANGING
    template = (
        "{range .items[*]}{.kind} {.metadata.namespace} {.metadata.name}"
        ' {.metadata.ownerReferences[*].kind}{"\\n"}{end}'
    )
    text = kubectl(
        "get", ",".join(sorted(kinds)), "--all-namespaces", f"--output=jsonpath={template}"
    )
    found = set()
    for line in text.splitlines():
        kind, namespace, name = line.split(" ")[:3]
        if namespace not in BACKGROUND and name != "kube-root-ca.crt":
            found.add(f"{kind}/{namespace}/{name}")
    return found
