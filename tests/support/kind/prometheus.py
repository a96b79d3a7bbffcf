"""Prometheus in the cluster, which scrapes what the monitors of the chart select."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from llmtrain_kind.kubectl import Kubectl, KubectlError
from llmtrain_monitoring.scrape import server_config

NAMESPACE = "monitoring"
NAME = "prometheus"
SCRAPE_INTERVAL = "2s"
SERVICE = f"/api/v1/namespaces/{NAMESPACE}/services/{NAME}:9090/proxy"
"""Path of the server below the API server."""
CONFIG_FOLDER = "/etc/prometheus"
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server, queried through the API server."""

    kubectl: Kubectl

    @contextmanager
    def url(self) -> Iterator[str]:
        """Serve the API at a loopback address until the block ends; its value is the address."""
        with self.kubectl.background("proxy", "--port=0") as output:
            address = re.search(r"127\.0\.0\.1:\d+", next(output))
            assert address
            yield f"http://{address[0]}{SERVICE}"

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
        return json.loads(self.kubectl("get", "--raw", f"{SERVICE}/api/v1/{path}"))


def deploy(
    kubectl: Kubectl,
    image: str,
    scrape_configs: Sequence[Mapping[str, Any]],
    rule_groups: Sequence[Mapping[str, Any]],
) -> Prometheus:
    """Start the server and wait until it answers."""
    rules = "rules.yml"
    config = server_config(scrape_configs, [f"{CONFIG_FOLDER}/{rules}"], SCRAPE_INTERVAL)
    files = {"prometheus.yml": config, rules: {"groups": [*rule_groups]}}
    texts = {name: yaml.safe_dump(content, sort_keys=False) for name, content in files.items()}
    kubectl.apply(*_objects(image, texts))
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


def _objects(image: str, files: Mapping[str, str]) -> list[Object]:
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
            "data": dict(files),
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
                    f"--config.file={CONFIG_FOLDER}/prometheus.yml",
                    "--storage.tsdb.path=/data",
                    "--storage.tsdb.retention.time=1h",
                ],
                "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}},
                "volumeMounts": [
                    {"name": "config", "mountPath": CONFIG_FOLDER},
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
