"""Changes of the node health table by an administrator: rows added, changed or switched off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.node_health.default_rows import DEFAULT_ROWS
from llmtrain_core.node_health.rows import HealthRow, RowKind, Strength

MAX_CHANGES = 256
_KEYS = (RowKind.CONDITION, RowKind.TAINT, RowKind.LABEL, RowKind.RESOURCE)
_NAME = r"^[-A-Za-z0-9_.]+/([-A-Za-z0-9_.]+|\*)$"
_CONFIGURED = "configuration of the operator"

Key = Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[-A-Za-z0-9_./*]+$")]


class HealthRowError(ValueError):
    """A change that cannot be applied. The message names the row, the field and the remedy."""


class RowChange(ApiModel):
    """A row to add, or what to change of one that is shipped.

    A row that is shipped keeps what the change does not name. `family/*` stands for all rows of a
    family, and may only set `strength` and `moveWithinSeconds`.
    """

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=_NAME)]
    """`family/name`."""
    condition: Key | None = None
    """Type of a condition; `*` in it stands for any characters, as in the next three."""
    taint: Key | None = None
    """Key of a taint."""
    label: Key | None = None
    """Key of a label."""
    resource: Key | None = None
    """Resource of which less is allocatable than the node's capacity."""
    status: Literal["True", "False", "Unknown"] | None = None
    """The bad status of the condition; True for a new row."""
    values: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=32)] | None = (
        None
    )
    """Values of the taint or label that match; any if it is empty."""
    strength: Literal["avoid", "leave", "off"] | None = None
    """`avoid`: no pod starts on the node. `leave`: running jobs relocate, too. `off`: neither."""
    move_within_seconds: Annotated[float, Field(ge=0, le=86400)] | None = None
    """With `leave`: seconds after which a job moves even without a newer checkpoint."""


def read_changes(document: Any) -> tuple[RowChange, ...]:
    """Read a list of changes. Raises HealthRowError that names the first bad row."""
    if not isinstance(document, list):
        raise HealthRowError("not a list of rows; write [{name: ..., strength: ...}]")
    if len(document) > MAX_CHANGES:
        raise HealthRowError(f"{len(document)} rows; at most {MAX_CHANGES} are possible")
    found = tuple(_read(item, index) for index, item in enumerate(document))
    changed_rows(found)
    return found


def _read(item: Any, index: int) -> RowChange:
    name = item.get("name") if isinstance(item, dict) else None
    where = f"row {name}" if isinstance(name, str) and name else f"rows[{index}]"
    if not isinstance(item, dict):
        raise HealthRowError(f"{where}: not a map; write {{name: ..., strength: ...}}")
    try:
        return RowChange.from_wire(item)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "row"
        raise HealthRowError(clean_text(f"{where}: {field}: {first['msg']}", 400)) from error


def changed_rows(
    changes: Iterable[RowChange], rows: Sequence[HealthRow] = DEFAULT_ROWS
) -> tuple[HealthRow, ...]:
    """Return the rows with the changes applied in order. Raises HealthRowError."""
    table = {row.name: row for row in rows}
    for change in changes:
        if change.name.endswith("/*"):
            _change_family(table, change)
        elif change.name in table:
            table[change.name] = _changed(table[change.name], change)
        else:
            table[change.name] = _new(change)
    return tuple(table.values())


def _change_family(table: dict[str, HealthRow], change: RowChange) -> None:
    family = change.name.removesuffix("*")
    members = [name for name in table if name.startswith(family)]
    if not members:
        families = ", ".join(sorted({name.split("/")[0] for name in table}))
        raise HealthRowError(f"row {change.name}: name: no such family; there are {families}")
    given = change.model_fields_set - {"name", "strength", "move_within_seconds"}
    if given:
        raise HealthRowError(
            f"row {change.name}: {sorted(given)[0]}: a family has only a strength and"
            " moveWithinSeconds; name single rows"
        )
    for name in members:
        table[name] = _changed(table[name], change)


def _changed(row: HealthRow, change: RowChange) -> HealthRow:
    kind = _kind_of(change)
    if kind is not None and row.kind == RowKind.CORDON:
        raise HealthRowError(f"row {row.name}: {kind}: this row has no key; choose another name")
    changed = replace(
        row,
        kind=kind or row.kind,
        key=getattr(change, kind) if kind else row.key,
        strength=Strength(change.strength) if change.strength else row.strength,
        status=change.status or row.status,
        values=row.values if change.values is None else tuple(change.values),
        move_within=(
            row.move_within if change.move_within_seconds is None else change.move_within_seconds
        ),
        source=_CONFIGURED if kind else row.source,
    )
    return _checked(changed, change)


def _new(change: RowChange) -> HealthRow:
    kind = _kind_of(change)
    if kind is None:
        raise HealthRowError(
            f"row {change.name}: no row of this name is shipped, and it says not what to look for;"
            f" correct the name, or set one of {', '.join(_KEYS)}"
        )
    if change.strength is None:
        raise HealthRowError(f"row {change.name}: strength: set avoid or leave")
    return _checked(
        HealthRow(
            change.name,
            kind,
            getattr(change, kind),
            Strength(change.strength),
            change.status or "True",
            tuple(change.values or ()),
            change.move_within_seconds,
            _CONFIGURED,
        ),
        change,
    )


def _kind_of(change: RowChange) -> RowKind | None:
    named = [kind for kind in _KEYS if getattr(change, kind) is not None]
    if len(named) > 1:
        raise HealthRowError(
            f"row {change.name}: {named[1]}: a row looks at one thing; remove {named[0]} or"
            f" {named[1]}"
        )
    return named[0] if named else None


def _checked(row: HealthRow, change: RowChange) -> HealthRow:
    """Return a row whose fields fit together."""
    if change.status is not None and row.kind != RowKind.CONDITION:
        raise HealthRowError(f"row {row.name}: status: only conditions have one; remove it")
    if change.values and row.kind not in (RowKind.TAINT, RowKind.LABEL):
        raise HealthRowError(
            f"row {row.name}: values: only taints and labels have some; remove them"
        )
    if change.move_within_seconds is not None and row.strength == Strength.AVOID:
        raise HealthRowError(
            f"row {row.name}: moveWithinSeconds: only jobs that leave move; set strength: leave"
        )
    if not row.key.strip("*") and row.kind != RowKind.CORDON:
        raise HealthRowError(
            f"row {row.name}: {row.kind}: {row.key!r} matches everything; name some"
        )
    return row
