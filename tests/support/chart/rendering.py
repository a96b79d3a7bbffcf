"""The manifests of each set of values, rendered once."""

from __future__ import annotations

import copy
from functools import cache

from llmtrain_chart.helm import Major, render
from tests.support.chart.manifests import Object, documents
from tests.support.chart.value_sets import VALUE_SETS


@cache
def text_of_set(name: str, major: Major = 4) -> str:
    return render(VALUE_SETS[name], major=major)


@cache
def _objects(name: str) -> list[Object]:
    return documents(text_of_set(name))


def rendered_set(name: str) -> list[Object]:
    return copy.deepcopy(_objects(name))
