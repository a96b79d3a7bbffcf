"""The values below `config`: one for each flag of the operator that is a choice of the user."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model

from llmtrain_chart.values.base import ChartModel
from llmtrain_core.node_health import RowChange
from llmtrain_core.node_health.changes import MAX_CHANGES
from llmtrain_operator import config

SET_BY_CHART = frozenset(
    {
        "namespace",
        "kubeconfig",
        "lease_namespace",
        "lease_name",
        "lease_metadata",
        "identity",
        "metrics_peers",
        "fixed_user",
    }
)
"""Fields of the operator's configuration that are not below `config`: the chart or the pod sets
them."""

_TYPES: dict[str, Any] = {
    "bool": bool,
    "str": str,
    "int": Annotated[int, Field(ge=1, le=65535)],
    "float": Annotated[float, Field(gt=0)],
}
"""Type of a value, by the type of its field."""
_OWN_TYPES: dict[str, Any] = {
    "log_level": Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    "domain_tolerance": Annotated[float, Field(ge=0, lt=1)],
    "max_excluded_nodes_percent": Annotated[float, Field(gt=0, le=100)],
    "node_health": Annotated[list[RowChange], Field(max_length=MAX_CHANGES)],
}
"""Type of a value whose field does not say enough, by the name of the field."""


def _descriptions() -> dict[str, str]:
    """Return the docstring of each field of the operator's `Config`."""
    found: dict[str, str] = {}
    tree = ast.parse(inspect.getsource(config.Config))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    for before, node in pairwise(body):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            found[before.target.id] = str(node.value.value)
    return found


def _model() -> type[ChartModel]:
    descriptions = _descriptions()
    values: dict[str, Any] = {}
    for item in fields(config.Config):
        if item.name in SET_BY_CHART:
            continue
        kind = _OWN_TYPES[item.name] if item.name in _OWN_TYPES else _TYPES[str(item.type)]
        # A pod has its ports to itself and needs no free one.
        description = descriptions[item.name].replace("; 0 selects a free port", "")
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        values[item.name] = (kind, Field(default, description=description))
    return create_model("OperatorConfig", __base__=ChartModel, **values)


if TYPE_CHECKING:
    OperatorConfig = ChartModel
else:
    OperatorConfig = _model()
