"""Problems with the topology labels of nodes. They are reported, never repaired silently."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmtrain_core.topology.inventory import Node, Snapshot, alone

_SHOWN = 4
"""Names that a sentence shows at most; the JSON lists have all of them."""


@dataclass(frozen=True, slots=True)
class LabelFinding:
    """A problem with the labels of one level."""

    kind: Literal["missing", "empty", "contradiction"]
    level: str
    label: str
    nodes: tuple[str, ...]
    """The nodes with the problem, in the order of the snapshot."""
    domain: str = ""
    """The domain that has several parents; for contradictions only."""
    parents: tuple[str, ...] = ()
    """Its parents: paths from far to near."""

    def sentence(self) -> str:
        """Return the problem and its effect as a sentence."""
        count = len(self.nodes)
        nodes = f"{count} node" + ("" if count == 1 else "s")
        if self.kind == "contradiction":
            return (
                f"{self.level} {self.domain} is under {len(self.parents)} domains"
                f" ({_some(self.parents)}): treated as {len(self.parents)} separate domains"
            )
        state = "no label" if self.kind == "missing" else "an empty or unknown label"
        return (
            f"{nodes} with {state} {self.label} ({_some(self.nodes)}): each is treated as a"
            f" separate {self.level}"
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


def findings(snapshot: Snapshot) -> tuple[LabelFinding, ...]:
    """Check the labels of all levels, far to near."""
    return (*_gaps(snapshot), *_contradictions(snapshot))


def _gaps(snapshot: Snapshot) -> Iterator[LabelFinding]:
    by_name = {node.name: node for node in snapshot.nodes}
    names = {level.node_label: level.name for level in snapshot.levels}
    for label, gap in snapshot.missing_labels().items():
        empty = tuple(name for name in gap if label in by_name[name].labels)
        missing = tuple(name for name in gap if label not in by_name[name].labels)
        if missing:
            yield LabelFinding("missing", names[label], label, missing)
        if empty:
            yield LabelFinding("empty", names[label], label, empty)


def _contradictions(snapshot: Snapshot) -> Iterator[LabelFinding]:
    """Yield domains with one name under several parents.

    They are treated as separate domains, because names such as `rack-1` are often reused under each
    spine. It may also be one switch whose nodes have labels of different spines.
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
                yield LabelFinding(
                    "contradiction", level.name, level.node_label, nodes, domain, names
                )


def relevant_to_job(
    found: Iterable[LabelFinding], could: Collection[str], got: Collection[str]
) -> Iterator[LabelFinding]:
    """Yield the findings about one job: gaps on usable nodes, contradictions on its own nodes."""
    for finding in found:
        if finding.kind == "contradiction":
            if any(name in got for name in finding.nodes):
                yield finding
        elif nodes := tuple(name for name in finding.nodes if name in could):
            yield replace(finding, nodes=nodes)


def sentences(found: Iterable[LabelFinding], limit: int = 8) -> list[str]:
    """Return the findings as sentences, at most `limit` and the number of further ones.

    Several contradictions of one level are one sentence.
    """
    said: list[str] = []
    repeated: dict[str, list[LabelFinding]] = {}
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
            f"{len(those)} names of level {level} have several parents ({names}): each is treated"
            f" as a separate {level} under each"
        )
    more = len(said) - limit
    return said if more <= 0 else [*said[:limit], f"{more} more findings about labels"]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
