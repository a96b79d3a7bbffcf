"""Prometheus in the cluster, which scrapes what the monitors of the chart select."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from llmtrain_kind.kubectl import Kubectl, KubectlError
from llmtrain_monitoring.scrape import server_config

NAMESPACE = "monitoring"
NAME = "prometheus"
SCRAPE_INTERVAL = "2s"
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server, queried through the API server."""

    kubectl: Kubectl

    def query(self, expression: str) -> list[Object]:
        """Return the result of an instant query."""
        text = urllib.parse.urlencode({"query": expression})
        answer = self._get(f"query?{text}")
        assert answer["status"] == "success", answer
        found: list[Object] = answer["data"]["result"]
        return found

    def targets(self) -> list[Object]:
        """Return the targets that are scraped."""
        found: list[Object] = self._get("targets?state=active")["data"]["activeTargets"]
        return found

    def wait_for(
        self, expression: str, until: Callable[[list[Object]], bool] = bool, seconds: float = 60
    ) -> list[Object]:
        """Wait until the result of a query is as expected: not empty by default."""
        deadline = time.monotonic() + seconds
        while not until(found := self.query(expression)):
            assert time.monotonic() < deadline, {expression: found, "targets": self._health()}
            time.sleep(0.5)
        return found

    def _health(self) -> list[tuple[str, str, str]]:
        return [(t["scrapePool"], t["health"], t["lastError"]) for t in self.targets()]

    def _get(self, path: str) -> Any:
        service = f"/api/v1/namespaces/{NAMESPACE}/services/{NAME}:9090/proxy/api/v1/"
        return json.loads(self.kubectl("get", "--raw", service + path))


def deploy(kubectl: Kubectl, image: str, scrape_configs: Sequence[Mapping[str, Any]]) -> Prometheus:
    """Start the server and wait until it answers."""
    config = server_config(scrape_configs, (), SCRAPE_INTERVAL)
    kubectl.apply(*_objects(image, yaml.safe_dump(config, sort_keys=False)))
    kubectl("rollout", "status", "-n", NAMESPACE, f"deployment/{NAME}", "--timeout=120s")
    prometheus = Prometheus(kubectl)
    deadline = time.monotonic() + 60
    while True:
        try:
            prometheus.query("vector(1)")
            return prometheus
        except KubectlError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _objects(image: str, config: str) -> list[Object]:
    metadata = {"name": NAME, "namespace": NAMESPACE}
    group = "rbac.authorization.k8s.io"
    read = ["get", "list", "watch"]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAME},
            "rules": [
                {"apiGroups": [""], "resources": ["pods", "services", "nodes"], "verbs": read},
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": read,
                },
            ],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"prometheus.yml": config},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": NAME}, "ports": [{"port": 9090}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": {"app": NAME}},
                "template": {"metadata": {"labels": {"app": NAME}}, "spec": _pod(image)},
            },
        },
    ]


def _pod(image: str) -> Object:
    return {
        "serviceAccountName": NAME,
        "containers": [
            {
                "name": NAME,
                "image": image,
                "imagePullPolicy": "Never",
                "args": [
                    "--config.file=/etc/prometheus/prometheus.yml",
                    "--storage.tsdb.path=/data",
                    "--storage.tsdb.retention.time=1h",
                ],
                "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}},
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/prometheus"},
                    {"name": "data", "mountPath": "/data"},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": NAME}},
            {"name": "data", "emptyDir": {}},
        ],
    }


def undeploy(kubectl: Kubectl) -> None:
    """Remove the server."""
    kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")
    kubectl("delete", "clusterrole,clusterrolebinding", NAME)
