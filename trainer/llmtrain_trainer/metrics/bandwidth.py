"""Bandwidth conventions; free of torch, since the launcher uses them before it has imported it."""

from __future__ import annotations


def bus_factor(op: str, size: int) -> float:
    """Return bytes that cross a rank's link per byte of payload (nccl-tests, PERFORMANCE.md)."""
    if op == "all_reduce":
        return 2 * (size - 1) / size
    if op in {"all_gather", "reduce_scatter", "all_to_all"}:
        return (size - 1) / size
    return 1.0
