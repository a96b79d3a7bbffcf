"""The definitions are those of the models, and of the dialect that API servers take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from llmtrain_core.api.base import ApiModel, Quantity, list_map
from llmtrain_core.api.crd import HEADER, crds, render, structural_schema
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.api.job import IMMUTABLE, JobSpec
from llmtrain_core.api.status.job import JobStatus
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

FOLDER = ROOT / "crds"

FORBIDDEN = {
    "$ref",
    "$defs",
    "definitions",
    "const",
    "title",
    "examples",
    "deprecated",
    "uniqueItems",
    "patternProperties",
    "prefixItems",
    "oneOf",
    "allOf",
    "not",
    "dependencies",
    "nullable",
}
TYPED = {"object", "array", "string", "integer", "number", "boolean"}
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


def complaints(node: dict[str, Any], path: str, *, described: bool = True) -> Iterator[str]:
    """Say what an API server, or a reader of `kubectl explain`, would not like about a schema."""
    yield from (f"{path}: forbidden {key}" for key in FORBIDDEN & node.keys())
    if described and not node.get("description"):
        yield f"{path}: no description"
    if node.get("x-kubernetes-int-or-string"):
        if node.get("anyOf") != INT_OR_STRING or "type" in node:
            yield f"{path}: int-or-string needs exactly {INT_OR_STRING}"
    elif node.get("type") not in TYPED:
        yield f"{path}: type {node.get('type')!r}"
    elif "anyOf" in node:
        yield f"{path}: a type beside a combinator"
    if isinstance(node.get("exclusiveMinimum", True), bool) is False:
        yield f"{path}: a numeric exclusiveMinimum"
    if isinstance(node.get("exclusiveMaximum", True), bool) is False:
        yield f"{path}: a numeric exclusiveMaximum"
    if "null" in json.dumps(node.get("default", "")):
        yield f"{path}: a null inside a default"
    yield from _bounds(node, path)
    yield from _children(node, path)


def _bounds(node: dict[str, Any], path: str) -> Iterator[str]:
    if node.get("type") == "array":
        if "maxItems" not in node:
            yield f"{path}: no maxItems"
        if "x-kubernetes-list-type" not in node:
            yield f"{path}: no list type"
    is_text = node.get("type") == "string" or node.get("x-kubernetes-int-or-string")
    if is_text and "enum" not in node and "maxLength" not in node:
        yield f"{path}: no maxLength"
    if "additionalProperties" in node and "maxProperties" not in node:
        yield f"{path}: no maxProperties"
    if "additionalProperties" in node and "properties" in node:
        yield f"{path}: properties beside additionalProperties"
    if "x-kubernetes-preserve-unknown-fields" in node:
        yield f"{path}: keeps unknown fields"
    if node.get("type") == "object" and not {"properties", "additionalProperties"} & node.keys():
        yield f"{path}: an object without fields"


def _children(node: dict[str, Any], path: str) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        yield from complaints(child, f"{path}.{name}")
    if "items" in node:
        items = node["items"]
        yield from complaints(items, f"{path}[]", described=False)
        for key in node.get("x-kubernetes-list-map-keys", []):
            known = items["properties"].get(key, {})
            if key not in items.get("required", []) and "default" not in known:
                yield f"{path}: the key {key} may be absent"
    if "additionalProperties" in node:
        yield from complaints(node["additionalProperties"], f"{path}{{}}", described=False)


def schema_of(crd: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_the_committed_files_are_the_generated_ones() -> None:
    generated = render()
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == sorted(generated)
    for name, text in generated.items():
        assert (FOLDER / name).read_text() == text, "run: llmtrain crd --write crds/"


def test_the_files_are_the_definitions() -> None:
    assert [yaml.safe_load(text) for text in render().values()] == crds()
    assert all(text.startswith(HEADER) for text in render().values())


@pytest.mark.parametrize("crd", crds(), ids=lambda crd: crd["spec"]["names"]["kind"])
def test_the_schema_is_structural_described_and_bounded(crd: dict[str, Any]) -> None:
    schema = schema_of(crd)
    assert schema["properties"].pop("metadata") == {"type": "object"}
    head = {name: schema["properties"].pop(name) for name in ("apiVersion", "kind")}
    assert all(field["description"] for field in head.values())
    assert list(complaints(schema, crd["spec"]["names"]["kind"])) == []


@pytest.mark.parametrize("crd", crds(), ids=lambda crd: crd["spec"]["names"]["kind"])
def test_client_side_apply_can_keep_the_definition_in_its_annotation(crd: dict[str, Any]) -> None:
    assert len(json.dumps(crd)) < 256 * 1024 / 2


def test_names() -> None:
    job, fabric = crds()
    assert job["metadata"]["name"] == "llmtrainingjobs.llmtrain.dev"
    assert job["spec"]["scope"] == "Namespaced"
    assert job["spec"]["names"]["shortNames"] == ["ltj"]
    assert job["spec"]["names"]["categories"] == ["llmtrain"]
    assert job["spec"]["versions"][0]["subresources"].keys() == {"status", "scale"}
    assert fabric["metadata"]["name"] == "fabrics.llmtrain.dev"
    assert fabric["spec"]["scope"] == "Cluster"


def test_the_scale_points_at_fields() -> None:
    job, _ = crds()
    scale = job["spec"]["versions"][0]["subresources"]["scale"]
    for path, kind in zip(scale.values(), ("integer", "integer", "string"), strict=True):
        node = schema_of(job)
        for part in path.strip(".").split("."):
            node = node["properties"][part]
        assert node["type"] == kind, path


def test_columns_point_at_fields() -> None:
    for crd in crds():
        for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]:
            node = schema_of(crd)
            for part in column["jsonPath"].replace("[*]", "").strip(".").split("."):
                if part in {"creationTimestamp"}:
                    break
                node = node.get("items", node)["properties"].get(part, {"properties": {}})
                assert node != {"properties": {}} or part == "metadata", column


class Undocumented(ApiModel):
    """A model of which one field says nothing."""

    known: int = 1
    """This one says what it is."""
    unknown: int = 1


def test_a_field_without_docstring_is_found() -> None:
    found = list(complaints(structural_schema(Undocumented), "X"))
    assert found == ["X.unknown: no description"]


class Inner(ApiModel):
    """Something inside."""

    name: Annotated[str, Field(max_length=5)]
    """Name."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Ratio."""


