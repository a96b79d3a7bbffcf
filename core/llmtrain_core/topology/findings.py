"""What is wrong with the labels of the nodes: said once, in words, and never silently repaired."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmtrain_core.topology.inventory import Node, Snapshot, alone

_SHOWN = 4
"""Names that a sentence shows; the lists have them all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one level's labels that a person should look at."""

    kind: Literal["missing", "empty", "contradiction"]
    level: str
    label: str
    nodes: tuple[str, ...]
    """The nodes it is about, in natural order of the snapshot."""
    domain: str = ""
    """The domain that is in several places; for contradictions only."""
    parents: tuple[str, ...] = ()
    """Where it is: paths from far to near."""

    def sentence(self) -> str:
        """Say what is found and what follows from it."""
        count = len(self.nodes)
        nodes = f"{count} node" + ("" if count == 1 else "s")
        if self.kind == "contradiction":
            return (
                f"{self.level} {self.domain} is under {len(self.parents)} domains"
                f" ({_some(self.parents)}): counted as {len(self.parents)} of that name"
            )
        state = "no label" if self.kind == "missing" else "an empty label"
        return (
            f"{nodes} with {state} {self.label} ({_some(self.nodes)}): each counts as a"
            f" {self.level} of its own"
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON of `llmtrain topology`."""
        return {
            "kind": self.kind,
            "level": self.level,
            "label": self.label,
            "nodes": list(self.nodes),
            **({"domain": self.domain, "parents": list(self.parents)} if self.domain else {}),
            "message": self.sentence(),
        }


def findings(snapshot: Snapshot) -> tuple[Finding, ...]:
    """Look at the labels of all levels, far to near."""
    return (*_gaps(snapshot), *_contradictions(snapshot))


def _gaps(snapshot: Snapshot) -> Iterator[Finding]:
    by_name = {node.name: node for node in snapshot.nodes}
    names = {level.node_label: level.name for level in snapshot.levels}
    for label, gap in snapshot.missing_labels().items():
        empty = tuple(name for name in gap if label in by_name[name].labels)
        missing = tuple(name for name in gap if label not in by_name[name].labels)
        if missing:
            yield Finding("missing", names[label], label, missing)
        if empty:
            yield Finding("empty", names[label], label, empty)


def _contradictions(snapshot: Snapshot) -> Iterator[Finding]:
    """Domains of one name under several parents.

    They are kept apart, because names such as `rack-1` are often counted anew under each spine; but
    it may as well be one switch whose nodes name different spines, which only a person can tell.
    """
    for depth, level in enumerate(snapshot.levels[:-1]):
        if not depth:
            continue
        places: dict[str, dict[tuple[str, ...], list[Node]]] = {}
        for node in snapshot.nodes:
            path = snapshot.path(node)
            if alone(node) not in path[: depth + 1]:
                places.setdefault(path[depth], {}).setdefault(path[:depth], []).append(node)
        for domain, parents in places.items():
            if len(parents) > 1:
                nodes = tuple(node.name for members in parents.values() for node in members)
                names = tuple(sorted("/".join(parent) for parent in parents))
                yield Finding("contradiction", level.name, level.node_label, nodes, domain, names)


def bearing_on(
    found: Iterable[Finding], could: Collection[str], got: Collection[str]
) -> Iterator[Finding]:
    """Return what matters to one job: gaps on nodes it could use, odd names on those it got."""
    for finding in found:
        if finding.kind == "contradiction":
            if any(name in got for name in finding.nodes):
                yield finding
        elif nodes := tuple(name for name in finding.nodes if name in could):
            yield replace(finding, nodes=nodes)


def sentences(found: Iterable[Finding], limit: int = 8) -> list[str]:
    """Say the findings, at most `limit` of them and how many more there are.

    Several contradictions of one level are one sentence: that is how the names are given there.
    """
    said: list[str] = []
    repeated: dict[str, list[Finding]] = {}
    for finding in found:
        if finding.kind == "contradiction":
            repeated.setdefault(finding.level, []).append(finding)
        else:
            said.append(finding.sentence())
    for level, those in repeated.items():
        if len(those) == 1:
            said.append(those[0].sentence())
            continue
        names = _some([finding.domain for finding in those])
        said.append(
            f"{len(those)} names of level {level} are under several domains ({names}): each counts"
            f" as a {level} of its own under each"
        )
    more = len(said) - limit
    return said if more <= 0 else [*said[:limit], f"{more} more findings about labels"]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
