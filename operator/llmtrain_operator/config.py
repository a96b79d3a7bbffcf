"""How the operator is set up: command line flags, each with an environment variable."""

from __future__ import annotations

import argparse
import math
import os
import socket
import uuid
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, with the defaults that ship."""

    namespace: str | None = None
    """Watch only this namespace; all when absent."""
    kubeconfig: str | None = None
    """File with the way to the API server."""
    bind: str = "0.0.0.0"
    """Address of the health and metrics ports."""
    metrics_port: int = 9090
    """Port of /metrics; 0 takes a free one."""
    health_port: int = 8080
    """Port of /healthz and /readyz; 0 takes a free one."""
    lease_namespace: str = "llmtrain-system"
    """Namespace of the Lease."""
    lease_name: str | None = None
    """Name of the Lease; absent: llmtrain-operator[-NAMESPACE]."""
    lease_duration: float = 15.0
    """Seconds after which another one may take the lease."""
    renew_deadline: float = 10.0
    """Seconds that the leader relies on its last renewal."""
    retry_period: float = 2.0
    """Seconds between renewals."""
    progress_seconds: float = 5.0
    """Seconds between two looks at a job's progress, and so between two writes of it."""
    node_lost_seconds: float = 30.0
    """A node that is not ready for so long has lost its pods."""
    writes_per_second: float = 100.0
    """Bound on the writes to the API server, over all jobs."""
    count_foreign_pods: bool = True
    """Count GPUs that pods of others hold (costs a watch of all bound pods)."""
    pod_groups: bool = False
    """Let kube-scheduler bind gangs by PodGroup (Kubernetes 1.37, feature gate GenericWorkload)."""
    kueue: bool = False
    """Jobs with the label kueue.x-k8s.io/queue-name wait for the quota of that LocalQueue."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}")
    """Name of this contender for the lease."""

    @property
    def lease(self) -> str:
        """Name of the Lease: operators of different namespaces do not wait for each other."""
        suffix = f"-{self.namespace}" if self.namespace else ""
        return self.lease_name or f"llmtrain-operator{suffix}"

    @property
    def timing(self) -> LeaseTiming:
        """Timing of the lease."""
        return LeaseTiming(self.lease_duration, self.renew_deadline, self.retry_period)

    def __post_init__(self) -> None:
        if not self.retry_period < self.renew_deadline < self.lease_duration:
            raise ConfigError(
                "lease: --retry-period < --renew-deadline < --lease-duration must hold"
            )


_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in _YES + _NO:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(_YES + _NO)}")
    return word in _YES


def _log_level(text: str) -> str:
    if text.upper() not in _LOG_LEVELS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(_LOG_LEVELS)}")
    return text.upper()


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _from_environment(variable: str, kind: Callable[[str], Any]) -> Any:
    if variable not in os.environ:
        return argparse.SUPPRESS
    try:
        return kind(os.environ[variable])
    except ArgumentTypeError as error:
        raise ConfigError(f"{variable}: {error}") from None


def parse(arguments: Sequence[str]) -> Config:
    """Read the command line; LLMTRAIN_OPERATOR_<NAME> stands in for a flag that is not given."""
    parser = argparse.ArgumentParser(
        prog="llmtrain-operator", description="Runs LLMTrainingJobs in a Kubernetes cluster."
    )
    kinds: dict[str, Callable[[str], Any]] = {"bool": _flag, "int": _whole, "float": _positive}
    for item in fields(Config):
        default: Any = None if callable(item.default_factory) else item.default
        kind = _log_level if item.name == "log_level" else kinds.get(str(item.type), str)
        variable = f"LLMTRAIN_OPERATOR_{item.name.upper()}"
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=kind,
            default=_from_environment(variable, kind),
            help=f"default {default}; also {variable}",
        )
    return Config(**vars(parser.parse_args(arguments)))
