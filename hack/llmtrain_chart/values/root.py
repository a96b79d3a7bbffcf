"""The whole map of values."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from llmtrain_chart.values.base import (
    ChartModel,
    Labels,
    Manifest,
    Manifests,
    NamespaceList,
    OptionalName,
    OptionalSubdomain,
    PullSecrets,
    Texts,
)
from llmtrain_chart.values.monitoring import Dashboards, MetricsService, Monitor, Rules
from llmtrain_chart.values.operator_config import OperatorConfig
from llmtrain_chart.values.pod import (
    AdmissionPolicy,
    Crds,
    DisruptionBudget,
    JobNetworkPolicy,
    NetworkPolicyValues,
    OperatorImage,
    OperatorPriorityClass,
    Probe,
    Rbac,
    Registry,
    ServiceAccountValues,
)

NULLABLE = frozenset({"replicas"})
"""Values for which `null` has a meaning of its own."""


class GlobalValues(ChartModel):
    """Values that a parent chart shares with all its charts."""

    model_config = ConfigDict(extra="allow")

    image_registry: Registry = ""
    """Registry of all images, in place of `image.registry`."""
    image_pull_secrets: PullSecrets = []
    """Pull secrets of all images: names, or `{name: NAME}`."""


class ExtraVariable(ChartModel):
    """An environment variable of the operator's container."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    """Name."""
    value: str = ""
    """Value."""
    value_from: Manifest = {}
    """Source of the value."""


class Values(ChartModel):
    """All values."""

    enabled: bool = True
    """No effect here: a condition for charts that have this chart as a dependency."""
    global_: Annotated[GlobalValues, Field(alias="global")] = GlobalValues()
    """Values that a parent chart shares with all its charts."""
    name_override: OptionalName = ""
    """Name of the chart in labels and names of objects. It cannot change in an upgrade, because it
    is in the selectors of the pods."""
    fullname_override: OptionalName = ""
    """Prefix of the names of all objects. Releases of the same name in different namespaces need
    different ones, because some objects are cluster-scoped."""
    namespace_override: OptionalName = ""
    """Namespace of all objects; empty for the namespace of the release."""
    common_labels: Labels = {}
    """Labels of all objects and pods. They never replace labels of the chart."""
    common_annotations: Texts = {}
    """Annotations of all objects and pods."""
    crds: Crds = Crds()
    """The CustomResourceDefinitions."""
    watch_namespaces: NamespaceList = []
    """Namespaces whose jobs the operator manages; empty for all. There is one Deployment for each
    namespace, and no right to write anywhere else."""
    replicas: Annotated[int, Field(ge=0, le=9)] = 1
    """Pods of each Deployment. One leads, the others take over when its lease ends. `null` leaves
    the number to an autoscaler."""
    image: OperatorImage = OperatorImage()
    """The image of the operator."""
    image_pull_secrets: PullSecrets = []
    """Pull secrets: names, or `{name: NAME}`."""
    config: OperatorConfig = OperatorConfig()
    """The flags of the operator."""
    rbac: Rbac = Rbac()
    """Rights of the operator and of users."""
    admission_policy: AdmissionPolicy = AdmissionPolicy()
    """ValidatingAdmissionPolicies of jobs and of the operator's objects."""
    service_account: ServiceAccountValues = ServiceAccountValues()
    """The service account of the operator."""
    pod_disruption_budget: DisruptionBudget = DisruptionBudget()
    """The PodDisruptionBudget of each Deployment."""
    priority_class_name: OptionalSubdomain = ""
    """Name of an existing PriorityClass for the operator's pods."""
    priority_class: OperatorPriorityClass = OperatorPriorityClass()
    """A PriorityClass of the operator's pods."""
    deployment_annotations: Texts = {}
    """Annotations of each Deployment."""
    pod_labels: Labels = {}
    """More labels of the operator's pods."""
    pod_annotations: Texts = {}
    """Annotations of the operator's pods."""
    fixed_user: bool = True
    """Run the pods of the release and of jobs as user, group and `fsGroup` 65532. If false, they
    name none, whatever `podSecurityContext` has: the SecurityContextConstraints of OpenShift set
    them."""
    pod_security_context: Manifest = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    """Security context of the pods of the release."""
    security_context: Manifest = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    """Security context of the container."""
    resources: Manifest = {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"memory": "1Gi"},
    }
    """Resources of the container."""
    liveness_probe: Probe = Probe()
    """Timing of the liveness probe."""
    readiness_probe: Probe = Probe(period_seconds=5)
    """Timing of the readiness probe."""
    termination_grace_period_seconds: Annotated[int, Field(ge=0)] = 30
    """Seconds for a clean exit, in which the operator releases its lease."""
    revision_history_limit: Annotated[int, Field(ge=0)] = 3
    """Old ReplicaSets to keep."""
    node_selector: Texts = {"kubernetes.io/os": "linux"}
    """Labels of the nodes for the operator."""
    affinity: Manifest = {}
    """Affinity of the operator's pods."""
    tolerations: Manifests = []
    """Tolerations of the operator's pods."""
    topology_spread_constraints: Manifests = []
    """Spread of the pods; empty for one pod per node where possible. A constraint without a
    `labelSelector` selects the pods of its Deployment."""
    runtime_class_name: OptionalSubdomain = ""
    """RuntimeClass of the operator's pods."""
    extra_env: list[ExtraVariable] = []
    """More environment variables. Those of the operator's flags (`LLMTRAIN_OPERATOR_*`) are
    refused: they are values below `config`."""
    extra_volumes: Manifests = []
    """More volumes of the pods."""
    extra_volume_mounts: Manifests = []
    """More volume mounts of the container."""
    network_policy: NetworkPolicyValues = NetworkPolicyValues()
    """The NetworkPolicy of the operator's pods."""
    job_network_policy: JobNetworkPolicy = JobNetworkPolicy()
    """The NetworkPolicy that the operator creates for each job."""
    metrics_service: MetricsService = MetricsService()
    """The Service of the operator's metrics port."""
    service_monitor: Monitor = Monitor(honor_labels=True)
    """The ServiceMonitor of the operator. With `honorLabels` its series about jobs have the
    namespace of the job, which rules and dashboards need."""
    pod_monitor: Monitor = Monitor()
    """The PodMonitor of all training pods. It copies the job, the attempt, the node and the domain
    of each topology level to the labels `llmtrain_job`, `attempt`, `node` and `level_<NAME>`."""
    prometheus_rule: Rules = Rules()
    """Recording rules and alerts."""
    dashboards: Dashboards = Dashboards()
    """Grafana dashboards."""
    extra_objects: list[str | Manifest] = []
    """More objects of the release, as maps or text. Both are templates."""
