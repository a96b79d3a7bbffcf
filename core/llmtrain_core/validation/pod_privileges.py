"""What of a patch of the pods the Pod Security level *restricted* does not admit.

The patch is that of the job, or what the operator adds for a network.

Source: Kubernetes documentation, "Pod Security Standards".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.pod_patch import (
    Capabilities,
    ContainerSecurity,
    PodPatchSpec,
    UserSecurity,
)
from llmtrain_core.api.workers import Workers
from llmtrain_core.validation.pod_patch import PATCH, container_security
from llmtrain_core.validation.problem import Problem

Level = Literal["baseline", "privileged"]

_BASELINE_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
"""Capabilities that the level baseline admits."""
_RESTRICTED_CAPABILITY = "NET_BIND_SERVICE"
PROFILE_FIELD = "spec.network.profile"
_NAMED = 3
"""Privileges that one message names."""


@dataclass(frozen=True, slots=True)
class Privilege:
    """A setting that restricted pods cannot have."""

    field: str
    """Path in the job."""
    what: str
    """What it is, as the object of a sentence."""
    level: Level
    """The lowest Pod Security level that admits it."""

    @property
    def remedy(self) -> str:
        """How the job does without it."""
        return "set it to tcp" if self.field == PROFILE_FIELD else "remove it"


def privileges(workers: Workers, network: PodPatchSpec | None = None) -> list[Privilege]:
    """Return the privileges that a job asks for; those of the level privileged come first.

    `network` is what the operator adds to its pods for the network.
    """
    own = [*_privileges(workers.pod_patch.spec)] if workers.pod_patch else []
    if network is not None:
        own += dict.fromkeys(replace(found, field=PROFILE_FIELD) for found in _privileges(network))
    return sorted(own, key=lambda found: found.level != "privileged")


def privilege_problems(workers: Workers, network: PodPatchSpec | None = None) -> list[Problem]:
    """Return the problem of each privilege, for an operator that permits none."""
    return [
        Problem(
            Reason.FORBIDDEN,
            found.field,
            f"the operator permits no {found.what}",
            f"{found.remedy}, or let an administrator set --allow-privileged-pods of the operator"
            " (config.allowPrivilegedPods)",
        )
        for found in privileges(workers, network)
    ]


def privileges_text(found: Sequence[Privilege]) -> str:
    """Return which settings a namespace must admit, with their paths, and the remedy."""
    named = "; ".join(f"{item.field}: {item.what}" for item in found[:_NAMED])
    more = f" (and {len(found) - _NAMED} more)" if len(found) > _NAMED else ""
    level = found[0].level
    least = level if level == "privileged" else f"{level} or privileged"
    return (
        f"{named}{more}: needs a namespace with the Pod Security level {least};"
        f" {found[0].remedy}, or let an administrator label the namespace"
    )


def _privileges(spec: PodPatchSpec) -> Iterator[Privilege]:
    if spec.host_network:
        yield Privilege(f"{PATCH}.hostNetwork", "network of the node", "privileged")
    for index, volume in enumerate(spec.volumes or ()):
        if volume.host_path is not None:
            yield Privilege(f"{PATCH}.volumes[{index}].hostPath", "path of the node", "privileged")
    if spec.security_context is not None:
        yield from _user_privileges(f"{PATCH}.securityContext", spec.security_context)
    for field, security in container_security(spec):
        yield from _user_privileges(field, security)
        yield from _container_privileges(field, security)


def _user_privileges(field: str, security: UserSecurity) -> Iterator[Privilege]:
    if security.run_as_user == 0:
        yield Privilege(f"{field}.runAsUser", "user 0 (root)", "baseline")
    if security.run_as_non_root is False:
        what = "container that may run as root"
        yield Privilege(f"{field}.runAsNonRoot", what, "baseline")


def _container_privileges(field: str, security: ContainerSecurity) -> Iterator[Privilege]:
    if security.privileged:
        yield Privilege(f"{field}.privileged", "privileged container", "privileged")
    if security.allow_privilege_escalation:
        what = "gain of privileges in a container"
        yield Privilege(f"{field}.allowPrivilegeEscalation", what, "baseline")
    if security.capabilities is not None:
        yield from _capability_privileges(f"{field}.capabilities", security.capabilities)


def _capability_privileges(field: str, capabilities: Capabilities) -> Iterator[Privilege]:
    for index, name in enumerate(capabilities.add or ()):
        if name != _RESTRICTED_CAPABILITY:
            level: Level = "baseline" if name in _BASELINE_CAPABILITIES else "privileged"
            yield Privilege(f"{field}.add[{index}]", f"capability {name}", level)
    if capabilities.drop is not None and "ALL" not in capabilities.drop:
        what = "capability that the container runtime adds: drop has not ALL"
        yield Privilege(f"{field}.drop", what, "baseline")
