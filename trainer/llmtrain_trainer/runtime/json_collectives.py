"""Collectives of JSON values.

torch's collectives of objects use pickle: whoever reaches a port of the gang could run code in all
ranks. A JSON value is only data. Every rank of the group calls these functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MAX_BYTES = 4 << 30
"""Longest encoded value. A length beyond it is an error, not a reason to allocate memory."""


def all_gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the values of all ranks, in the order of the ranks."""
    content, sizes = _encode(value, group)
    parts = [torch.empty(max(sizes), dtype=torch.uint8, device=content.device) for _ in sizes]
    dist.all_gather(parts, _padded(content, max(sizes)), group=group)
    return [_decode(part, size) for part, size in zip(parts, sizes, strict=True)]


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any] | None:
    """Return the values of all ranks on the first rank of the group, and None on the others."""
    content, sizes = _encode(value, group)
    parts = None
    if dist.get_rank(group) == 0:
        parts = [torch.empty(max(sizes), dtype=torch.uint8, device=content.device) for _ in sizes]
    dist.gather(_padded(content, max(sizes)), parts, group=group, group_dst=0)
    if parts is None:
        return None
    return [_decode(part, size) for part, size in zip(parts, sizes, strict=True)]


def scatter(values: Sequence[Any] | None, group: dist.ProcessGroup | None = None) -> Any:
    """Return to each rank its value of the list that the first rank of the group passes."""
    device = _device(group)
    ranks = dist.get_world_size(group)
    parts: list[Tensor] | None = None
    sizes = torch.zeros(ranks, dtype=torch.int64, device=device)
    if dist.get_rank(group) == 0:
        assert values is not None and len(values) == ranks
        parts = [_bytes(each).to(device) for each in values]
        sizes = torch.tensor([len(part) for part in parts], device=device)
    dist.broadcast(sizes, group=group, group_src=0)
    width = _checked(int(sizes.max()))
    own = torch.empty(width, dtype=torch.uint8, device=device)
    padded = None if parts is None else [_padded(part, width) for part in parts]
    dist.scatter(own, padded, group=group, group_src=0)
    return _decode(own, int(sizes[dist.get_rank(group)]))


def broadcast(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Return the value of the first rank of the group."""
    device = _device(group)
    content = _bytes(value if dist.get_rank(group) == 0 else None).to(device)
    size = torch.tensor([len(content)], device=device)
    dist.broadcast(size, group=group, group_src=0)
    if dist.get_rank(group) != 0:
        content = torch.empty(_checked(int(size)), dtype=torch.uint8, device=device)
    dist.broadcast(content, group=group, group_src=0)
    return _decode(content, len(content))


def send(value: Any, to: int, group: dist.ProcessGroup | None = None) -> None:
    """Send a value to rank `to` of the group."""
    device = _device(group)
    content = _bytes(value).to(device)
    dist.send(torch.tensor([len(content)], device=device), group=group, group_dst=to)
    dist.send(content, group=group, group_dst=to)


def receive(source: int, group: dist.ProcessGroup | None = None) -> Any:
    """Receive a value from rank `source` of the group."""
    device = _device(group)
    size = torch.zeros(1, dtype=torch.int64, device=device)
    dist.recv(size, group=group, group_src=source)
    content = torch.empty(_checked(int(size)), dtype=torch.uint8, device=device)
    dist.recv(content, group=group, group_src=source)
    return _decode(content, len(content))


def _encode(value: Any, group: dist.ProcessGroup | None) -> tuple[Tensor, list[int]]:
    """Return the encoded value, and the lengths of the values of all ranks."""
    device = _device(group)
    content = _bytes(value).to(device)
    own = torch.tensor([len(content)], device=device)
    sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, own, group=group)
    return content, [_checked(int(size)) for size in sizes]


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Return the main memory if the group can send it, otherwise this rank's GPU."""
    if "cpu" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _padded(content: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(content, (0, width - len(content)))


def _decode(content: Tensor, size: int) -> Any:
    return json.loads(content[:size].cpu().numpy().tobytes())


def _checked(size: int) -> int:
    if not 0 < size <= MAX_BYTES:
        raise RuntimeError(f"a rank announced a message of {size} bytes")
    return size
