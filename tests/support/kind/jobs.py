"""Jobs of two nodes for the kind cluster, and what is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmtrain_kind.kubectl import Kubectl, KubectlError
from tests.support.paths import ROOT
from tests.support.trainer.jobs import ARCHITECTURE

RESOURCE = "llmtrainingjobs.llmtrain.dev"
CORPUS = "corpus"
Object = dict[str, Any]


def corpus() -> Object:
    """Return a ConfigMap with the text that the jobs learn: pages of the documentation."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CORPUS},
        "data": {page.name: page.read_text("utf-8") for page in pages},
    }


def job_manifest(name: str, image: str, steps: int) -> Object:
    """Return a job of two pods with one rank each, which share the gradients of each step.

    The limit leaves CPU time for the rest of the cluster.
    """
    return {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"architecture": {**ARCHITECTURE, "sequenceLength": 32}},
            "data": {
                "sources": [{"name": "text", "uri": f"file:///{CORPUS}"}],
                "heldOutFraction": 0.2,
            },
            "training": {
                "steps": steps,
                "globalBatchSize": 8,
                "microBatchSize": 4,
                "precision": "float32",
                "seed": 1,
            },
            "parallelism": {"data": 2},
            "workers": {
                "gpusPerNode": 1,
                "image": image,
                "resources": {"limits": {"cpu": "700m", "memory": "2Gi"}},
                "volumes": [
                    {"name": CORPUS, "mountPath": f"/{CORPUS}", "configMap": {"name": CORPUS}}
                ],
            },
        },
    }


@dataclass(frozen=True, slots=True)
class Team:
    """A namespace with jobs."""

    kubectl: Kubectl
    namespace: str
    image: str

    def __call__(self, *arguments: str, seconds: float = 300) -> str:
        """Run kubectl in the namespace."""
        return self.kubectl("--namespace", self.namespace, *arguments, seconds=seconds)

    def submit(self, name: str, steps: int) -> None:
        """Create a job and its corpus."""
        objects = corpus(), job_manifest(name, self.image, steps)
        for one in objects:
            one["metadata"]["namespace"] = self.namespace
        self.kubectl.apply(*objects)

    def job(self, name: str) -> Object:
        """Return a job; empty if it does not exist."""
        try:
            found: Object = self.kubectl.get(RESOURCE, name, "--namespace", self.namespace)
        except KubectlError as error:
            if "NotFound" not in str(error):
                raise
            return {}
        return found

    def status(self, name: str) -> Object:
        """Return the status of a job."""
        found: Object = self.job(name).get("status", {})
        return found

    def pods(self, selector: str = "llmtrain.dev/job-name") -> list[Object]:
        """Return pods of jobs, in the order of their names."""
        where = ("--namespace", self.namespace, "--selector", selector)
        found: list[Object] = self.kubectl.get("pods", *where)["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def wait(
        self, name: str, until: Callable[[Object], bool], what: str, seconds: float = 180
    ) -> Object:
        """Wait until the status of a job is as expected."""
        deadline = time.monotonic() + seconds
        while not until(status := self.status(name)):
            assert time.monotonic() < deadline, f"{name}: not {what} after {seconds} s: {status}"
            assert status.get("phase") != "Failed" or what == "failed", status
            time.sleep(0.5)
        return status

    def phase(self, name: str, phase: str, seconds: float = 180) -> Object:
        """Wait until a job is in a phase."""
        return self.wait(name, lambda s: s.get("phase") == phase, phase, seconds)

    def trains(self, name: str, attempt: int = 0, after: int = 0, seconds: float = 180) -> Object:
        """Wait until an attempt of a job has finished more than this number of steps."""

        def there(status: Object) -> bool:
            step = status.get("progress", {}).get("step", 0)
            running = status.get("phase") == "Running"
            return running and status.get("attempt", 0) == attempt and step > after

        return self.wait(name, there, f"training in attempt {attempt} after step {after}", seconds)

    def delete(self, name: str) -> None:
        """Delete a job and wait until all that it owns is gone."""
        self("delete", RESOURCE, name, "--cascade=foreground", "--timeout=180s")
