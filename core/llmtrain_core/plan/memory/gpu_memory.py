"""Which nodes have GPUs on which a job provably cannot run: too little memory, by their labels.

The operator and the command line both ask, so that both leave out the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_core.errors import PlanError
from llmtrain_core.plan.hardware import PRODUCT_LABELS, Accelerator, accelerator_of
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job

WHOLE_GPUS = frozenset({"nvidia.com/gpu", "amd.com/gpu"})
"""Resources of which one is one GPU, as the product label names it; a slice has less of all."""
Product = tuple[tuple[str, str], ...]
"""The labels that name a node's GPU, with their values."""


def min_gpu_memory(job: Job) -> int:
    """Return the bytes without which no GPU can run a job; 0 where that is not for us to say."""
    workers = job.spec.workers
    if workers.command is not None or workers.gpu_resource not in WHOLE_GPUS:
        return 0
    try:
        return memory(TrainingSetup.of(job)).least
    except PlanError:
        return 0


def nodes_by_gpu_memory(nodes: Iterable[Node]) -> dict[int, frozenset[str]]:
    """Return the names of nodes by the bytes of memory of their GPUs, where labels tell."""
    found: dict[int, set[str]] = {}
    rows: dict[Product, Accelerator | None] = {}
    for node in nodes:
        product = gpu_product_labels(node)
        if product not in rows:
            rows[product] = accelerator_of(node.labels)
        row = rows[product]
        if row is not None:
            found.setdefault(int(row.memory.value), set()).add(node.name)
    return {size: frozenset(names) for size, names in found.items()}


def nodes_with_too_little_memory(job: Job, nodes: Iterable[Node]) -> frozenset[str]:
    """Return the nodes on whose GPUs a job provably cannot run."""
    least = min_gpu_memory(job)
    small = (names for size, names in nodes_by_gpu_memory(nodes).items() if size < least)
    return frozenset[str]().union(*small)


def gpu_product_labels(node: Node) -> Product:
    """Return what a node's labels say of its GPUs."""
    return tuple((label, node.labels.get(label, "")) for label in PRODUCT_LABELS)
