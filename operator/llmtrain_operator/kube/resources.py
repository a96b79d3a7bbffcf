"""The API resources that the operator reads and writes, and their URL paths."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from llmtrain_core.api.base import API_VERSION


@dataclass(frozen=True, slots=True)
class Resource:
    """One API resource, such as `v1` pods or `llmtrain.dev/v1alpha1` llmtrainingjobs."""

    api_version: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        """Return the URL path of the collection, of a namespace in it, or of one object."""
        parts = ["", "apis" if "/" in self.api_version else "api", self.api_version]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if sub:
            parts.append(sub)
        return "/".join(parts)


PODS = Resource("v1", "pods")
NODES = Resource("v1", "nodes")
SERVICES = Resource("v1", "services")
CONFIG_MAPS = Resource("v1", "configmaps")
EVENTS = Resource("v1", "events")
NETWORK_POLICIES = Resource("networking.k8s.io/v1", "networkpolicies")
POD_GROUPS = Resource("scheduling.k8s.io/v1beta1", "podgroups")
PRIORITY_CLASSES = Resource("scheduling.k8s.io/v1", "priorityclasses")
RESOURCE_QUOTAS = Resource("v1", "resourcequotas")
DISRUPTION_BUDGETS = Resource("policy/v1", "poddisruptionbudgets")
LEASES = Resource("coordination.k8s.io/v1", "leases")
JOBS = Resource(API_VERSION, "llmtrainingjobs")
FABRICS = Resource(API_VERSION, "fabrics")
RESOURCE_SLICES = Resource("resource.k8s.io/v1", "resourceslices")
RESOURCE_CLAIMS = Resource("resource.k8s.io/v1", "resourceclaims")
CLAIM_TEMPLATES = Resource("resource.k8s.io/v1", "resourceclaimtemplates")
DEVICE_CLASSES = Resource("resource.k8s.io/v1", "deviceclasses")
COMPUTE_DOMAINS = Resource("resource.nvidia.com/v1beta1", "computedomains")
