"""Select the nodes of a plan: usable nodes that have the planned GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmtrain_cli.errors import CliError
from llmtrain_cli.io.assigned_nodes import is_gpu
from llmtrain_cli.io.cluster_view import slices_and_claims
from llmtrain_cli.io.files import UNEXPECTED, read_nodes
from llmtrain_cli.io.node_state import NodeState, node_state
from llmtrain_core.devices.capacity import DeviceClasses
from llmtrain_core.devices.demand import DeviceKey, DeviceKind
from llmtrain_core.devices.records import class_record
from llmtrain_core.plan.hardware import (
    CATALOGUE,
    PRODUCT_LABELS,
    Accelerator,
    accelerator,
    accelerator_of,
)
from llmtrain_core.plan.memory.node_filter import WHOLE_GPU_CLASSES, WHOLE_GPUS
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.topology.inventory import Node, node_from_raw
from llmtrain_core.topology.node_devices import devices_of_nodes
from llmtrain_core.topology.node_limit import within_limit

DEFAULT_GPU = "H100"
_LEFT_OUT: Mapping[NodeState, str] = {
    "not ready": "not ready",
    "cordoned": "cordoned",
    "avoided": "avoided for their health",
}
"""What a note says of nodes that are left out, by their state."""


@dataclass(frozen=True, slots=True)
class NodeSelection:
    """The GPU type of a plan, and the nodes that have it."""

    hardware: Accelerator
    nodes: tuple[Node, ...] = ()
    """Empty without --nodes."""
    notes: tuple[str, ...] = ()
    """Nodes that were left out, and assumptions."""

    @property
    def gpus(self) -> int | None:
        """The number of GPUs of the nodes, or None without --nodes."""
        return sum(max(n.allocatable.get(r, 0) for r in WHOLE_GPUS) for n in self.nodes) or None


def select_nodes(
    path: str | None, gpu: str | None, devices: Collection[DeviceKey] = ()
) -> NodeSelection:
    """Return the GPU type and its nodes. Raises CliError if no node matches the flags.

    `devices` are those that the job claims.
    """
    if path is None:
        return NodeSelection(accelerator(DEFAULT_GPU if gpu is None else gpu))
    usable, away = _usable(path, devices)
    kinds = {node.name: accelerator_of(node.labels) for node in usable}
    hardware = _only(kinds.values(), usable) if gpu is None else accelerator(gpu)
    mine = [node for node in usable if kinds[node.name] == hardware]
    notes = list(away)
    if not mine:  # with --gpu only
        mine = [node for node in usable if kinds[node.name] is None]
        notes += [
            f"nodes that name no known GPU, assumed to have {hardware.name} (--gpu): {len(mine)}"
        ]
    if not mine:
        have = ", ".join(sorted({row.name for row in kinds.values() if row}))
        raise CliError(f"--gpu {gpu}: no usable node of --nodes has it; they have {have}")
    others = Counter(_kind(kinds[node.name]) for node in usable if node not in mine)
    notes += [f"nodes left out: {count} {kind}" for kind, count in sorted(others.items())]
    return NodeSelection(hardware, tuple(mine), tuple(notes))


def _usable(path: str, devices: Collection[DeviceKey]) -> tuple[list[Node], list[str]]:
    """Return the usable nodes with GPUs, and notes about the others."""
    try:
        listed = read_nodes(path)
        nodes = within_limit([node_from_raw(raw) for raw in listed["Node"]], MAX_EXCLUDED_PERCENT)
        classes = DeviceClasses(map(class_record, listed["DeviceClass"]))
        keys = [*devices, *(DeviceKind(name) for name in WHOLE_GPU_CLASSES)]
        found, _ = devices_of_nodes(nodes, slices_and_claims(listed)[0], (), keys, classes)
    except UNEXPECTED as error:
        raise CliError(
            f"--nodes {path}: unexpected object: {error!r}; print the list with kubectl get -o json"
        ) from error
    found = [node for node in found if _has_gpus(node)]
    if not found:
        raise CliError(f"--nodes {path}: no node has GPUs; list some, or drop --nodes")
    states = Counter(map(node_state, found))
    usable = [node for node in found if node_state(node) == "ready"]
    counts = [(why, states[state]) for state, why in _LEFT_OUT.items()]
    notes = [f"nodes left out: {count} {why}" for why, count in counts if count]
    if not usable:
        raise CliError(f"--nodes {path}: no usable node: " + ", ".join(notes))
    return usable, notes


def _has_gpus(node: Node) -> bool:
    """Return True if a node has GPUs or MIG slices."""
    return any(
        amount > 0 and (is_gpu(name) or name in WHOLE_GPUS or "/mig-" in name)
        for name, amount in node.allocatable.items()
    )


def _only(kinds: Iterable[Accelerator | None], nodes: Sequence[Node]) -> Accelerator:
    """Return the only GPU type that the labels name."""
    found = {row.name: row for row in kinds if row}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise CliError("--nodes: several GPU types, " + ", ".join(sorted(found)) + "; pass --gpu")
    labelled = sorted(
        {node.labels[label] for node in nodes for label in PRODUCT_LABELS if label in node.labels}
    )
    raise CliError(
        "--nodes: no node has a known "
        + " or ".join(PRODUCT_LABELS)
        + " label"
        + (f" (their values: {', '.join(labelled)})" if labelled else "")
        + "; known are "
        + ", ".join(CATALOGUE)
        + "; pass --gpu"
    )


def _kind(row: Accelerator | None) -> str:
    return "with no known GPU in the labels" if row is None else f"with {row.name}"
