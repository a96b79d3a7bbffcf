"""A problem of a job, as reported to the user."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.api.conditions import Reason, clean_text


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a job: field, message and remedy."""

    reason: Reason
    field: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return clean_text(f"{self.field}: {self.message}; {self.remedy}")
