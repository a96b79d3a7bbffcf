"""Generate the CustomResourceDefinitions from the models.

The JSON Schema of pydantic is not a structural schema of the API server, which has no `$ref`, no
null type, no numeric `exclusiveMinimum` and no `const`. One recursive pass converts these; bounds,
patterns, rules, list types and descriptions are used unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from llmtrain_core.api.base import API_VERSION, GROUP, VERSION
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.api.job import IMMUTABLE, JobSpec
from llmtrain_core.api.status.job import JobStatus

Schema = dict[str, Any]

HEADER = """\
# Generated from core/llmtrain_core/api; do not edit.
# Regenerate: llmtrain crd --write crds/
"""

_UNKNOWN_TO_CRDS = frozenset({"title", "examples", "deprecated", "$defs", "const", "uniqueItems"})
"""Keywords that the API server rejects, or that have no effect."""


def crds() -> list[dict[str, Any]]:
    """Return the CustomResourceDefinitions of this project."""
    return [_job_crd(), _fabric_crd()]


def render() -> dict[str, str]:
    """Return the files of `crds/` by name."""
    return {f"{crd['spec']['names']['plural']}.yaml": HEADER + _yaml(crd) for crd in crds()}


def _job_crd() -> dict[str, Any]:
    properties = {
        "spec": _job_spec(),
        "status": structural_schema(JobStatus, status=True),
    }
    definition = _definition(
        names={
            "kind": "LLMTrainingJob",
            "listKind": "LLMTrainingJobList",
            "plural": "llmtrainingjobs",
            "singular": "llmtrainingjob",
            "shortNames": ["ltj"],
            "categories": ["llmtrain"],
        },
        scope="Namespaced",
        description="A job that trains a language model on GPUs, as a gang placed by topology.",
        properties=properties,
        columns=_JOB_COLUMNS,
    )
    [version] = definition["spec"]["versions"]
    version["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = [
        _unless_status_is_written(rule) for rule in (_IMMUTABLE, _SAME_PRIORITY_CLASS)
    ]
    version["subresources"]["scale"] = _SCALE
    return definition


_SCALE = {
    "specReplicasPath": ".spec.workers.nodes",
    "statusReplicasPath": ".status.readyNodes",
    "labelSelectorPath": ".status.selector",
}
"""Lets PodDisruptionBudgets of other owners count the pods of a job. `kubectl scale` is refused,
because the field is immutable. A job without the field has no scale."""


def _is_same(field: str) -> str:
    new, old = f"self.spec.{field}", f"oldSelf.spec.{field}"
    # `new.?field == old.?field` would be shorter, but its estimated cost has no bound.
    return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"


_IMMUTABLE = {
    "rule": " && ".join(map(_is_same, IMMUTABLE)),
    "message": "immutable, create a new job instead",
    "messageExpression": "'immutable, create a new job instead:'"
    + "".join(f" + ({_is_same(field)} ? '' : ' spec.{field}')" for field in IMMUTABLE),
    "fieldPath": ".spec",
}

_SAME_PRIORITY_CLASS = {
    "rule": "!has(oldSelf.status) || !has(oldSelf.status.placement)"
    f" || ({_is_same('priorityClassName')})",
    "message": "the field is immutable while the job has nodes; suspend the job to change it",
    "fieldPath": ".spec.priorityClassName",
}
"""The pods of a placed job have its priority. A job that is raised later could not be stopped."""


def _unless_status_is_written(rule: Schema) -> Schema:
    """Return a rule about changes of the spec that is not evaluated for writes of the status.

    The API server evaluates all rules at each write of the status, which cannot change the spec,
    and the comparison of a spec is the most expensive part of such a write. A new revision shows
    that the status is written: no other write can change it.
    """
    new, old = (f"{self}.?status.?revision.orValue(0)" for self in ("self", "oldSelf"))
    return {**rule, "rule": f"{new} != {old} || ({rule['rule']})"}


def _job_spec() -> Schema:
    """Return the schema of the spec. Rules of immutable fields are evaluated at creation only."""
    spec = _only_at_creation(structural_schema(JobSpec))  # its own rules are of immutable fields
    fixed = {
        name: _mapped(spec["properties"][name], _only_at_creation, into=_has_old_items)
        for name in IMMUTABLE
    }
    return {**spec, "properties": {**spec["properties"], **fixed}}


def _only_at_creation(node: Schema) -> Schema:
    """Return a node whose rules over several fields hold for all but new objects."""
    rules = node.get("x-kubernetes-validations", [])
    if "properties" not in node or not rules:
        return node
    once = [
        {**rule, "rule": f"oldSelf.hasValue() || ({rule['rule']})", "optionalOldSelf": True}
        for rule in rules
    ]
    return {**node, "x-kubernetes-validations": once}


def _has_old_items(node: Schema) -> bool:
    """Return whether rules below a node may use oldSelf: not in lists without keys."""
    return bool(node.get("x-kubernetes-list-type", "map") == "map")


def _fabric_crd() -> dict[str, Any]:
    return _definition(
        names={
            "kind": "Fabric",
            "listKind": "FabricList",
            "plural": "fabrics",
            "singular": "fabric",
            "categories": ["llmtrain"],
        },
        scope="Cluster",
        description="Network topology of the cluster.",
        properties={"spec": structural_schema(FabricSpec)},
        columns=_FABRIC_COLUMNS,
    )


def _column(name: str, kind: str, path: str, description: str, wide: bool = False) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return {**column, "priority": 1} if wide else column


_AGE = _column("Age", "date", ".metadata.creationTimestamp", "Time since creation.")

_JOB_COLUMNS = [
    _column("State", "string", ".status.phase", "Phase of the job."),
    _column("Nodes", "string", ".status.nodes", "Ready nodes over requested nodes."),
    _column("Layout", "string", ".status.layout", "Parallel degrees."),
    _column("Step", "integer", ".status.progress.step", "Completed optimizer steps."),
    _column("Progress", "string", ".status.progressPercent", "Share of completed steps."),
    _column("ETA", "string", ".status.progress.eta", "Estimated completion time."),
    _column("Restarts", "integer", ".status.restarts", "Gang restarts after failures."),
    _column(
        "In-Place",
        "integer",
        ".status.progress.restartsInPlace",
        "Restarts of all ranks inside their running pods, in this attempt.",
    ),
    _AGE,
    _column("Loss", "number", ".status.progress.loss", "Training loss of the last step.", True),
    _column("MFU", "number", ".status.progress.mfu", "Model FLOPs utilization.", True),
    _column("Placement", "string", ".status.placementSummary", "Nodes and domains used.", True),
    _column("Reason", "string", ".status.reason", "Reason for the phase.", True),
]

_FABRIC_COLUMNS = [
    _column("Preset", "string", ".spec.preset", "Node-label scheme."),
    _column("Levels", "string", ".spec.levels[*].name", "Levels, from the top down."),
    _AGE,
]


def _definition(
    *,
    names: Mapping[str, Any],
    scope: str,
    description: str,
    properties: Mapping[str, Schema],
    columns: list[Schema],
) -> dict[str, Any]:
    has_status = "status" in properties
    schema = {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {API_VERSION}."},
            "kind": {"type": "string", "description": f"Always {names['kind']}."},
            "metadata": {"type": "object"},
            **properties,
        },
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": columns,
        **({"subresources": {"status": {}}} if has_status else {}),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{GROUP}"},
        "spec": {"group": GROUP, "names": dict(names), "scope": scope, "versions": [version]},
    }


def structural_schema(model: type[BaseModel], *, status: bool = False) -> Schema:
    """Return a model's schema in the dialect of the API server.

    Defaults of a spec are stored when the object is created, so an upgrade of the operator does not
    change existing jobs. A status has no defaults: the API server would add unobserved values. Only
    the operator writes it. So it has no rules, which each write would evaluate, and is atomic:
    `managedFields` has one entry for it, instead of the paths of all its fields.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    structural = _structural(schema, schema.get("$defs", {}))
    if not status:
        return structural
    return {**_mapped(structural, _for_status), "x-kubernetes-map-type": "atomic"}


