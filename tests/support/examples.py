"""Numbers of random examples: `make test` has a sample of those of `make fuzz`."""

from __future__ import annotations

from hypothesis import settings

SHARE = 3
"""Of so many examples of `make fuzz`, `make test` has one."""


def examples(count: int) -> settings:
    """Return settings for `count` examples in `make fuzz`, and a third of them in `make test`.

    The profile of hypothesis tells the two apart: examples that are the same each time are those
    of `make test`.
    """
    return settings(max_examples=-(-count // SHARE) if settings().derandomize else count)
