"""Choose the all-reduce of a job."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist

from llmtrain_core.plan.gradient_sync import Compression
from llmtrain_trainer.parallel.replicate.all_reduce import AllReduce, PlainAllReduce
from llmtrain_trainer.parallel.replicate.compressed_all_reduce import CompressedAllReduce
from llmtrain_trainer.parallel.replicate.hierarchical_all_reduce import HierarchicalAllReduce
from llmtrain_trainer.parallel.replicate.quantization import Bfloat16Codec, Int8Codec


def choose_all_reduce(
    compression: Compression, groups: Mapping[str, dist.ProcessGroup]
) -> AllReduce:
    """Return the all-reduce over all replicas. Compression is for traffic between racks, if any."""
    if "intra_rack" in groups:
        return HierarchicalAllReduce(groups["intra_rack"], _flat(compression, groups["inter_rack"]))
    return _flat(compression, groups["dp_replicate"])


def _flat(compression: Compression, group: dist.ProcessGroup) -> AllReduce:
    if compression == "bf16":
        return CompressedAllReduce(group, Bfloat16Codec())
    if compression == "int8":
        return CompressedAllReduce(group, Int8Codec())
    return PlainAllReduce(group)