def _for_status(node: Schema) -> Schema:
    left_out = ("default", "x-kubernetes-validations")
    return {key: value for key, value in node.items() if key not in left_out}


def _mapped(
    schema: Schema,
    change: Callable[[Schema], Schema],
    *,
    into: Callable[[Schema], bool] = lambda _: True,
) -> Schema:
    """Return the schema with changed nodes, without those below a node that `into` excludes."""
    mapped = dict(change(schema))
    if not into(mapped):
        return mapped
    for key in ("items", "additionalProperties"):
        if key in mapped:
            mapped[key] = _mapped(mapped[key], change, into=into)
    if "properties" in mapped:
        properties = mapped["properties"].items()
        mapped["properties"] = {name: _mapped(node, change, into=into) for name, node in properties}
    return mapped


_WHOLE = {
    "rule": "self == self",
    "message": "write a whole number, without a decimal point",
}
"""The API server accepts 4.0 as an integer unless a rule reads the field. This rule on each integer
of a spec makes the result the same for all fields, and the same as that of pydantic."""


def _structural(node: Mapping[str, Any], models: Mapping[str, Schema]) -> Schema:
    node = _without_null(_inlined(node, models), models)
    schema: Schema = {key: node[key] for key in ("description", "type") if key in node}
    schema |= {key: value for key, value in node.items() if key not in _UNKNOWN_TO_CRDS}
    if "description" in node:
        schema["description"] = " ".join(node["description"].split())
    if "const" in node:
        schema["enum"] = [node["const"]]
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in node:
            schema[bound.lower()] = node[f"exclusive{bound}"]
            schema[f"exclusive{bound}"] = True
    if "items" in node:
        schema["items"] = _structural(node["items"], models)
        schema.setdefault("x-kubernetes-list-type", "atomic")
    if "properties" in node:
        schema["properties"] = {
            name: _structural(child, models) for name, child in node["properties"].items()
        }
    if schema.get("type") == "integer":
        schema["x-kubernetes-validations"] = [_WHOLE]
    values = schema.pop("additionalProperties", False)
    if values:
        schema["additionalProperties"] = _structural(values, models)
    return schema


def _inlined(node: Mapping[str, Any], models: Mapping[str, Schema]) -> Schema:
    """Replace a reference by its target; what stands beside the reference wins."""
    if "$ref" not in node:
        return dict(node)
    beside = {key: value for key, value in node.items() if key != "$ref"}
    target = models[node["$ref"].removeprefix("#/$defs/")]
    return _inlined({**target, **beside}, models)


def _without_null(node: Schema, models: Mapping[str, Schema]) -> Schema:
    """Turn "a value or null" into the value: for the API server a null is an absent field."""
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if len(options) != 1:
        return node
    beside = {key: value for key, value in node.items() if key not in {"anyOf", "default"}}
    return {**_inlined(options[0], models), **beside}


def _yaml(document: Mapping[str, Any]) -> str:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(document, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)
