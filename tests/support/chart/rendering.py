"""The manifests of values, and of each set of values, which are rendered once."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from llmtrain_chart.helm import Major, render
from tests.support.chart.manifests import Object, documents, find
from tests.support.chart.value_sets import VALUE_SETS


@cache
def text_of_set(name: str, major: Major = 4) -> str:
    return render(VALUE_SETS[name], major=major)


@cache
def _objects(name: str) -> list[Object]:
    return documents(text_of_set(name))


def rendered_set(name: str) -> list[Object]:
    return copy.deepcopy(_objects(name))


def rendered(**values: Any) -> list[Object]:
    return documents(render(values))


def operator_pod(objects: list[Object], name: str = "") -> Object:
    """Return the spec of the pod of a Deployment, the only one by default."""
    spec: Object = find(objects, "Deployment", name)["spec"]["template"]["spec"]
    return spec
