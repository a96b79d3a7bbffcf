"""Decide the network of a job on one node, by the facts of the node and the fields of the job.

`network.profile: auto` uses a network only if the facts of a node prove that its pods can use it as
they are. It requests devices and sets variables, but demands nothing: NCCL uses TCP if the network
is missing. A job that names a profile gets the variables that make NCCL fail without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from llmtrain_core.api.job import NetworkProfile
from llmtrain_core.network.environments import TABLE
from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.pod_parts import missing, part_settings
from llmtrain_core.network.request import AUTO, VARIABLE_PREFIXES, NetworkRequest
from llmtrain_core.network.rows import (
    NETWORKS,
    PROFILES,
    CandidateNetwork,
    Need,
    NeedKind,
    Value,
)
from llmtrain_core.network.settings import (
    ANNOTATIONS_FIELD,
    ENV_FIELD,
    JOB,
    NCCL_FIELD,
    RDMA_FIELD,
    RESOURCES_FIELD,
    Kind,
    Setting,
)
from llmtrain_core.topology.label_presets import PRESETS
from llmtrain_core.topology.resources import Amounts, amounts, is_device
from llmtrain_core.validation.pod_privileges import PROFILE_FIELD

PLAIN, NAMED = "tcp", "network.rdma"
"""Rows of nodes whose network no row of the table sets: NCCL chooses, or the job names devices."""
_PATCH = "mount the paths by workers.podPatch"
_INTERFACE = "NCCL_SOCKET_IFNAME"
"""The interfaces that rows name are those of a pod with a network of its own."""
_MAX_ATTACHED = 1024
"""Networks that one pod attaches at most."""

_GUIDE = "NVIDIA, NCCL User Guide: Environment Variables"
PROFILE_VARIABLES: Mapping[NetworkProfile, tuple[Value, ...]] = MappingProxyType(
    {
        "infiniband": (Value("NCCL_NET", "IB", _GUIDE),),
        "roce": (
            Value("NCCL_NET", "IB", _GUIDE),
            Value("NCCL_IB_ROCE_VERSION_NUM", "2", _GUIDE),
        ),
        "efa": (
            Value("NCCL_NET", "AWS Libfabric", "aws/aws-ofi-nccl: doc/plugin-initialization.md"),
            Value("FI_PROVIDER", "efa", "libfabric: fi_efa(7)"),
        ),
        "tcp": (Value("NCCL_IB_DISABLE", "1", _GUIDE),),
    }
)
"""Variables of a job that names a profile. `NCCL_NET` requires the network: without it NCCL fails
instead of falling back to TCP. RoCE version 2 is the routable one."""


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """The network of a job on a node."""

    row: str
    fact: str
    """The fact that matched. It may differ between nodes of one network, as a count of slots."""
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
    """Networks that the node has and the job does not use, with the reason."""
    topology: str | None = None
    """Topology preset of the environment, if the node has its labels."""

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` and `llmtrain plan` print."""
        return {
            "row": self.row,
            "fact": self.fact,
            "topologyPreset": self.topology,
            "settings": [item.to_wire() for item in self.settings],
            "notes": list(self.notes),
        }

    def of_kind(self, kind: Kind) -> dict[str, str]:
        """Return the values of one kind by name."""
        return {item.name: item.value for item in self.settings if item.kind is kind}

    @property
    def resources(self) -> Amounts:
        """Amounts that a pod requests for the network."""
        return amounts(self.of_kind(Kind.RESOURCE))

    @property
    def title(self) -> str:
        """The row and its devices, to tell the network from others."""
        devices = [f"{amount} {name}" for name, amount in self.resources.items() if is_device(name)]
        return f"{self.row} ({', '.join(devices)})" if devices else self.row


@dataclass(frozen=True, slots=True)
class NoNetwork:
    """Why a job cannot use a node, and what to set. Nodes that lack the same have the same text."""

    cause: str


