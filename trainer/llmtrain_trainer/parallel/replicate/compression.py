"""A sum in fewer bytes, with what rounding loses made good in the next step.

Codes cannot be added up on the way, so every rank gets one part of the vector from all others,
decodes, adds, and hands its part of the sum to all: all-to-all, then all-gather, as many bytes on
the wire as a ring all-reduce of the code. All ranks decode the same bytes, so copies stay equal to
the last bit, and the sum itself is made in full precision.

What coarse rounding loses is kept and added to the next vector of the same name (error feedback:
Seide et al., 2014, "1-bit SGD"; Karimireddy et al., arXiv:1901.09847). Both roundings are corrected
so, the sender's and that of the sum (Tang et al., arXiv:1905.05957).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain_core.plan.gradient_sync import part_values
from llmtrain_trainer.parallel.replicate.all_reduce import Finish
from llmtrain_trainer.parallel.replicate.codecs import Codec

SENT, SUMMED = "sent", "summed"
"""The two roundings, of a rank's own vector and of the part that it adds up."""


class CodedSum:
    """The sum of a group, in the words of a codec."""

    def __init__(self, group: dist.ProcessGroup, codec: Codec) -> None:
        self._group, self._codec = group, codec
        self._errors: dict[str, Tensor] = {}

    def begin(self, name: str, values: Tensor) -> Finish:
        """See `Sum`; the all-to-all is on its way when this returns."""
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

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Sum`."""
        return self._errors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Sum`."""
        self._errors = dict(tensors)

    def _encode(self, key: str, rows: Tensor) -> Tensor:
        if not self._codec.feedback:
            return self._codec.encode(rows)
        before = self._errors.get(key)
        wanted = rows if before is None else rows + before
        message = self._codec.encode(wanted)
        said = self._codec.decode(message, rows.size(1), rows.dtype)
        # a step that is thrown away because it overflowed must not spoil the ones after it
        self._errors[key] = (wanted - said).nan_to_num_(0.0, 0.0, 0.0)
        return message
