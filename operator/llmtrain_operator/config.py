"""Configuration of the operator: command line flags, each with an environment variable."""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import uuid
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from llmtrain_core.node_health import HealthRowError, RowChange, read_changes
from llmtrain_core.placement.types import DOMAIN_TOLERANCE
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.queueing.types import UNKNOWN_START_SECONDS
from llmtrain_operator.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Seconds of leader election, with the meaning of client-go's LeaderElectionConfig."""

    duration: float = 15.0
    """A contender takes over a lease that was not renewed for this long."""
    renew_deadline: float = 10.0
    """The leader stops writing this long after it sent its last successful renewal."""
    retry_period: float = 2.0
    """Interval between renewals, and between attempts to acquire."""


NODE_LOST_SECONDS = 30.0
START_RESERVATION_SECONDS = 600.0
DRAIN_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Config:
    """All settings and their defaults; each field is a flag."""

    namespace: str | None = None
    """Namespace to watch; all namespaces if not set."""
    kubeconfig: str | None = None
    """Path of the kubeconfig; default $KUBECONFIG, else the pod's service account."""
    bind: str = "0.0.0.0"
    """Address that the health and metrics ports listen on: `::` for IPv6, empty for both."""
    metrics_port: int = 9090
    """Port of /metrics; 0 selects a free port."""
    health_port: int = 8080
    """Port of /healthz and /readyz; 0 selects a free port."""
    lease_namespace: str = "llmtrain-system"
    """Namespace of the Lease."""
    lease_name: str | None = None
    """Name of the Lease; default llmtrain-operator[-NAMESPACE]."""
    lease_metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels and annotations of the Lease, if the operator has to create it: a JSON map with
    `labels` and `annotations`. Helm deletes only objects that have its own."""
    lease_duration: float = 15.0
    """Seconds without renewal after which another candidate may acquire the lease."""
    renew_deadline: float = 10.0
    """Seconds after its last renewal until the leader stops writing."""
    retry_period: float = 2.0
    """Seconds between renewals."""
    progress_seconds: float = 5.0
    """Seconds between two requests for the progress of a job, which also limits its writes."""
    progress_proxy: bool = False
    """Read the progress of pods whose address does not answer through the API server, which needs
    the right to `pods/proxy`."""
    metrics_peers: tuple[dict[str, Any], ...] = ()
    """Who may connect to the port of metrics and status of training pods, besides the pods of the
    job: a JSON list of peers of a NetworkPolicy."""
    fixed_user: bool = True
    """Run the pods of jobs as user, group and `fsGroup` 65532. If false, they name none: an
    admission plugin sets them, as OpenShift does, or the image names the user."""
    allow_privileged_pods: bool = False
    """Let `workers.podPatch` of jobs ask for what the Pod Security level restricted does not admit:
    root, capabilities, privileged containers, host paths and the network of the node. For the
    profiles tcpxo and tcpx the operator adds some of it. The namespace must admit it as well."""
    device_claims: bool = False
    """Let jobs claim devices by dynamic resource allocation (`workers.deviceClaims`), and count
    those of ResourceSlices: reads ResourceSlices, DeviceClasses and the ResourceClaims of all
    namespaces (resource.k8s.io/v1), and creates ResourceClaimTemplates."""
    compute_domains: bool = False
    """Create and delete ComputeDomains (resource.nvidia.com/v1beta1) for jobs with
    `topology.computeDomain`. Needs `deviceClaims` and the DRA driver of NVIDIA."""
    node_lost_seconds: float = NODE_LOST_SECONDS
    """Seconds after which the pods of a node that is not ready count as lost."""
    start_reservation: float = START_RESERVATION_SECONDS
    """Seconds for which a placement keeps its nodes until the pods of the job are bound to them."""
    domain_tolerance: float = DOMAIN_TOLERANCE
    """Share of the planned step below which a gain does not justify that a job uses more domains
    of the network; 0: the fastest placement, whatever domains it uses."""
    drain_timeout: float = DRAIN_TIMEOUT_SECONDS
    """Seconds that a job has to move off a node that is drained, before its pods may be evicted."""
    unknown_start_window: float = UNKNOWN_START_SECONDS
    """While the start of a waiting job depends on an unknown end, jobs that end within this many
    seconds may use the nodes that are reserved for it."""
    writes_per_second: float = 100.0
    """Limit of writes to the API server per second, over all jobs."""
    max_active_jobs: int = 1000
    """Jobs of one namespace that may hold nodes or queue for them at once."""
    max_excluded_nodes_percent: float = MAX_EXCLUDED_PERCENT
    """Share of the nodes, in percent, that may be in quarantine at once, of all nodes and of those
    with the same kinds of devices; at least one. Nodes that jobs avoid for their health count, too.
    Beyond it the oldest quarantines end early."""
    node_health: tuple[RowChange, ...] = ()
    """Changes of the table of node health: rows to add, to change or to switch off, each with a
    `name`, a `strength` (`avoid`, `leave` or `off`), and what to look for."""
    count_foreign_pods: bool = True
    """Count the resources of pods that are not of a job (needs a watch of all bound pods)."""
    pod_groups: bool = False
    """Create a PodGroup per job (Kubernetes 1.37 with the feature gate GenericWorkload). With
    `deviceClaims`, its pods may share claims (feature gate DRAWorkloadResourceClaims)."""
    kueue: bool = False
    """Let jobs with the label kueue.x-k8s.io/queue-name wait for admission by Kueue."""
    system_priority_classes: bool = False
    """Let jobs name a PriorityClass whose name starts with `system-`. Without a policy that checks
    who may use a class, any user could stop the jobs of all others."""
    log_level: str = "INFO"
    """Log level: DEBUG, INFO, WARNING or ERROR."""
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}")
    """Identity of this candidate in the lease."""

    @property
    def lease(self) -> str:
        """Name of the Lease, one per watched namespace so that several operators can lead."""
        suffix = f"-{self.namespace}" if self.namespace else ""
        return self.lease_name or f"llmtrain-operator{suffix}"

    @property
    def timing(self) -> LeaseTiming:
        """Timing of the lease."""
        return LeaseTiming(self.lease_duration, self.renew_deadline, self.retry_period)

    def __post_init__(self) -> None:
        if not self.retry_period < self.renew_deadline < self.lease_duration:
            raise ConfigError(
                "lease: --retry-period < --renew-deadline < --lease-duration is required"
            )
        if self.compute_domains and not self.device_claims:
            raise ConfigError("--compute-domains: --device-claims is required")
        if self.max_active_jobs < 1:
            raise ConfigError("--max-active-jobs: at least 1 is required")
        if self.max_excluded_nodes_percent > 100:
            raise ConfigError("--max-excluded-nodes-percent: at most 100 is possible")


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_PEER_FIELDS = frozenset({"ipBlock", "namespaceSelector", "podSelector"})
_METADATA_FIELDS = frozenset({"annotations", "labels"})
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def _parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE + _FALSE:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(_TRUE + _FALSE)}")
    return word in _TRUE


def _parse_log_level(text: str) -> str:
    if text.upper() not in _LOG_LEVELS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(_LOG_LEVELS)}")
    return text.upper()


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a whole number") from None


def _parse_positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _parse_share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        raise ArgumentTypeError(f"{text!r} is not a share: at least 0 and less than 1")
    return number


def _parse_peers(text: str) -> tuple[dict[str, Any], ...]:
    """Parse peers of a NetworkPolicy. The API server would refuse a wrong one with each job."""
    try:
        peers = json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(peers, list) or not all(map(_is_peer, peers)):
        names = ", ".join(sorted(_PEER_FIELDS))
        raise ArgumentTypeError(f"{text!r} is not a list of peers: maps with some of {names}")
    return tuple(peers)


def _parse_metadata(text: str) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(found, dict) or not found.keys() <= _METADATA_FIELDS:
        names = " and ".join(sorted(_METADATA_FIELDS))
        raise ArgumentTypeError(f"{text!r} is not a map with {names}")
    for name, pairs in found.items():
        if not isinstance(pairs, dict) or not all(isinstance(v, str) for v in pairs.values()):
            raise ArgumentTypeError(f"{text!r}: {name} is not a map of texts")
    return found


def _parse_node_health(text: str) -> tuple[RowChange, ...]:
    """Parse changes of the table of node health: a JSON list."""
    try:
        return read_changes(json.loads(text))
    except HealthRowError as error:
        raise ArgumentTypeError(str(error)) from None
    except ValueError as error:
        raise ArgumentTypeError(f"{text[:200]!r} is not JSON: {error}") from None


def _is_peer(item: Any) -> bool:
    return isinstance(item, dict) and bool(item) and item.keys() <= _PEER_FIELDS


def _from_environment(variable: str, parse_value: Callable[[str], Any]) -> Any:
    if variable not in os.environ:
        return argparse.SUPPRESS
    try:
        return parse_value(os.environ[variable])
    except ArgumentTypeError as error:
        raise ConfigError(f"{variable}: {error}") from None


def parse(arguments: Sequence[str]) -> Config:
    """Parse the command line; LLMTRAIN_OPERATOR_<NAME> sets the default of a flag."""
    parser = argparse.ArgumentParser(
        prog="llmtrain-operator", description="Run LLMTrainingJobs in a Kubernetes cluster."
    )
    parsers: dict[str, Callable[[str], Any]] = {
        "bool": _parse_bool,
        "int": _parse_int,
        "float": _parse_positive_float,
    }
    own_parsers = {
        "log_level": _parse_log_level,
        "metrics_peers": _parse_peers,
        "lease_metadata": _parse_metadata,
        "domain_tolerance": _parse_share,
        "node_health": _parse_node_health,
    }
    for item in fields(Config):
        default: Any = None if callable(item.default_factory) else item.default
        parse_value = own_parsers.get(item.name) or parsers.get(str(item.type), str)
        variable = f"LLMTRAIN_OPERATOR_{item.name.upper()}"
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=parse_value,
            default=_from_environment(variable, parse_value),
            help=f"default {default}; also {variable}",
        )
    return Config(**vars(parser.parse_args(arguments)))
