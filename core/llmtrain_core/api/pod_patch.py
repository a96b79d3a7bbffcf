"""Section `workers.podPatch` of a job: a part of a pod template, merged into the pods.

The names are those of Kubernetes (core/v1 PodSpec). Every level is typed, so that the schema bounds
depth and size.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Name, ObjectName, OneOf, Quantity, list_map
from llmtrain_core.api.containers import Command, InitContainer, ResourceAmounts
from llmtrain_core.api.volumes import AbsolutePath

Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A user or group ID."""
Address = Annotated[str, Field(min_length=2, max_length=45, pattern=r"^[0-9a-fA-F.:]+$")]
"""An IPv4 or IPv6 address."""
CapabilityName = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[A-Z][A-Z_]*$")]
CapabilityNames = Annotated[list[CapabilityName], Field(max_length=16)]
Search = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^(\.|[a-z0-9_]([-a-z0-9_.]*[a-z0-9_])?\.?)$")
]
OptionText = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[!-~]+$")]


class DnsOption(ApiModel):
    """An option of the resolver."""

    name: OptionText
    """Name of the option, such as ndots."""
    value: OptionText | None = None
    """Value of the option."""


class DnsConfig(ApiModel):
    """DNS settings of the pods, in addition to those of dnsPolicy."""

    nameservers: Annotated[list[Address], Field(max_length=3)] | None = None
    """Addresses of name servers."""
    searches: Annotated[list[Search], Field(max_length=32)] | None = None
    """Search domains."""
    options: Annotated[list[DnsOption], Field(max_length=16)] | None = None
    """Options of the resolver."""


class HostAlias(ApiModel):
    """A line of /etc/hosts."""

    ip: Address
    """IP address. Must be unique in the list."""
    hostnames: Annotated[list[ObjectName], Field(min_length=1, max_length=16)]
    """Host names of the address. Rejected are localhost and names of Services (ending in .svc or
    containing .svc.)."""


class Sysctl(ApiModel):
    """A kernel parameter of the pod, of those that Kubernetes classifies as safe."""

    name: Literal[
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    ]
    """Name of the parameter."""
    value: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")]
    """Value of the parameter."""


class UserSecurity(ApiModel):
    """User and group of processes."""

    run_as_user: Id | None = None
    """User ID. 0 needs runAsNonRoot false."""
    run_as_group: Id | None = None
    """Group ID."""
    run_as_non_root: bool | None = None
    """Whether the kubelet refuses to start a container as root."""


class PodSecurity(UserSecurity):
    """Security settings of all containers of the pods."""

    fs_group: Id | None = None
    """Group of the volumes."""
    supplemental_groups: Annotated[list[Id], Field(max_length=16)] | None = None
    """Additional groups of the processes."""
    sysctls: Annotated[list[Sysctl], Field(max_length=12), list_map("name")] | None = None
    """Kernel parameters."""


class Capabilities(ApiModel):
    """Linux capabilities of a container."""

    add: CapabilityNames | None = None
    """Capabilities to add, without the prefix CAP_. A process has them only as root."""
    drop: CapabilityNames | None = None
    """Capabilities to drop. Replaces [ALL]."""


class ContainerSecurity(UserSecurity):
    """Security settings of a container."""

    privileged: bool | None = None
    """Run the container as privileged: with all capabilities and all devices of the node."""
    allow_privilege_escalation: bool | None = None
    """Whether a process can gain more privileges than its parent. Must be true with privileged and
    with the capability SYS_ADMIN."""
    capabilities: Capabilities | None = None
    """Linux capabilities."""


class SidecarSecurity(ContainerSecurity):
    """Security settings of a sidecar."""

    read_only_root_filesystem: bool | None = None
    """Mount the root file system of the container read-only."""


class PatchMount(ApiModel):
    """A mount of a volume of the patch or of the job."""

    name: Name
    """Name of the volume."""
    mount_path: AbsolutePath
    """Mount path in the container. Rejected are the paths that workers.volumes cannot have; a
    hostPath volume can be mounted below /dev."""
    read_only: bool | None = None
    """Mount the volume read-only."""


Mounts = Annotated[list[PatchMount], Field(max_length=16)]


