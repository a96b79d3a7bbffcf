"""A controller whose API server is a store of objects."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llmtrain_operator.config import parse
from llmtrain_operator.controller import Controller
from llmtrain_operator.metrics.registry import Metrics
from tests.support.operator_harness.store import Store


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    found = Store()
    yield found
    await found.close()


@pytest.fixture
async def controller(store: Store) -> AsyncIterator[Controller]:
    """A controller whose informers show what a test puts there."""
    found = Controller(parse([]), store, Metrics(), lambda _name: None)
    yield found
    await found.stop()
