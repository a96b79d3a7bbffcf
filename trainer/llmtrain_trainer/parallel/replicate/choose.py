"""From the job's choice to a way of adding up."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist

from llmtrain_core.plan.gradient_sync import Compression
from llmtrain_trainer.parallel.replicate.all_reduce import PlainSum, Sum
from llmtrain_trainer.parallel.replicate.codecs import Bfloat16, Int8
from llmtrain_trainer.parallel.replicate.compression import CodedSum
from llmtrain_trainer.parallel.replicate.hierarchical import HierarchicalSum


def choose_sum(compression: Compression, groups: Mapping[str, dist.ProcessGroup]) -> Sum:
    """Return the sum over all copies; where racks hold several, only what leaves one is coded."""
    if "rep-near" in groups:
        return HierarchicalSum(groups["rep-near"], _flat(compression, groups["rep-far"]))
    return _flat(compression, groups["rep"])


def _flat(compression: Compression, group: dist.ProcessGroup) -> Sum:
    if compression == "bf16":
        return CodedSum(group, Bfloat16())
    if compression == "int8":
        return CodedSum(group, Int8())
    return PlainSum(group)
