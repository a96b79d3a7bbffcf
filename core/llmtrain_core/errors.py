"""The one error of the plan: what cannot be, the limit, and the nearest choice that can."""

from __future__ import annotations


class PlanError(ValueError):
    """A question without an answer: `message` names the limit, `remedy` the nearest choice."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message, self.remedy = message, remedy