class TrainerPatch(ApiModel):
    """Settings of the container that trains."""

    name: Literal["trainer"]
    """Name of the container: trainer."""
    security_context: ContainerSecurity | None = None
    """Security settings."""
    volume_mounts: Mounts | None = None
    """Additional mounts."""


class ExecAction(ApiModel):
    """A command in the container."""

    command: Command
    """Command. Exit code 0 is success."""


Seconds = Annotated[int, Field(ge=1, le=3600)]


class StartupProbe(ApiModel):
    """A check that a sidecar has started. The next container starts after it has succeeded."""

    exec: ExecAction
    """Command that succeeds once the sidecar has started."""
    initial_delay_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """Seconds before the first check."""
    period_seconds: Seconds | None = None
    """Seconds between checks."""
    timeout_seconds: Seconds | None = None
    """Seconds that a check may take."""
    failure_threshold: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Failed checks after which the sidecar is started again."""


class Sidecar(InitContainer):
    """A container that starts before the trainer and runs until the trainer has ended.

    It has neither the volumes nor the variables of the trainer, and cannot request devices.
    """

    restart_policy: Literal["Always"]
    """Always: what makes an init container a sidecar. Others are in workers.initContainers."""
    resources: ResourceAmounts | None = None
    """Resource requests and limits, without devices. They are added to those of the trainer."""
    security_context: SidecarSecurity | None = None
    """Security settings."""
    volume_mounts: Mounts | None = None
    """Mounts."""
    startup_probe: StartupProbe | None = None
    """Check that it has started. Without one the trainer may start before the sidecar serves."""


class HostPath(ApiModel):
    """A file or folder of the node."""

    path: AbsolutePath
    """Absolute path on the node, without empty segments, `.` or `..`."""
    type: (
        Literal[
            "DirectoryOrCreate",
            "Directory",
            "FileOrCreate",
            "File",
            "Socket",
            "CharDevice",
            "BlockDevice",
        ]
        | None
    ) = None
    """What the path must be. Not checked if absent."""


class MediumVolume(ApiModel):
    """Empty directory with the lifetime of the pod, on a medium."""

    medium: Literal["Memory", "HugePages", "HugePages-2Mi", "HugePages-1Gi"] | None = None
    """Medium: memory, or huge pages that a container of the pod requests. The disk of the node if
    absent."""
    size_limit: Quantity | None = None
    """Maximum size."""


class PatchVolume(OneOf):
    """A volume. Exactly one volume type must be set."""

    name: Name
    """Name of the volume. Must be unique in the job."""
    host_path: HostPath | None = None
    """File or folder of the node."""
    empty_dir: MediumVolume | None = None
    """Empty directory."""


class PodPatchSpec(ApiModel):
    """The part of a PodSpec that a job can change."""

    host_network: bool | None = None
    """Use the network of the node. Needs dnsPolicy ClusterFirstWithHostNet."""
    dns_policy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "None"] | None = None
    """DNS policy. The pods of a job find each other by DNS."""
    dns_config: DnsConfig | None = None
    """DNS settings."""
    host_aliases: Annotated[list[HostAlias], Field(max_length=16), list_map("ip")] | None = None
    """Lines of /etc/hosts."""
    security_context: PodSecurity | None = None
    """Security settings of all containers."""
    volumes: Annotated[list[PatchVolume], Field(max_length=16), list_map("name")] | None = None
    """Volumes in addition to workers.volumes."""
    containers: Annotated[list[TrainerPatch], Field(max_length=1), list_map("name")] | None = None
    """The container trainer. A pod has no other ones that run beside it: see initContainers."""
    init_containers: Annotated[list[Sidecar], Field(max_length=4), list_map("name")] | None = None
    """Sidecars. They start before workers.initContainers, in this order."""

    @property
    def host_path_volumes(self) -> frozenset[str]:
        """Names of the volumes that are paths of the node."""
        return frozenset(v.name for v in self.volumes or () if v.host_path is not None)


class PodPatch(ApiModel):
    """A part of a PodTemplateSpec. Labels and annotations are in podLabels and podAnnotations."""

    spec: PodPatchSpec
    """The part of the PodSpec."""