class Outer(ApiModel):
    """Something outside."""

    inner: Inner = Field(default_factory=lambda: Inner(name="a"))
    """What the field
    says wins over what the model says."""
    maybe: Inner | None = None
    """Perhaps."""
    many: Annotated[list[Inner], Field(max_length=3), list_map("name")] | None = None
    """Several."""
    size: Quantity | None = None
    """Size."""


def test_the_dialect() -> None:
    schema = structural_schema(Outer)
    fields = schema["properties"]
    assert schema["type"] == "object"
    assert "required" not in schema
    assert fields["inner"]["description"] == "What the field says wins over what the model says."
    assert fields["inner"]["default"] == {"name": "a", "ratio": 0.5}
    assert fields["inner"]["required"] == ["name"]
    assert fields["inner"]["properties"]["ratio"] == {
        "description": "Ratio.",
        "type": "number",
        "default": 0.5,
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
    }
    assert "default" not in fields["maybe"]
    assert fields["maybe"]["description"] == "Perhaps."
    assert fields["many"]["x-kubernetes-list-type"] == "map"
    assert fields["many"]["x-kubernetes-list-map-keys"] == ["name"]
    assert fields["size"]["x-kubernetes-int-or-string"] is True
    assert fields["size"]["anyOf"] == INT_OR_STRING


def test_a_status_states_nothing_that_nobody_observed() -> None:
    assert '"default"' not in json.dumps(structural_schema(JobStatus, status=True))


def test_no_rule_is_evaluated_for_the_status_alone() -> None:
    assert "x-kubernetes-validations" in json.dumps(structural_schema(JobStatus))
    assert "x-kubernetes-validations" not in json.dumps(structural_schema(JobStatus, status=True))


def models(node: type[ApiModel]) -> list[type[ApiModel]]:
    """Return all models that were declared with rules."""
    subclasses = [node, *(m for child in node.__subclasses__() for m in models(child))]
    return [m for m in subclasses if m.cel_rules and m.__module__.startswith("llmtrain_core")]


def test_every_rule_says_what_is_wrong_and_where() -> None:
    assert {JobSpec, FabricSpec} <= set(models(ApiModel))
    for model in models(ApiModel):
        for rule in model.cel_rules:
            assert rule.message
            assert re.fullmatch(r"(\.[A-Za-z]+)*", rule.field)


def test_every_rule_reaches_the_definitions() -> None:
    text = json.dumps(crds())
    for model in models(ApiModel):
        for rule in model.cel_rules:
            assert json.dumps(rule.cel)[1:-1] in text


def rules_of(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the rules of a schema over several fields, each with the path of its node."""
    if "properties" in node:
        yield from ((path, rule) for rule in node.get("x-kubernetes-validations", []))
    for name, child in node.get("properties", {}).items():
        yield from rules_of(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from rules_of(node[key], f"{path}[]")


def test_rules_of_immutable_fields_are_for_new_objects_only() -> None:
    """The API server evaluates all others at each write of a status."""
    spec = schema_of(crds()[0])["properties"]["spec"]
    immutable = [f".{name}" for name in IMMUTABLE]
    for path, rule in rules_of(spec):
        is_of_new_objects = "oldSelf.hasValue() ||" in rule["rule"]
        assert is_of_new_objects == rule.get("optionalOldSelf", False)
        if path == ".workers.tolerations[]":  # the API server knows no old item of a list by index
            assert not is_of_new_objects
        else:
            field = path + rule.get("fieldPath", "")
            assert is_of_new_objects == any(f"{field}.".startswith(f"{i}.") for i in immutable)
    for rule in JobSpec.cel_rules:  # they are skipped at an update, so they may read nothing else
        assert set(re.findall(r"self\.(\w+)", rule.cel)) <= set(IMMUTABLE), rule
