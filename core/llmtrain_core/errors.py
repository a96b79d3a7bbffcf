"""Errors of the plan."""

from __future__ import annotations


class PlanError(ValueError):
    """An impossible plan: `message` has the reason, `remedy` the nearest valid value."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message, self.remedy = message, remedy
