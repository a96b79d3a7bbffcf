"""What is wrong with a job, for a user to mend."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.api.conditions import Reason, clean_text


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a job: where, what, and how to mend it."""

    reason: Reason
    field: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return clean_text(f"{self.field}: {self.message}; {self.remedy}")
