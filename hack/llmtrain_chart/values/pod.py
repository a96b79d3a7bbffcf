"""Values of the operator's pods and of the objects around them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_chart.values.base import (
    ChartModel,
    Count,
    Manifest,
    Manifests,
    OptionalPercentage,
    OptionalSubdomain,
    Percentage,
    Texts,
)
from llmtrain_core.api import env, labels
from llmtrain_core.images import OPERATOR_REPOSITORY

Registry = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._/-]*)?)?$")]
"""A host with an optional port and path, without a scheme; or nothing."""
Repository = Annotated[
    str, Field(min_length=1, pattern=r"^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._/-]+$")
]
"""Without tag and digest."""
Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
PEER_FIELDS = ("ipBlock", "namespaceSelector", "podSelector")
NetworkPolicyPeer = Annotated[
    Manifest,
    Field(
        min_length=1,
        json_schema_extra={
            "additionalProperties": False,
            "properties": {name: {"type": "object"} for name in PEER_FIELDS},
        },
    ),
]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class OperatorImage(ChartModel):
    """The image of the operator."""

    registry: Registry = ""
    """Registry, if it is not part of the repository. `global.imageRegistry` takes precedence."""
    repository: Repository = OPERATOR_REPOSITORY
    """Repository."""
    tag: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$")] = ""
    """Tag; empty for the version of the chart's application."""
    digest: Digest = ""
    """Digest, such as `sha256:...`, which replaces the tag."""
    pull_policy: PullPolicy = "IfNotPresent"
    """When the node pulls the image."""


class ServiceAccountValues(ChartModel):
    """The service account of the operator."""

    create: bool = True
    """Create it."""
    name: OptionalSubdomain = ""
    """Name; empty for the name of the operator, or `default` if it is not created."""
    annotations: Texts = {}
    """Annotations."""


class Rbac(ChartModel):
    """Rights of the operator and of users."""

    create: bool = True
    """Create the roles of the operator and their bindings. If not, bind your own."""
    aggregate_cluster_roles: bool = True
    """Create the roles of users, which the roles `view`, `edit` and `admin` aggregate."""


class AdmissionPolicy(ChartModel):
    """ValidatingAdmissionPolicies of jobs, and of what the operator's token may change."""

    enabled: bool = True
    """Create them. Whoever creates or changes a job then needs the right to create pods in its
    namespace, and the verb `use` on the PriorityClass that it names."""


class DisruptionBudget(ChartModel):
    """The PodDisruptionBudget of each operator Deployment."""

    enabled: bool = True
    """Create it. With one replica and the defaults it still permits the drain of a node."""
    min_available: Count | OptionalPercentage = ""
    """Pods that must stay available; takes precedence over `maxUnavailable`. With as many as there
    are replicas, no node of the operator can be drained."""
    max_unavailable: Count | Percentage = 1
    """Pods that may be unavailable."""
    unhealthy_pod_eviction_policy: Literal["IfHealthyBudget", "AlwaysAllow"] = "AlwaysAllow"
    """Whether pods that are not ready may be evicted at any time."""


class OperatorPriorityClass(ChartModel):
    """A PriorityClass of the operator's pods."""

    create: bool = False
    """Create it and use it for the operator's pods, in place of `priorityClassName`."""
    name: OptionalSubdomain = ""
    """Name; empty for the name of the operator."""
    value: Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)] = 1_000_000
    """Priority. It cannot change in an upgrade."""
    preemption_policy: Literal["PreemptLowerPriority", "Never"] = "PreemptLowerPriority"
    """Whether the operator's pods may preempt pods of lower priority."""


class Probe(ChartModel):
    """The timing of a probe."""

    initial_delay_seconds: Annotated[int, Field(ge=0)] = 0
    """Seconds before the first probe."""
    period_seconds: Annotated[int, Field(ge=1)] = 10
    """Seconds between probes."""
    timeout_seconds: Annotated[int, Field(ge=1)] = 5
    """Seconds until a probe counts as failed."""
    failure_threshold: Annotated[int, Field(ge=1)] = 3
    """Failed probes in a row that change the state."""


class NetworkPolicyValues(ChartModel):
    """The NetworkPolicy of the operator's pods."""

    enabled: bool = False
    """Create it, and one for `helm test`, so that they work in a namespace that denies all traffic
    by default."""
    ingress: Manifests = [
        {"ports": [{"port": "metrics", "protocol": "TCP"}, {"port": "health", "protocol": "TCP"}]}
    ]
    """All ingress rules. The default permits the ports of metrics and probes. `helm test` needs the
    port `metrics` from its pod (label `app.kubernetes.io/component: test`)."""
    egress: Manifests = [
        {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
        {"ports": [{"port": 443, "protocol": "TCP"}, {"port": 6443, "protocol": "TCP"}]},
        {
            "ports": [{"port": env.HTTP_PORT, "protocol": "TCP"}],
            "to": [
                {
                    "namespaceSelector": {},
                    "podSelector": {
                        "matchExpressions": [{"key": labels.JOB_NAME, "operator": "Exists"}]
                    },
                }
            ],
        },
    ]
    """All egress rules. The default permits DNS, the API server on port 443 or 6443, and the
    progress of training pods. Add the port of your API server or DNS if it is another one."""


class JobNetworkPolicy(ChartModel):
    """The NetworkPolicy that the operator creates for each job."""

    scrapers: Annotated[list[NetworkPolicyPeer], Field(max_length=32)] = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    """Who scrapes the metrics of training pods: peers of a NetworkPolicy. They may connect to port
    9400, as the operator's pods and the pods of the job may. The default is each pod of the
    namespace `monitoring`. Select a namespace that no user can create, because a label of pods
    alone is not safe: each user can set it. A change applies to jobs that start after it."""


class Crds(ChartModel):
    """The CustomResourceDefinitions."""

    install: bool = True
    """Install and upgrade them with the release."""
    keep: bool = True
    """Keep them, and with them all jobs, when the release is uninstalled."""
