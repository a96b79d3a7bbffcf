"""What the labels of nodes say of their GPUs: the type, and those with too little memory for a job.

The operator and the command line both use it, so that both place a job alike.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_core.devices.demand import DeviceKind, counted_gpus
from llmtrain_core.errors import PlanError
from llmtrain_core.plan.hardware import PRODUCT_LABELS, Accelerator, accelerator_of
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job

WHOLE_GPU_CLASSES = ("gpu.nvidia.com", "gpu.amd.com")
"""DeviceClasses of the drivers of NVIDIA and AMD."""
WHOLE_GPUS = frozenset(
    {"nvidia.com/gpu", "amd.com/gpu", *(DeviceKind(name).resource for name in WHOLE_GPU_CLASSES)}
)
"""Resources that count whole GPUs; a MIG slice has less memory than its label says."""
Product = tuple[tuple[str, str], ...]
"""GPU product labels of a node, with their values."""


def min_gpu_memory(job: Job) -> int:
    """Return the minimum GPU memory of a job in bytes, without margins; 0 if it is unknown."""
    workers = job.spec.workers
    if workers.command is not None or counted_gpus(workers) not in WHOLE_GPUS:
        return 0
    try:
        return memory(TrainingSetup.of(job)).least
    except PlanError:
        return 0


def nodes_by_gpu_memory(nodes: Iterable[Node]) -> dict[int, frozenset[str]]:
    """Return node names by GPU memory in bytes, for nodes with known product labels."""
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
    """Return the names of nodes whose GPUs have too little memory for the job."""
    least = min_gpu_memory(job)
    small = (names for size, names in nodes_by_gpu_memory(nodes).items() if size < least)
    return frozenset[str]().union(*small)


def only_gpu(nodes: Iterable[Node]) -> Accelerator | None:
    """Return the GPU of the nodes, or None unless their labels name exactly one type."""
    products = {gpu_product_labels(node) for node in nodes}
    found = {row.name: row for product in products if (row := accelerator_of(dict(product)))}
    return next(iter(found.values())) if len(found) == 1 else None


def gpu_product_labels(node: Node) -> Product:
    """Return the GPU product labels of a node."""
    return tuple((label, node.labels.get(label, "")) for label in PRODUCT_LABELS)
