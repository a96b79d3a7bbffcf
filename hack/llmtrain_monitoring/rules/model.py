"""Recording and alerting rules as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How soon a person has to act: now, today, or when there is time."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded expression, with labels that the rule adds."""

    record: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, object]:
        """Return the rule as Prometheus reads it."""
        return {
            "record": self.record,
            "expr": self.expr,
            **({"labels": self.labels} if self.labels else {}),
        }


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert; its name has the prefix LLMTrain, and a page in `docs/runbooks`.

    The chart adds the annotation `runbook_url`, because only the user knows who serves the pages.
    """

    name: str
    severity: Severity
    expr: str
    summary: str
    description: str
    hold: str = ""
    """How long the expression must be true."""
    keep: str = ""
    """How long the alert goes on firing afterwards, against flapping."""

    def manifest(self) -> dict[str, object]:
        """Return the rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.hold} if self.hold else {}),
            **({"keep_firing_for": self.keep} if self.keep else {}),
            "labels": {"severity": self.severity.value},
            "annotations": {"summary": self.summary, "description": self.description},
        }


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated in order, at one time."""

    name: str
    rules: tuple[Recording | Alert, ...]

    def manifest(self) -> dict[str, object]:
        """Return the group as Prometheus reads it."""
        return {"name": self.name, "rules": [rule.manifest() for rule in self.rules]}