def candidates_on(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield the networks of a node in the order of the table."""
    for row in TABLE:
        yield from row(facts)


def network_of(facts: NodeFacts, request: NetworkRequest) -> NodeNetwork | NoNetwork:
    """Return the network of a job on a node with these facts, or why it cannot use the node."""
    candidates = [_satisfied(facts, request, each) for each in candidates_on(facts)]
    if request.profile == "tcp":
        return _plain(request, "the job", PROFILE_VARIABLES["tcp"])
    if request.profile == AUTO:
        return _auto(facts, request, candidates)
    profile = next(name for name in PROFILES if name == request.profile)
    return _named(facts, request, candidates, profile)


def _satisfied(
    facts: NodeFacts, request: NetworkRequest, candidate: CandidateNetwork
) -> CandidateNetwork:
    """Return a network with what it still needs.

    It needs nothing if the job claims devices itself, or if the operator adds what pods need.
    """
    need, parts = candidate.need, candidate.parts
    if need is None:
        return candidate
    if need.kind is NeedKind.CLAIM and request.has_claims:
        return replace(candidate, need=None)
    if parts is None or request.profile == AUTO:  # such pods are a choice of the job
        return candidate
    lacking = missing(facts, request, parts)
    return replace(candidate, need=replace(need, text=need.text + lacking) if lacking else None)


def _auto(
    facts: NodeFacts, request: NetworkRequest, candidates: Sequence[CandidateNetwork]
) -> NodeNetwork:
    if request.rdma is not None:
        candidate = _with_resource(candidates, request.rdma[0])
        return _network(facts, request, candidate) if candidate else _of_the_job(request, ())
    if request.nodes == 1:
        return _plain(request, "the gang has one node, within which NCCL needs no network")
    if not candidates:
        return _plain(request, "no fact of the node names another network")
    first = candidates[0]
    if first.need is None:
        return _network(facts, request, first)
    note = f"{first.row} ({first.fact}) is not used: it needs {first.need.text}{_remedy(first)}"
    return _plain(request, "no other network can be used as it is", notes=(note,))


def _remedy(candidate: CandidateNetwork) -> str:
    """Return what the job can set to use a network that `auto` does not use."""
    if candidate.need is None:
        return ""
    profile = f"set network.profile: {' or '.join(candidate.profiles)} to use it"
    if candidate.need.kind is NeedKind.CONFIRMATION or candidate.parts is not None:
        return f"; {profile}"
    return f"; {_PATCH}, and {profile}" if _is_patchable(candidate) else ""


def _named(
    facts: NodeFacts,
    request: NetworkRequest,
    candidates: Sequence[CandidateNetwork],
    profile: NetworkProfile,
) -> NodeNetwork | NoNetwork:
    """Return the network of a job that names a profile."""
    fitting = [candidate for candidate in candidates if profile in candidate.profiles]
    if request.rdma is not None:
        candidate = _with_resource(fitting, request.rdma[0])
        if candidate is None:
            return _of_the_job(request, PROFILE_VARIABLES.get(profile, ()))
        return _network(facts, request, candidate, profile)
    if not fitting:
        return _contradiction(candidates, profile)
    candidate = fitting[0]
    if (need := _unmet(candidate, request)) is not None:
        remedy = f" ({_PATCH})" if _is_patchable(candidate) else ""
        return NoNetwork(f"has {candidate.row}, which needs {need.text}{remedy}")
    return _network(facts, request, candidate, profile)


def _contradiction(candidates: Sequence[CandidateNetwork], profile: NetworkProfile) -> NoNetwork:
    """Return that a node has another network than a job wants, with the nearest profile."""
    if not candidates:
        return NoNetwork(f"shows no network but TCP, not {profile} (use network.profile tcp)")
    other = candidates[0]
    nearest = " or ".join((*other.profiles, AUTO))
    text = f"has {other.row} by {_kind_of(other)}, not {profile} (use network.profile {nearest})"
    return NoNetwork(text)


def _kind_of(candidate: CandidateNetwork) -> str:
    """Return a fact of an candidate without the amount, which differs between nodes."""
    return f"resource {candidate.devices.resource}" if candidate.devices else candidate.fact


def _unmet(candidate: CandidateNetwork, request: NetworkRequest) -> Need | None:
    """Return what a network needs and a job that names its profile does not confirm or have."""
    need = candidate.need
    if need is None or need.kind is NeedKind.CONFIRMATION:
        return None
    return None if _is_patchable(candidate) and request.node_paths else need


def _is_patchable(candidate: CandidateNetwork) -> bool:
    """Return True if `workers.podPatch` of a job can have what a network needs.

    What it has exactly is the job's word, as with a confirmation.
    """
    need = candidate.need
    return need is not None and need.kind is NeedKind.PRIVILEGE and candidate.parts is None


def _with_resource(
    candidates: Sequence[CandidateNetwork], resource: str
) -> CandidateNetwork | None:
    return next((o for o in candidates if o.devices and o.devices.resource == resource), None)


def _plain(
    request: NetworkRequest,
    fact: str,
    variables: Sequence[Value] = (),
    notes: tuple[str, ...] = (),
) -> NodeNetwork:
    values = {item.name: _variable(item, PROFILE_FIELD) for item in variables}
    return NodeNetwork(PLAIN, fact, tuple(_with_own(request, values)), notes)


def _of_the_job(request: NetworkRequest, variables: Sequence[Value]) -> NodeNetwork:
    """Return a network that no row of the table knows: the job names its devices."""
    values = {item.name: _variable(item, PROFILE_FIELD) for item in variables}
    settings = (*_own_devices(request), *_with_own(request, values))
    return NodeNetwork(NAMED, RDMA_FIELD, settings)


def _network(
    facts: NodeFacts,
    request: NetworkRequest,
    candidate: CandidateNetwork,
    profile: NetworkProfile | None = None,
) -> NodeNetwork:
    """Return a network of the table. `profile` is the one that the job names."""
    values = {
        item.name: _variable(item, candidate.row)
        for item in candidate.variables
        if not (request.host_network and item.name == _INTERFACE)
    }
    if profile is not None:
        demand = (
            PROFILE_VARIABLES.get(profile, ()) if candidate.demand is None else candidate.demand
        )
        values |= {item.name: _variable(item, PROFILE_FIELD) for item in demand}
    devices = [*_own_devices(request)] or [*_devices(facts, request, candidate)]
    settings = [*devices, *_with_own(request, values)]
    if candidate.parts is not None:
        settings += part_settings(facts, request, candidate.row, candidate.parts)
    if request.networks is not None:
        settings.append(
            Setting(Kind.ANNOTATION, NETWORKS, request.networks, ANNOTATIONS_FIELD, JOB)
        )
    elif profile is not None and (attached := _attached(facts, request, candidate, devices)):
        settings.append(
            Setting(Kind.ANNOTATION, NETWORKS, attached, candidate.row, candidate.networks_source)
        )
    preset = candidate.topology if _has_labels_of(facts, candidate.topology) else None
    return NodeNetwork(candidate.row, candidate.fact, tuple(settings), topology=preset)


def _attached(
    facts: NodeFacts,
    request: NetworkRequest,
    candidate: CandidateNetwork,
    devices: Sequence[Setting],
) -> str:
    """Return the networks that Multus attaches: none to a pod in the network of the node.

    A job that requests more devices than the node has does not fit there.
    """
    if request.host_network or not candidate.networks:
        return ""
    if not candidate.network_per_device:
        return ",".join(candidate.networks)
    name, value = devices[0].name, devices[0].value
    count = min(amounts({name: value}).get(name, 0), facts.amount(name), _MAX_ATTACHED)
    return ",".join(candidate.networks * count)


def _devices(
    facts: NodeFacts, request: NetworkRequest, candidate: CandidateNetwork
) -> Iterator[Setting]:
    """Yield what a pod requests by the table. Amounts of `workers.resources` take precedence."""
    if candidate.devices is None:
        return
    name, source = candidate.devices.resource, candidate.devices.source
    count = 1 if candidate.devices.shared else _share(facts, request, name)
    for item in (Value(name, str(count), source), *candidate.amounts):
        if item.name in request.resources:
            value = request.resources[item.name]
            yield Setting(Kind.RESOURCE, item.name, value, RESOURCES_FIELD, JOB)
        else:
            yield Setting(Kind.RESOURCE, item.name, item.value, candidate.row, item.source)
    yield Setting(Kind.TOLERATION, name, "Exists:NoSchedule", candidate.row, source)


def _has_labels_of(facts: NodeFacts, preset: str | None) -> bool:
    """Return True if a node has a label of the preset, which is then chosen without a Fabric."""
    levels = PRESETS[preset][:-1] if preset else ()
    return any(not level.nvlink and level.node_label in facts.labels for level in levels)


def _share(facts: NodeFacts, request: NetworkRequest, resource: str) -> int:
    """Return the NICs of a pod: the share that it has of the GPUs of the node, at least one."""
    gpus = max(facts.amount(request.gpu_resource), request.gpus_per_node)
    return max(1, facts.amount(resource) * request.gpus_per_node // gpus)


def _own_devices(request: NetworkRequest) -> Iterator[Setting]:
    if request.rdma is not None:
        resource, count = request.rdma
        yield Setting(Kind.RESOURCE, resource, str(count), RDMA_FIELD, JOB)


def _variable(item: Value, set_by: str) -> Setting:
    return Setting(Kind.VARIABLE, item.name, item.value, set_by, item.source)


def _with_own(request: NetworkRequest, values: Mapping[str, Setting]) -> Iterator[Setting]:
    """Yield variables, with those of the job: they take precedence."""
    own = {
        name: Setting(Kind.VARIABLE, name, value, set_by, JOB)
        for set_by, variables in ((ENV_FIELD, request.env), (NCCL_FIELD, request.nccl))
        for name, value in variables.items()
        if name in values or name.startswith(VARIABLE_PREFIXES)
    }
    yield from ({**values, **own}).values()
