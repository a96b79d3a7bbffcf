"""Fixtures of tests of the scheduler."""

from __future__ import annotations

import pytest

from tests.support.devices.cluster import DeviceCluster
from tests.support.devices.objects import CLASSES


@pytest.fixture
def devices() -> DeviceCluster:
    """A cluster with the DeviceClasses of the fake driver."""
    found = DeviceCluster()
    found.put(*CLASSES)
    return found
