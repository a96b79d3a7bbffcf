"""A compressed all-reduce with error feedback.

Codes cannot be summed. Every rank gets one part of the vector from all other ranks, decodes and
sums it, and sends the encoded sum to all: an all-to-all and then an all-gather. That sends as many
bytes as a ring all-reduce of the codes. All ranks decode the same bytes, so replicas stay bitwise
equal. The sum is computed in full precision.

The error of coarse rounding is added to the next vector of the same name (error feedback: Seide et
al., 2014, "1-bit SGD"; Karimireddy et al., arXiv:1901.09847). This is done for both roundings, of
the sent values and of the sum (Tang et al., arXiv:1905.05957).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain_core.plan.gradient_sync import part_values
from llmtrain_trainer.parallel.replicate.all_reduce import Completion
from llmtrain_trainer.parallel.replicate.quantization import Codec

SENT, SUMMED = "sent", "summed"
"""The two roundings: of a rank's own vector, and of the part that it sums."""


class CompressedAllReduce:
    """The sum over a group, with values encoded by a codec."""

    def __init__(self, group: dist.ProcessGroup, codec: Codec) -> None:
        self._group, self._codec = group, codec
        self._errors: dict[str, Tensor] = {}

    def start(self, name: str, values: Tensor) -> Completion:
        """See `AllReduce`. The all-to-all has been started when this returns."""
        ranks = self._group.size()
        length = part_values(values.numel(), ranks)
        rows = F.pad(values.flatten(), (0, ranks * length - values.numel())).view(ranks, length)
        message = self._encode(f"{SENT}.{name}", rows)
        received = torch.empty_like(message)
        work = dist.all_to_all_single(received, message, group=self._group, async_op=True)

        def finish() -> None:
            if work is not None:
                work.wait()
            parts = self._codec.decode(received, length, values.dtype)
            mine = self._encode(f"{SUMMED}.{name}", parts.sum(0, keepdim=True))
            dist.all_gather_into_tensor(message, mine, group=self._group)
            total = self._codec.decode(message, length, values.dtype).flatten()
            values.copy_(total[: values.numel()].view_as(values))

        return finish

    def state_dict(self) -> Mapping[str, Tensor]:
        """See `AllReduce`."""
        return self._errors

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `AllReduce`."""
        self._errors = dict(state_dict)

    def _encode(self, key: str, rows: Tensor) -> Tensor:
        if not self._codec.feedback:
            return self._codec.encode(rows)
        before = self._errors.get(key)
        wanted = rows if before is None else rows + before
        message = self._codec.encode(wanted)
        said = self._codec.decode(message, rows.size(1), rows.dtype)
        # an overflowed step that is discarded must not affect later steps
        self._errors[key] = (wanted - said).nan_to_num_(0.0, 0.0, 0.0)
        return message
