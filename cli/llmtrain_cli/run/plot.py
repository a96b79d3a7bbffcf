"""Plot values over steps in the terminal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""Bits of a braille character's dots, from the lowest: left column, right column."""
EMPTY = 0x2800


def plot(values: Mapping[int, float], width: int = 66, height: int = 10) -> str:
    """Plot values over steps. A character has two columns of four dots."""
    steps = sorted(values)
    low, high = min(values.values()), max(values.values())
    cells = [[EMPTY] * width for _ in range(height)]
    for column in range(2 * width):
        step = steps[0] + (steps[-1] - steps[0]) * column / (2 * width - 1)
        share = (_between(steps, values, step) - low) / ((high - low) or 1)
        row = round(share * (4 * height - 1))
        cells[height - 1 - row // 4][column // 2] |= DOTS[column % 2][row % 4]
    return "\n".join(_lines(cells, (low, high), (steps[0], steps[-1])))


def _between(steps: Sequence[int], values: Mapping[int, float], step: float) -> float:
    """Return the value at a step, by linear interpolation."""
    right = min(bisect_right(steps, step), len(steps) - 1)
    after, before = steps[right], steps[max(right - 1, 0)]
    share = (step - before) / (after - before) if after > before else 1.0
    return values[before] + share * (values[after] - values[before])


def _lines(
    cells: list[list[int]], bounds: tuple[float, float], ends: tuple[int, int]
) -> Iterator[str]:
    labels = {0: f"{bounds[1]:.4g}", len(cells) - 1: f"{bounds[0]:.4g}"}
    width = len(cells[0])
    for row, cell in enumerate(cells):
        yield f"{labels.get(row, ''):>8} ┤{''.join(map(chr, cell))}"
    yield f"{'':>8} └{'─' * width}"
    yield f"{'step':>8}  {ends[0]:<{width // 2}}{ends[1]:>{width - width // 2}}"
